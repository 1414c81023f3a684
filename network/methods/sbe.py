"""`sbe`: BES with saliency in its labels, and boundaries in and out of salient regions apart.

Source: SBE, Salient-Boundary-Guided Pseudo-Pixel Supervision (SPL 2024).
Differs from the release: an image whose saliency is 0 everywhere has the loss of one that is not
salient, where a division by 0 left it without any; and see `network.methods.bes`.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from network.losses import resize
from network.methods import Batch
from network.methods.bes import Bes, post
from tool.formats.boundary import CLASSES, OBJECT, SALIENT


class Sbe(Bes):
    """BES, trained on the labels of data.boundary --saliency."""

    inputs = ("image", "boundary", "saliency")
    recipe = dataclasses.replace(Bes.recipe, post=post(0.21))
    kinds = (OBJECT, CLASSES, SALIENT)
    weight_ground = 1.0

    @dataclasses.dataclass(frozen=True)
    class Config(Bes.Config):
        """The hyper-parameters of SBE, those of BES and one more.

        Attributes:
            salient_above: A cell is salient if its saliency in [0, 1] is above this. Give the value
                that data.boundary got.
        """

        salient_above: float = 0.0

    def build(self) -> None:
        """Make what BES has, and check the threshold of saliency."""
        super().build()
        if not 0 <= self.config.salient_above < 1:
            raise ValueError(f"salient_above {self.config.salient_above} is not in [0, 1)")

    def boundary_parts(self, loss: Tensor, is_boundary: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the means over boundaries that are salient, and over those that are not."""
        saliency = resize(batch["saliency"].float(), loss.shape[-2:])[:, 0]  # (N, h, w)
        salient = saliency > self.config.salient_above
        return {
            "boundary_salient": self.mean(loss, is_boundary & salient),
            "boundary_other": self.mean(loss, is_boundary & ~salient),
        }
