"""`amn`: per-pixel classification of label-conditioned features, trained on confident seeds.

Source: AMN, Activation Manipulation Network (M. Lee et al., CVPR 2022).
Differs from the release: background is channel 0; the loss is exact under several ranks; a crop
without foreground or without background does not cause a division by zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from network.dropout import SeededDropout
from network.heads import Aspp, LabelConditioning
from network.losses import add_up, balanced_cross_entropy
from network.maps import at_cells, min_max, over_maximum, resize, resize_cells, sum_of_mirrors
from network.methods import Batch, Method, Recipe
from tool.crf.post import Post
from tool.progress import Progress

SEED_STRIDE = 4  # pixels per cell of the loss, as in IRN; 1 would take 16 times the memory


class Amn(Method):
    """A per-pixel classifier: features weighted by the label, then an ASPP to K+1 maps."""

    inputs = ("image", "label", "seed")
    infer_inputs = ("image", "label", "seed")
    conditioned = True
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
        short={
            "steps": 200,
            "batch_size": 8,
            "crop": 224,
            "long_side": (224, 384),
            "scale": None,
            "lr": 5e-5,
        },
        post=Post(seeds=(0.45, 0.15)),
    )
    released: Mapping[str, str] = {}  # its files are other networks

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of AMN.

        Attributes:
            smoothing: Label smoothing, which is the share of the target that goes to the classes
                other than the seed's, in equal parts.
            dropout: Probability of zeroing an element of the label-conditioned features.
        """

        smoothing: float = 0.4
        dropout: float = 0.1

    def build(self) -> None:
        """Build the conditioning on the label, and the classifier."""
        config, channels = self.config, self.backbone.taps["high"].channels
        for name in ("smoothing", "dropout"):
            if not 0 <= getattr(config, name) < 1:
                raise ValueError(f"{name} {getattr(config, name)} is not in [0, 1)")
        self.condition = LabelConditioning(self.num_classes, channels)
        self.dropout = SeededDropout(config.dropout, channels=False)
        self.classifier = Aspp(channels, self.num_classes + 1)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `pixel`, the only term."""
        del progress
        feature = self.dropout(self.conditioned_features(batch["image"], batch["label"]))
        return {"pixel": self.pixel_loss(self.classifier(feature).float(), batch["seed"])}

    def weights(self) -> dict[str, float]:
        """Return {"pixel": 1}: there is one term."""
        return {"pixel": 1.0}

    def conditioned_features(self, image: Tensor, label: Tensor) -> Tensor:
        """Compute features whose channels are weighted by the label.

        Args:
            image: (N, 3, H, W), normalised.
            label: (N, K), image-level {0, 1}.

        Returns:
            (N, D, h, w).
        """
        return self.condition(self.backbone(image)["high"], label)

    def pixel_loss(self, logit: Tensor, seed: Tensor) -> Tensor:
        """Compute the balanced cross entropy on cells of 4 pixels.

        Args:
            logit: (N, K+1, h, w), background first.
            seed: (N, H, W) int64 in 0..K, 255 for unknown.

        Returns:
            Scalar: this rank's share, as for `balanced_cross_entropy`.

        Source: AMN (CVPR 2022), balanced cross entropy with label smoothing.
        """
        # The seed has the value at the centre of each cell; the logits are resized to the cells.
        seed = at_cells(seed, SEED_STRIDE)  # (N, ceil(H / 4), ceil(W / 4))
        logit = resize(logit, seed.shape[-2:])
        return balanced_cross_entropy(logit, seed, smoothing=self.config.smoothing)

    def score(self, batch: Batch) -> Tensor:
        """Compute the logits (2B, K+1, h, w), background first, of images given their labels."""
        copies = len(batch["image"]) // len(batch["label"])  # 2 with mirrors
        label = batch["label"].repeat_interleave(copies, dim=0)
        return self.classifier(self.conditioned_features(batch["image"], label)).float()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Average the logits, apply the softmax, and stretch each present class to [0, 1].

        On confident background, where the seed is 0, the probabilities are not stretched.

        Args:
            scores: One (2, K+1, h, w) per scale, or (1, K+1, h, w) without mirrors.
            batch: `size` (H, W), `sizes` (h, w) of the scaled images, `label` (1, K) and `seed`
                (1, H, W).

        Returns:
            {"cam": (K, *size)} in [0, 1], 0 for absent classes.
        """
        # Average the logits over all scales and mirrors, on the pixels of the image.
        label, size = batch["label"][0], batch["size"]
        stride = self.backbone.taps["high"].stride
        copies = zip(scores, batch["sizes"], strict=True)
        total = add_up(resize_cells(both, stride, copy, size) for both, copy in copies)
        logit = sum_of_mirrors(total) / sum(map(len, scores))  # (K+1, H, W)
        # Stretch the probabilities of the P present classes, except on confident background.
        present = label.nonzero()[:, 0]
        prob = logit.softmax(dim=0)[1:][present]  # (P, H, W)
        seed = batch["seed"][:, None].float()
        background = F.interpolate(seed, size=size, mode="nearest-exact")[0] == 0
        cam = prob.new_zeros((len(label), *size))
        cam[present] = torch.where(background, prob, min_max(prob[None])[0])
        return {"cam": cam}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"cam": (K, h, w) in [0, 1]} of the first image; 0 for absent classes."""
        label = batch["label"][:1]
        logit = self.classifier(self.conditioned_features(batch["image"][:1], label)).float()
        return {"cam": over_maximum(logit.softmax(dim=1)[:, 1:])[0] * label[0, :, None, None]}
