"""`cam`: a plain multi-label classifier and its class activation maps.

Source: B. Zhou et al., CVPR 2016, in the fully convolutional form of PSA (CVPR 2018).
"""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from network.heads import classifier
from network.losses import classification, over_maximum
from network.methods import Batch, Method
from tool.progress import Progress


class Cam(Method):
    """A classifier: features, a 1x1 convolution to K score maps, their average as logits."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        """No hyper-parameters: a plain classifier has none."""

    def build(self) -> None:
        """Make the classifier, and freeze what a plain classifier leaves as it is."""
        if self.pretrained:
            for name, parameter in self.backbone.named_parameters():
                if name.startswith(self.backbone.shallow):
                    parameter.requires_grad_(False)
        self.classifier = classifier(self.backbone.taps["high"].channels, self.num_classes)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls`, the only term."""
        del progress
        score = self._score_map(batch["image"])
        return {"cls": classification(score.float().mean(dim=(-2, -1)), batch["label"])}

    def weights(self) -> dict[str, float]:
        """Return the weight of the only term, 1."""
        return {"cls": 1.0}

    def score(self, batch: Batch) -> Tensor:
        """Return the positive part of the score maps, (2B, K, h, w)."""
        return F.relu(self._score_map(batch["image"]).float())

    def classify(self, batch: Batch) -> Tensor:
        """Return the sigmoid of the averaged score maps, (N, K)."""
        return self._score_map(batch["image"]).float().mean(dim=(-2, -1)).sigmoid()

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the CAM of the first image."""
        cam = over_maximum(self._score_map(batch["image"][:1]).float())
        return {"cam": cam[0] * batch["label"][0, :, None, None]}

    def _score_map(self, image: Tensor) -> Tensor:
        """Return the score maps (N, K, h, w) of images (N, 3, H, W)."""
        return self.classifier(self.backbone(image)["high"])
