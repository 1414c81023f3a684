"""`cam`: a plain multi-label classifier and its class activation maps.

Source: B. Zhou et al., CVPR 2016, in the fully convolutional form of PSA (CVPR 2018). Its attention
pooling is that of BES (L. Chen et al., ECCV 2020).
"""

from __future__ import annotations

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from network.heads import attention_pool, classifier
from network.losses import classification
from network.maps import over_maximum
from network.methods import Batch, Method, option
from tool.progress import Progress


class Cam(Method):
    """A classifier: features, a 1x1 convolution to K score maps, and their average as logits.

    The CAMs are the score maps, whichever way the logits are pooled.
    """

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of the pooling.

        Attributes:
            pooling: Pooling of the cells to logits. With average all cells count equally, with
                attention those with large features count more, as in BES and SBE.
            sharpness: How much more cells with large features count with attention; 0 for the
                average.
        """

        pooling: str = option("average", choices=("average", "attention"))
        sharpness: float = 1e-3

    def build(self) -> None:
        """Build the classifier, and freeze the shallow parts of a pretrained backbone."""
        if self.config.sharpness < 0:
            raise ValueError(f"sharpness {self.config.sharpness} is below 0")
        if self.pretrained:
            for name, parameter in self.backbone.named_parameters():
                if name.startswith(self.backbone.shallow):
                    parameter.requires_grad_(False)
        self.classifier = classifier(self.backbone.taps["high"].channels, self.num_classes)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls`, the only term."""
        del progress
        return {"cls": classification(self._logit(batch["image"]), batch["label"])}

    def weights(self) -> dict[str, float]:
        """Return {"cls": 1}: there is one term."""
        return {"cls": 1.0}

    def score(self, batch: Batch) -> Tensor:
        """Compute the positive part of the score maps, (2B, K, h, w)."""
        return F.relu(self._score_map(batch["image"]).float())

    def classify(self, batch: Batch) -> Tensor:
        """Compute the image-level probabilities (N, K) of `image` (N, 3, H, W) in the batch."""
        return self._logit(batch["image"]).sigmoid()

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"cam": (K, h, w) in [0, 1]} of the first image; 0 for absent classes."""
        cam = over_maximum(self._score_map(batch["image"][:1]).float())
        return {"cam": cam[0] * batch["label"][0, :, None, None]}

    def _logit(self, image: Tensor) -> Tensor:
        """Compute the logits (N, K) of images (N, 3, H, W), pooled as the config says."""
        if self.config.pooling == "average":
            return self._score_map(image).float().mean(dim=(-2, -1))
        feature = self.backbone(image)["high"]
        pooled = attention_pool(feature, sharpness=self.config.sharpness)  # (N, D, 1, 1)
        return self.classifier(pooled).float()[:, :, 0, 0]

    def _score_map(self, image: Tensor) -> Tensor:
        """Compute the raw score maps (N, K, h, w) of images (N, 3, H, W)."""
        return self.classifier(self.backbone(image)["high"])
