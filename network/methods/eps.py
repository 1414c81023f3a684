"""`eps`: a classifier whose maps, background included, are drawn to a saliency map.

Source: EPS, Explicit Pseudo-pixel Supervision (S. Lee et al., CVPR 2021).
Differs from the release: background is channel 0; see `network.losses.saliency_match`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from network.backbones import Backbone
from network.heads import classifier
from network.losses import classification, over_maximum, saliency_match
from network.methods import Batch, Method, option
from tool.progress import Progress


class Eps(Method):
    """Score maps of background and K classes; `cls` on their averages, `sal` on their softmax."""

    inputs = ("image", "label", "saliency")

    @dataclasses.dataclass(frozen=True)
    class Config:
        """EPS's hyper-parameters; the defaults are those of VOC."""

        tau: float = option(
            0.4, "a class whose area is salient by more than this share counts as foreground"
        )
        lam: float = option(
            0.5, "weight of the foreground map against the inverted background map (COCO: 0.9)"
        )
        weight_sal: float = option(1.0, "weight of the saliency loss")

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        self.classifier = classifier(backbone.taps["high"].channels, num_classes + 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`cls` and `sal`."""
        del progress
        score = self.score_map(batch["image"])
        return {
            "cls": classification(score.mean(dim=(-2, -1))[:, 1:], batch["label"]),
            "sal": self.saliency_loss(score.softmax(dim=1), batch["label"], batch["saliency"]),
        }

    def weights(self) -> dict[str, float]:
        """`cls` has weight 1."""
        return {"cls": 1.0, "sal": self.config.weight_sal}

    def score(self, batch: Batch) -> Tensor:
        """(2, K, h, w): the foreground channels of the softmax."""
        return self.score_map(batch["image"]).softmax(dim=1)[:, 1:]

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's CAM."""
        cam = over_maximum(self.score({"image": batch["image"][:1]}))
        return {"cam": cam[0] * batch["label"][0, :, None, None]}

    def score_map(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K+1, h, w) raw scores, background first."""
        return self.classifier(self.backbone(image)["high"]).float()

    def saliency_loss(self, prob: Tensor, label: Tensor, saliency: Tensor) -> Tensor:
        """EPS's loss on (N, K+1, h, w) probabilities with this config's tau and lambda."""
        return saliency_match(prob, label, saliency, tau=self.config.tau, lam=self.config.lam)
