"""`eps`: a classifier whose maps, including the background, are trained to match saliency.

Source: EPS, Explicit Pseudo-pixel Supervision (S. Lee et al., CVPR 2021).
Differs from the release: background is channel 0; see `network.losses.saliency_match`.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

from network.heads import classifier
from network.losses import classification, saliency_match
from network.maps import over_maximum
from network.methods import Batch, Method
from network.options import option
from tool.progress import Progress
from tool.ranges import UNIT


class Eps(Method):
    """A classifier with score maps of the background and K classes.

    `cls` is computed on their averages, `sal` on their softmax.
    """

    inputs = ("image", "label", "saliency")

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of EPS; the defaults are those for VOC.

        Attributes:
            tau: A class counts as foreground if more than this share of its area is salient.
            lam: Weight of the foreground map against the inverted background map; 0.9 for COCO.
            weight_sal: Weight of the saliency loss.
        """

        tau: float = option(0.4, within=UNIT)
        lam: float = option(0.5, within=UNIT)
        weight_sal: float = 1.0

    def build(self) -> None:
        """Build the classifier of K + 1 maps, background first."""
        self.classifier = classifier(self.backbone.taps["high"].channels, self.num_classes + 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls` and `sal`."""
        del progress
        score = self.score_map(batch["image"])
        return {
            "cls": classification(score.mean(dim=(-2, -1))[:, 1:], batch["label"]),
            "sal": self.saliency_loss(score.softmax(dim=1), batch["label"], batch["saliency"]),
        }

    def weights(self) -> dict[str, float]:
        """Return the weights: 1 for `cls`, and that of the config for `sal`."""
        return {"cls": 1.0, "sal": self.config.weight_sal}

    def score(self, batch: Batch) -> Tensor:
        """Compute the foreground channels of the softmax, (2B, K, h, w) in [0, 1]."""
        return self.score_map(batch["image"]).softmax(dim=1)[:, 1:]

    def classify(self, batch: Batch) -> Tensor:
        """Compute the image-level probabilities (N, K) of `image` (N, 3, H, W) in the batch.

        They are the sigmoid of the averaged score maps of the classes.
        """
        return self.score_map(batch["image"]).mean(dim=(-2, -1))[:, 1:].sigmoid()

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"cam": (K, h, w) in [0, 1]} of the first image; 0 for absent classes."""
        cam = over_maximum(self.score({"image": batch["image"][:1]}))
        return {"cam": cam[0] * batch["label"][0, :, None, None]}

    def score_map(self, image: Tensor) -> Tensor:
        """Compute the raw scores (N, K+1, h, w) of images (N, 3, H, W), background first."""
        return self.classifier(self.backbone(image)["high"]).float()

    def saliency_loss(self, prob: Tensor, label: Tensor, saliency: Tensor) -> Tensor:
        """Compute the saliency loss with tau and lambda of the config.

        Args:
            prob: (N, K+1, h, w) in [0, 1], background first.
            label: (N, K), image-level {0, 1}.
            saliency: (N, 1, H, W) in [0, 1].

        Returns:
            Scalar, as for `saliency_match`.
        """
        return saliency_match(prob, label, saliency, tau=self.config.tau, lam=self.config.lam)
