"""`deeplab2_advcam`: DeepLab-v2 in the recipe of AdvCAM, RIB and AMN, with the balanced loss.

Source: AdvCAM (J. Lee et al., CVPR 2021), its segmentation network.
"""

from __future__ import annotations

import dataclasses

from network.methods import option
from network.methods.deeplab2 import Deeplab2
from network.segmentation.losses import LOSSES


class Deeplab2Advcam(Deeplab2):
    """DeepLab-v2 with other defaults: more steps, larger scales, the balanced loss."""

    recipe = dataclasses.replace(
        Deeplab2.recipe, steps=30_000, scale=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    )

    @dataclasses.dataclass(frozen=True)
    class Config(Deeplab2.Config):
        """The hyper-parameters of DeepLab-v2.

        Attributes:
            loss: Loss over the pixels of a mask: plain is the mean over all of them. With balanced,
                background and foreground of an image have the same weight.
        """

        loss: str = option("balanced", choices=LOSSES)
