"""`irn`: class boundaries from confident seeds, and a random walk of previous CAMs within them.

Source: IRN (J. Ahn, S. Cho, S. Kwak, CVPR 2019), for semantic segmentation.
Differs from the release: displacements are learned, but not used in inference (no mean shift, no
instances); the walk covers the whole image, whatever its size; the walk is sparse; pairs near the
border count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from network.backbones import RAW, TAP_NAMES
from network.dropout import SeededDropout
from network.heads import BoundaryHead, DisplacementHead
from network.losses import add_up, full_precision
from network.maps import at_cells, resize, resize_cells, sum_of_mirrors
from network.methods import Batch, Method, Recipe, option
from network.walk.affinity import affinity_losses, displacement_losses, pair_labels
from network.walk.random_walk import pairs_within, path_affinity, random_walk
from tool.crf.post import Post
from tool.formats.cam import strided_size
from tool.progress import Progress

STRIDE = 4  # pixels per cell of the boundaries and of the walk


class Irn(Method):
    """A boundary and a displacement branch on five frozen taps, at a stride of 4."""

    inputs: tuple[str, ...] = ("image", "label", "seed")
    infer_inputs = ("image", "label", "cam")
    recipe = Recipe(
        epochs=3,
        batch_size=32,
        backbone="resnet50",
        crop=512,
        long_side=(320, 640),
        scale=(0.5, 1.5),
        jitter=False,
        lr=0.1,
        weight_decay=1e-4,
        scales=(1.0,),
        short={
            "steps": 100,
            "batch_size": 8,
            "crop": 224,
            "long_side": (224, 384),
            "scale": None,
            "momentum": 0.9,
            "warmup": 20,
        },
        short_options={"pad": 224},
        post=Post(preset=None, threshold=0.25),
    )
    released: Mapping[str, str] = {}  # its files are other networks

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of IRN; all but `radius` are used in inference only.

        Attributes:
            radius: Pairs of cells closer than this, in cells, are compared in training.
            walk_radius: A step of the random walk reaches cells closer than this, in cells.
            beta: Exponent of the affinity in the walk. A smaller one lets the CAMs spread further.
            exponent: The walk has 2 to this power steps. Fewer steps keep small objects.
            power: Exponent of the previous CAM before the walk; AMN takes 1.3.
            pad: Pixels per side to which smaller images are padded in inference. The norms of the
                heads count padding, so there should be as much of it as in training.
        """

        radius: int = 10
        walk_radius: int = option(5, inference=True)
        beta: float = option(10.0, inference=True)
        exponent: int = option(8, inference=True)
        power: float = option(1.0, inference=True)
        pad: int = option(512, inference=True)

    def build(self) -> None:
        """Freeze the backbone, and build the two branches."""
        config, backbone = self.config, self.backbone
        self._padded: tuple[Tensor, Tensor] | None = None
        for name in ("radius", "walk_radius"):
            if not 2 <= getattr(config, name) <= 50:
                raise ValueError(f"{name} {getattr(config, name)} is not in 2..50")
        if config.beta <= 0 or config.power <= 0:
            raise ValueError(f"beta {config.beta} and power {config.power} must be above 0")
        if config.exponent > 20:
            raise ValueError(f"exponent {config.exponent}: a walk of more than 2^20 steps")
        if config.pad > 4096:
            raise ValueError(f"pad {config.pad}: at most 4096 pixels")
        if list(backbone.maps) != list(TAP_NAMES):
            name = type(self).__module__.rpartition(".")[2]  # also a subclass's, such as bes
            raise ValueError(
                f"method {name!r} needs a backbone of five taps: {backbone.name!r} has "
                f"{', '.join(backbone.maps)}"
            )
        backbone.freeze_norms()
        backbone.requires_grad_(False)
        for module in backbone.modules():
            if isinstance(module, SeededDropout):
                module.probability = 0.0
        taps = tuple(backbone.maps.values())
        self.boundary = BoundaryHead(taps)
        self.displacement = DisplacementHead(taps)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the losses of the boundaries and of the displacements.

        Returns:
            {name: scalar}, this rank's shares: `aff_background`, `aff_foreground` and
            `aff_different` of `affinity_losses`, `dp_foreground` and `dp_background` of
            `displacement_losses`.
        """
        del progress
        # The seed, the edges and the displacements, on cells of 4 pixels.
        seed = at_cells(batch["seed"], STRIDE)  # (N, h, w)
        taps = self.taps(batch["image"])
        edge = self.boundary(taps, seed.shape[-2:]).float().sigmoid()[:, 0]  # (N, h, w)
        displacement = self.displacement(taps, seed.shape[-2:]).float()  # (N, 2, h, w)
        # The kind of each pair of near cells, and the losses of the pairs.
        pairs = pairs_within(self.config.radius)
        labels = pair_labels(seed, pairs)
        with full_precision(edge):
            terms = affinity_losses(path_affinity(edge, pairs), labels)
            return terms | displacement_losses(displacement, labels, pairs)

    def weights(self) -> dict[str, float]:
        """Return the weights of the terms.

        Pairs of equal labels together count as much as pairs of different labels. The two terms of
        the displacements count equally.
        """
        return {
            "aff_background": 0.25,
            "aff_foreground": 0.25,
            "aff_different": 0.5,
            "dp_foreground": 0.5,
            "dp_background": 0.5,
        }

    def taps(self, image: Tensor) -> list[Tensor]:
        """Compute the five taps of images (N, 3, H, W), shallow first, without gradient."""
        with torch.no_grad():
            taps = self.backbone(image, TAP_NAMES)
        return [taps[name] for name in TAP_NAMES]

    def score(self, batch: Batch) -> Tensor:
        """Compute the logits of the boundary, (2B, 1, ceil(H / 4), ceil(W / 4))."""
        image = self.padded(batch["image"])
        logit = self.boundary(self.taps(image), strided_size(image.shape[-2:], STRIDE)).float()
        h, w = strided_size(batch["image"].shape[-2:], STRIDE)
        return logit[..., :h, :w]

    def embed(self, batch: Batch) -> Tensor:
        """Return the raw high tap (2B, D, h, w) of the padded images, without the padding."""
        h, w = strided_size(batch["image"].shape[-2:], self.backbone.taps["high"].stride)
        high = self.backbone(self.padded(batch["image"]), (RAW,))[RAW][..., :h, :w]
        self._padded = None
        return high

    def padded(self, image: Tensor) -> Tensor:
        """Pad small images at the right and bottom with zeros, as in training.

        The result is kept until `embed`. So `score` and `embed` give the backbone the same tensor,
        of which it computes the taps once.

        Args:
            image: (N, 3, H, W).

        Returns:
            (N, 3, max(H, pad), max(W, pad)).
        """
        height, width = image.shape[-2:]
        right, below = max(0, self.config.pad - width), max(0, self.config.pad - height)
        if not right and not below:
            return image
        if self._padded is None or self._padded[0] is not image:
            self._padded = image, F.pad(image, (0, right, 0, below))
        return self._padded[1]

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Spread the previous CAMs within the boundaries by a random walk.

        The walk runs on the cells of the largest scale.

        Args:
            scores: One (2, 1, h, w) per scale, or (1, 1, h, w) without mirrors: boundary logits.
            batch: `size` (H, W), `sizes` (h, w) of the scaled images, `label` (1, K), and `cam`
                (1, K, h, w) of the previous stage.

        Returns:
            {"cam": (K, *size) in [0, 1]}: enlarged to the image, and divided by the maximum over
            classes and pixels; 0 for absent classes.
        """
        label, previous = batch["label"][0], batch["cam"][0].float()
        present = label.nonzero()[:, 0]
        edge, copy = self.mean_edge(scores, batch)
        # Walk the P present classes on this grid, then enlarge them to the pixels.
        cam = previous.new_zeros((len(label), *batch["size"]))
        if len(present):
            walked = random_walk(
                resize(previous[None, present], edge.shape)[0].clamp(min=0) ** self.config.power,
                edge,
                radius=self.config.walk_radius,
                beta=self.config.beta,
                steps=2**self.config.exponent,
            )
            walked = resize_cells(walked[None], STRIDE, copy, batch["size"])[0]  # (P, H, W)
            cam[present] = walked / walked.max().clamp(min=1e-12)
        return {"cam": cam}

    def mean_edge(self, scores: list[Tensor], batch: Batch) -> tuple[Tensor, tuple[int, int]]:
        """Merge the boundary logits of all scales and mirrors to one map of boundaries.

        Args:
            scores: As for `merge`.
            batch: `sizes` (h, w) of the scaled images.

        Returns:
            (h, w) in [0, 1], the sigmoid of the mean logits, on the cells of the largest scale; and
            the height and width of that scale in pixels.
        """
        copy = max(batch["sizes"], key=math.prod)
        grid = strided_size(copy, STRIDE)
        total = add_up(resize(both, grid) for both in scores)
        return (sum_of_mirrors(total)[0] / sum(map(len, scores))).sigmoid(), copy

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"edge": (1, h, w) in [0, 1]}, the boundaries of the first image."""
        return {"edge": self.score({"image": batch["image"][:1]}).sigmoid()[0]}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return one group per branch: boundaries at `lr`, displacements at ten times `lr`."""
        return [
            {"params": list(head.parameters()), "lr": lr * factor, "weight_decay": weight_decay}
            for head, factor in ((self.boundary, 1), (self.displacement, 10))
        ]
