"""`bes`: boundaries from labels that data.boundary makes, and a walk of previous CAMs within them.

Source: BES (L. Chen, W. Wu, C. Fu, X. Han, Y. Zhang, ECCV 2020).
Differs from the release: the walk covers the whole image, whatever its size, and is sparse; no
gradient is computed for the backbone, which is not trained; means are those of the global batch,
also if a crop has no boundaries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from network.losses import add_up
from network.maps import at_cells
from network.methods import Batch, option
from network.methods.irn import STRIDE, Irn
from tool.crf.post import Post, alpha_at
from tool.formats.boundary import BACKGROUND, CLASSES, FOREGROUND, OBJECT
from tool.parallel.dist import global_mean, world_size
from tool.progress import Progress

_EPS = 1e-4  # probabilities are clamped to [_EPS, 1 - _EPS]


def post(threshold: float) -> Post:
    """Return how walked CAMs become masks: a constant background, and a CRF on the labels.

    Args:
        threshold: Score of the background, in [0, 1].
    """
    return Post(preset="label20", threshold=threshold, alpha=alpha_at(threshold))


class Bes(Irn):
    """IRN's boundary branch on five frozen taps, trained on boundary labels.

    Images are not padded.

    Attributes:
        kinds: Values of the boundary label that count as boundaries.
        weight_ground: Weight of the term `ground`.
    """

    inputs: tuple[str, ...] = ("image", "boundary")
    recipe = dataclasses.replace(Irn.recipe, batch_size=16, short_options={}, post=post(0.25))
    released: Mapping[str, str] = {
        f"fc_edge{branch}.{name}": f"boundary.branches.{branch - 1}.{name}"
        for branch in range(1, 6)
        for name in ("0.weight", "1.weight", "1.bias")
    } | {f"fc_edge6.{name}": f"boundary.fuse.{name}" for name in ("weight", "bias")}
    kinds: ClassVar[tuple[int, ...]] = (OBJECT, CLASSES)
    weight_ground: ClassVar[float] = 0.5

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of BES, all of which are used in inference only.

        Attributes:
            walk_radius: A step of the random walk reaches cells closer than this, in cells.
            beta: Exponent of the affinity in the walk. A smaller one lets the CAMs spread further.
            exponent: The walk has 2 to this power steps. Fewer steps keep small objects.
        """

        # IRN's other hyper-parameters are fixed.
        radius: ClassVar[int] = 10  # not used: BES has no pairs in training
        power: ClassVar[float] = 1.0  # CAMs are not raised to a power
        pad: ClassVar[int] = 0  # images are not padded
        walk_radius: int = option(5, inference=True)
        beta: float = option(5.0, inference=True)
        exponent: int = option(8, inference=True)

    def build(self) -> None:
        """Freeze the backbone, and build the branch of the boundaries alone."""
        super().build()
        del self.displacement

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the losses of cells off boundaries and of cells on boundaries.

        With the probability p of a boundary, `ground` is the mean of -log(1 - p) over background
        cells plus that over cells inside an object. `boundary` is the sum of `boundary_parts`.

        Returns:
            {`ground`, `boundary`: scalar}, this rank's shares. Each mean is over the global batch,
            with 1 added to the number of cells.
        """
        del progress
        # The boundary label and the probability of a boundary, on cells of 4 pixels.
        kind = at_cells(batch["boundary"], STRIDE)  # (N, h, w)
        logit = self.boundary(self.taps(batch["image"]), kind.shape[-2:]).float()[:, 0]
        prob = logit.sigmoid().clamp(_EPS, 1 - _EPS)  # (N, h, w)
        # Cells that are no boundary, in two means.
        inside = -(1 - prob).log()
        ground = {
            "ground_background": self.mean(inside, kind == BACKGROUND),
            "ground_foreground": self.mean(inside, kind == FOREGROUND),
        }
        # Boundary cells. As the labels are noisy, -log p is weighted by sqrt(p), a constant: a cell
        # that the network hardly takes for a boundary counts less.
        is_boundary = torch.stack([kind == one for one in self.kinds]).any(dim=0)  # (N, h, w)
        found = -prob.detach().sqrt() * prob.log()  # (N, h, w)
        parts = self.boundary_parts(found, is_boundary, batch)
        named = ground | (parts if len(parts) > 1 else {})
        self._metrics = {name: term.detach() for name, term in named.items()}
        return {"ground": add_up(ground.values()), "boundary": add_up(parts.values())}

    def boundary_parts(self, loss: Tensor, is_boundary: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Compute the means whose sum is the loss of boundaries; BES has one.

        Args:
            loss: (N, h, w), -sqrt(p) log p, where the root gets no gradient.
            is_boundary: (N, h, w) bool, the boundary cells.
            batch: The batch.

        Returns:
            {name: scalar}, this rank's shares.
        """
        del batch
        return {"boundary": self.mean(loss, is_boundary)}

    def mean(self, loss: Tensor, chosen: Tensor) -> Tensor:
        """Compute this rank's share of the sum of the chosen losses over their number plus 1.

        Args:
            loss: (N, h, w).
            chosen: (N, h, w) bool.

        Returns:
            Scalar; 0, attached to the graph, if no cell is chosen.
        """
        # The 1 is added once for all ranks.
        count = chosen.sum().to(loss.dtype) + 1 / world_size()
        return global_mean((loss * chosen).sum(), count)

    def weights(self) -> dict[str, float]:
        """Return the weights of the terms."""
        return {"ground": self.weight_ground, "boundary": 1.0}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return one group, the branch of the boundaries. Its norms and biases decay, too."""
        parameters = list(self.boundary.parameters())
        return [{"params": parameters, "lr": lr, "weight_decay": weight_decay}]
