"""`sfc_irn`: IRN's boundaries, and the mean of two random walks of SFC's map `walk` within them.

Source: SFC, Shared Feature Calibration (X. Zhao et al., AAAI 2024), its use of IRN (J. Ahn et al.,
CVPR 2019).
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from network.maps import resize, resize_cells
from network.methods import Batch, option
from network.methods.irn import STRIDE, Irn
from network.walk.random_walk import random_walk
from tool.crf.post import Post


class SfcIrn(Irn):
    """IRN with two walks, of CAMs raised to two powers.

    The CAMs are those of a previous stage. If they have a background row, the first walk has a
    constant background instead, and the second one walks the row with the classes.
    """

    whole_cams = True
    recipe = dataclasses.replace(
        Irn.recipe, post=Post(preset=None, threshold=0.125, seeds=(1.0, 0.5))
    )

    @dataclasses.dataclass(frozen=True)
    class Config(Irn.Config):
        """The hyper-parameters of IRN, and those of SFC's walk.

        Attributes:
            power: Exponent of the previous CAM in the first walk. The second walk has its square.
            bg_walk: Score of the background beside the first walk, in [0, 1]. It is used if the
                CAMs have a background row.
        """

        power: float = option(1.3, inference=True)
        bg_walk: float = option(0.25, inference=True)

    def build(self) -> None:
        """Build the same modules as IRN, and check the background of the walk."""
        super().build()
        if not 0 <= self.config.bg_walk <= 1:
            raise ValueError(f"bg_walk {self.config.bg_walk} is not in [0, 1]")

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Spread the previous CAMs, raised to two powers, within the boundaries.

        Args:
            scores: One (2, 1, h, w) per scale, or (1, 1, h, w) without mirrors: boundary logits.
            batch: `size` (H, W), `sizes` (h, w) of the scaled images, `label` (1, K), and `cam`
                (1, C, H, W) of the previous stage; C is K, or K + 1 with a background row.

        Returns:
            {"cam": (C, *size) in [0, 1]}: the mean of the two walks, each divided by its maximum
            over classes and pixels; 0 for absent classes. If no class is present, the background is
            1.

        Source: SFC (AAAI 2024), its use of IRN.
        """
        previous, size = batch["cam"][0].float(), batch["size"]
        edge, copy = self.mean_edge(scores, batch)
        # The channels of the background, if there is one, and of the P present classes.
        first = len(previous) - len(batch["label"][0])
        present = batch["label"][0].nonzero()[:, 0] + first
        kept = torch.cat([torch.arange(first, device=present.device), present])
        cam = previous.new_zeros((len(previous), *size))
        if len(present):
            seeds = resize(previous[None, kept], edge.shape)[0].clamp(min=0) ** self.config.power
            # The maps of a walk do not affect each other, so both walks are done in one: the
            # present classes to the power p, then all kept channels to the power p^2.
            walked = random_walk(
                torch.cat([seeds[first:], seeds**self.config.power]),
                edge,
                radius=self.config.walk_radius,
                beta=self.config.beta,
                steps=2**self.config.exponent,
            )
            walked = resize_cells(walked[None], STRIDE, copy, size)[0]  # (maps, H, W)
            # Normalise each walk, and prepend the constant background to the first one.
            one, two = (
                part / part.amax().clamp(min=1e-12) for part in walked.tensor_split([len(present)])
            )
            one = F.pad(one, (0, 0, 0, 0, first, 0), value=self.config.bg_walk)
            cam[kept] = (one + two) / 2
        elif first:
            cam[0] = 1
        return {"cam": cam}
