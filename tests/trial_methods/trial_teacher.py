"""A trial of the contract, of BAO's shape: an EMA network, a background row, AdamW, squares."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import AFFINITY, Backbone
from network.heads import classifier
from network.losses import classification
from network.methods import Batch, Method, Recipe, option
from tool.crf.post import Post
from tool.progress import Progress


class Teacher(nn.Module):
    """The moving average of a layer; no gradient reaches it."""

    is_state = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)

    @torch.no_grad()
    def follow(self, layer: nn.Module, momentum: float) -> None:
        """Move by 1 - `momentum` towards `layer`."""
        for own, other in zip(self.layer.parameters(), layer.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)


class TrialTeacher(Method):
    """K + 1 maps refined by the affinity; `cls`, and `agree` with the EMA of the classifier."""

    infer_inputs = ("image", "label")
    has_background = True
    conditioned = True
    recipe = Recipe(
        optimizer="adamw",
        lr=1e-4,
        rates=(1, 1, 1, 1),
        sides=(48, 64),
        warmup=2,
        post=Post(seeds=(1.0, 0.5), iterations=3),
    )

    @dataclasses.dataclass(frozen=True)
    class Config:
        """BAO's kind."""

        ema: float = option(0.9, "of the moving average")
        refine: bool = option(False, "spread the maps along the affinity", inference=True)

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        self.classifier = classifier(backbone.taps["high"].channels, num_classes + 1)
        self.teacher = Teacher(self.classifier)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`cls` and `agree`."""
        del progress
        high = self.backbone(batch["image"])["high"]
        score = self.classifier(high).float()
        with torch.no_grad():
            target = self.teacher.layer(high).float().softmax(dim=1)
        label = F.pad(batch["label"], (1, 0), value=1.0)
        return {
            "cls": classification(score.mean(dim=(-2, -1)), label),
            "agree": -(target * score.log_softmax(dim=1)).sum(dim=1).mean(),
        }

    def weights(self) -> dict[str, float]:
        """`agree` counts little."""
        return {"cls": 1.0, "agree": 0.1}

    def after_step(self, progress: Progress) -> None:
        """Move the teacher."""
        del progress
        self.teacher.follow(self.classifier, self.config.ema)

    def score(self, batch: Batch) -> Tensor:
        """(2B, K+1, h, w) probabilities among the background and the image's classes."""
        taps = self.backbone(batch["image"], ("high", "mid", AFFINITY))
        score = self.classifier(taps["high"]).float()
        if self.config.refine:
            flat = score.flatten(2) @ taps[AFFINITY].transpose(1, 2)
            score = (flat / taps[AFFINITY].sum(dim=2)[:, None]).view_as(score)
        copies = len(score) // len(batch["label"])
        label = F.pad(batch["label"], (1, 0), value=1.0).repeat_interleave(copies, dim=0)
        return score.masked_fill(label[:, :, None, None] == 0, -1e4).softmax(dim=1)

    def embed(self, batch: Batch) -> Tensor:
        """Return a shallower tap."""
        return self.backbone(batch["image"], ("high", "mid"))["mid"]

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Decay everything, at one rate."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": trained, "lr": lr, "weight_decay": weight_decay}]

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's maps, background first."""
        return {"cam": self.score({"image": batch["image"][:1], "label": batch["label"][:1]})[0]}
