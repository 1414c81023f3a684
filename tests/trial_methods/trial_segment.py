"""A trial of the contract, of a segmentation network's shape: masks, no labels, accumulation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from network.backbones import Backbone
from network.heads import classifier
from network.losses import balanced_cross_entropy
from network.methods import Batch, Method, Recipe
from tool.crf.post import Post
from tool.progress import Progress


class TrialSegment(Method):
    """Score maps against masks at two scales: `whole` and `half`."""

    inputs = ("image", "mask")
    infer_inputs = ("image",)
    maps = ("prob",)
    has_background = True
    recipe = Recipe(accumulate=2, scale=(0.5, 1.0, 1.5), post=Post(preset=None, seeds=(1.0, 0.5)))

    @dataclasses.dataclass(frozen=True)
    class Config:
        """A plain field."""

        half: float = 0.5

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        self.classifier = classifier(backbone.taps["high"].channels, num_classes + 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The same loss at full size and at half."""
        del progress
        small = F.interpolate(batch["image"], scale_factor=0.5, mode="bilinear")
        return {
            "whole": self.mask_loss(batch["image"], batch["mask"]),
            "half": self.mask_loss(small, batch["mask"]),
        }

    def mask_loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Images at any size against (N, H, W) masks, at the resolution of the scores."""
        score = self.classifier(self.backbone(image)["high"]).float()
        target = F.interpolate(mask[:, None].float(), size=score.shape[-2:], mode="nearest-exact")
        return balanced_cross_entropy(score, target[:, 0].long(), smoothing=0.0)

    def weights(self) -> dict[str, float]:
        """The weight of `half` is an option."""
        return {"whole": 1.0, "half": self.config.half}

    def score(self, batch: Batch) -> Tensor:
        """(2B, K+1, h, w) probabilities."""
        return self.classifier(self.backbone(batch["image"])["high"]).float().softmax(dim=1)

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean over scales and mirrors."""
        return {"prob": super().merge(scores, batch)["cam"]}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's maps, background first."""
        return {"cam": self.score({"image": batch["image"][:1]})[0]}
