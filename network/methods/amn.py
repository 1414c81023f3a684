"""`amn`: per-pixel classification of label-conditioned features against confident seeds.

Source: AMN, Activation Manipulation Network (M. Lee et al., CVPR 2022).
Differs from the release: background is channel 0; the loss is exact under several ranks; a crop
without foreground or without background is no division by zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from network.backbones import Backbone
from network.dropout import KeyedDropout
from network.heads import Aspp, LabelConditioning
from network.losses import balanced_cross_entropy, enlarge, min_max, over_maximum, resize
from network.methods import Batch, Method, Recipe, option
from tool.progress import Progress

SEED_STRIDE = 4  # IRN's; logits at every pixel would take 16 times the memory


class Amn(Method):
    """Features times an embedding of the label, ASPP to K+1 maps, one term."""

    inputs = ("image", "label", "seed")
    infer_inputs = ("image", "label", "seed")
    recipe = Recipe(
        epochs=5,
        batch_size=16,
        backbone="resnet50",
        crop=512,
        long_side=(320, 640),
        scale=(0.5, 1.5),
        jitter=False,
        optimizer="adam",
        lr=5e-6,
        rates=(1, 1, 20, 20),
        weight_decay=1e-4,
        power=0.0,
        scales=(1.0, 0.5, 1.5, 2.0),
    )

    @dataclasses.dataclass(frozen=True)
    class Config:
        """AMN's hyper-parameters."""

        smoothing: float = option(0.4, "label smoothing: share of the target of the other classes")
        dropout: float = option(0.1, "of the label-conditioned features, while training")

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        for name in ("smoothing", "dropout"):
            if not 0 <= getattr(config, name) < 1:
                raise ValueError(f"{name} {getattr(config, name)} is not in [0, 1)")
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        channels = backbone.taps["high"].channels
        self.condition = LabelConditioning(num_classes, channels)
        self.dropout = KeyedDropout(config.dropout, channels=False)
        self.classifier = Aspp(channels, num_classes + 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`pixel`."""
        del progress
        feature = self.conditioned(batch["image"], batch["label"])
        return {"pixel": self.pixel_loss(self.classifier(feature).float(), batch["seed"])}

    def weights(self) -> dict[str, float]:
        """One term, weight 1."""
        return {"pixel": 1.0}

    def conditioned(self, image: Tensor, label: Tensor) -> Tensor:
        """(N, 3, H, W), (N, K) -> (N, D, h, w): the features that the label has weighed."""
        return self.dropout(self.condition(self.backbone(image)["high"], label))

    def pixel_loss(self, logit: Tensor, seed: Tensor) -> Tensor:
        """The balanced loss of (N, K+1, h, w) logits, enlarged to every 4th pixel of the seed."""
        seed = seed[:, ::SEED_STRIDE, ::SEED_STRIDE]
        logit = resize(logit, seed.shape[-2:])
        return balanced_cross_entropy(logit, seed, smoothing=self.config.smoothing)

    def score(self, batch: Batch) -> Tensor:
        """(2B, K+1, h, w) logits, background first."""
        label = batch["label"].repeat_interleave(2, dim=0)
        return self.classifier(self.conditioned(batch["image"], label)).float()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Mean logits, softmax, and each present class stretched to [0, 1].

        Args:
            scores: one (2, K+1, h, w) a scale.
            batch: `size` (H, W), `label` (1, K), `seed` (1, H, W): where it is 0, confident
                background, a class keeps its probability as it is.

        Returns:
            {"cam": (K, *size)} in [0, 1], 0 for absent classes.
        """
        label, size = batch["label"][0], batch["size"]
        stride = self.backbone.taps["high"].stride
        cells = tuple(-(-side // stride) for side in size)
        total = sum(enlarge(resize(both, cells), stride, size) for both in scores)
        logit = (total[0] + total[1].flip(-1)) / (2 * len(scores))
        present = label.nonzero()[:, 0]
        prob = logit.softmax(dim=0)[1:][present]
        seed = batch["seed"][:, None].float()
        background = F.interpolate(seed, size=size, mode="nearest")[0] == 0
        cam = prob.new_zeros((len(label), *size))
        cam[present] = torch.where(background, prob, min_max(prob[None])[0])
        return {"cam": cam}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's CAM."""
        label = batch["label"][:1]
        logit = self.classifier(self.conditioned(batch["image"][:1], label)).float()
        return {"cam": over_maximum(logit.softmax(dim=1)[:, 1:])[0] * label[0, :, None, None]}
