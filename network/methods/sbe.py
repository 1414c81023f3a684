"""`sbe`: BES with saliency in its labels, and separate means over salient and other boundaries.

Source: SBE, Salient-Boundary-Guided Pseudo-Pixel Supervision (SPL 2024).
Differs from the release: if the saliency of an image is 0 everywhere, all its boundaries count as
not salient, where the release divides by 0 and drops the image. `network.methods.bes` lists the
other differences.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from network.maps import resize
from network.methods import Batch
from network.methods.bes import Bes, post
from tool.formats.boundary import CLASSES, OBJECT, SALIENT


class Sbe(Bes):
    """BES, trained on the labels that `data.boundary --saliency` makes."""

    inputs = ("image", "boundary", "saliency")
    recipe = dataclasses.replace(Bes.recipe, post=post(0.21))
    kinds = (OBJECT, CLASSES, SALIENT)
    weight_ground = 1.0

    @dataclasses.dataclass(frozen=True)
    class Config(Bes.Config):
        """The hyper-parameters of BES, and one of SBE.

        Attributes:
            salient_above: A cell is salient if its saliency in [0, 1] is above this. Use the same
                value as for data.boundary.
        """

        salient_above: float = 0.0

    def build(self) -> None:
        """Build the same modules as BES, and check the threshold of saliency."""
        super().build()
        if not 0 <= self.config.salient_above < 1:
            raise ValueError(f"salient_above {self.config.salient_above} is not in [0, 1)")

    def boundary_parts(self, loss: Tensor, is_boundary: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Compute the mean over boundary cells that are salient, and over those that are not.

        Args:
            loss: (N, h, w), the loss of each cell if it is a boundary.
            is_boundary: (N, h, w) bool, the boundary cells.
            batch: `saliency` (N, 1, H, W) in [0, 1].

        Returns:
            {name: scalar}, this rank's shares: `boundary_salient` and `boundary_other`.
        """
        saliency = resize(batch["saliency"].float(), loss.shape[-2:])[:, 0]  # (N, h, w)
        salient = saliency > self.config.salient_above
        return {
            "boundary_salient": self.mean(loss, is_boundary & salient),
            "boundary_other": self.mean(loss, is_boundary & ~salient),
        }
