"""`deeplab1`: DeepLab-v1 with a large field of view, trained on pseudo masks at full size.

Source: L.-C. Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully
Connected CRFs", ICLR 2015, in the recipe of seamv1, which SEAM, TransCAM and PPC train.
Differs from the release: pretrained norms keep their statistics, where the release uses those of
the batch by mistake; new norms are GroupNorms; the colours of a crop are not changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from network.backbones import FROZEN
from network.losses import add_up
from network.maps import sum_of_mirrors
from network.methods import Batch, Method, Recipe, option
from network.segmentation.heads import LargeFov, TwoDilated, dilation_of
from network.segmentation.losses import LOSSES, foreground_share, mask_loss
from tool.crf.post import Post
from tool.progress import Progress


class Deeplab1(Method):
    """A dilated convolution on the deepest tap, whose logits are enlarged to the crop."""

    inputs = ("image", "mask")
    infer_inputs = ("image",)
    has_background = True
    recipe = Recipe(
        steps=20_000,
        batch_size=10,
        crop=448,
        scale=(0.5, 1.5),
        jitter=False,
        backbone="resnet38d",
        output_stride=8,
        lr=1e-3,
        momentum=0.9,
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        short={
            "steps": 600,
            "batch_size": 8,
            "crop": 224,
            "scale": (0.7, 1.4),
            "output_stride": 16,
            "lr": 0.02,
            "warmup": 50,
            "clip": 1.0,
        },
        short_options={"frozen": "shallow"},
        post=Post(preset="seam32", seeds=(1.0, 0.5)),
    )
    released: Mapping[str, str] = {}  # its files are other networks

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of DeepLab-v1.

        Attributes:
            head: Head of the network: largefov is the published one, mct is MCTformer's, with two
                dilated convolutions.
            rate: Dilation of the head in pixels.
            loss: Loss over the pixels of a mask: plain is the mean over all of them. With balanced,
                background and foreground of an image have the same weight.
            frozen: Pretrained weights that do not train: the norms, or also the stem, or also the
                first two stages. Use shallow for a few hundred images.
        """

        head: str = option("largefov", choices=("largefov", "mct"))
        rate: int = 96
        loss: str = option("plain", choices=LOSSES)
        frozen: str = option("norms", choices=FROZEN)

    def build(self) -> None:
        """Build the head, and choose which pretrained weights train."""
        config, tap = self.config, self.backbone.taps["high"]
        if not 1 <= config.rate <= 1000:
            raise ValueError(f"rate {config.rate} is not in 1..1000 pixels")
        if self.pretrained:
            self.backbone.train_beyond(config.frozen)
        head = TwoDilated if config.head == "mct" else LargeFov
        dilation = dilation_of(config.rate, tap.stride)
        self.classifier = head(tap.channels, self.num_classes + 1, dilation=dilation)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `seg`, the only term, at every pixel of the crop."""
        del progress
        logit = self.score(batch)
        with torch.no_grad():
            self._metrics = foreground_share(logit, batch["valid"])
        enlarged = at_corners(logit, batch["mask"].shape[-2:])
        return {"seg": mask_loss(enlarged, batch["mask"], kind=self.config.loss)}

    def weights(self) -> dict[str, float]:
        """Return {"seg": 1}: there is one term."""
        return {"seg": 1.0}

    def score(self, batch: Batch) -> Tensor:
        """Compute the logits (2B, K+1, h, w), background first."""
        return self.classifier(self.backbone(batch["image"])["high"]).float()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Merge logits to probabilities.

        They are the softmax of the mean logits over scales and mirrors. With MCTformer's head they
        are the maximum over scales of the softmax.

        Args:
            scores: One (2, K+1, h, w) per scale, or (1, K+1, h, w) without mirrors.
            batch: `size` (H, W).

        Returns:
            {"cam": (K+1, H, W) in [0, 1]}. With MCTformer's head they do not sum to 1.
        """
        logits = [sum_of_mirrors(at_corners(score, batch["size"])) / len(score) for score in scores]
        if self.config.head == "mct":
            return {"cam": torch.stack([logit.softmax(dim=0) for logit in logits]).amax(dim=0)}
        return {"cam": (add_up(logits) / len(logits)).softmax(dim=0)}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"prob": (K+1, h, w)}, the probabilities of the first image."""
        return {"prob": self.score({"image": batch["image"][:1]})[0].softmax(dim=0)}


def at_corners(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize maps (N, C, h, w) to (N, C, *size), bilinearly, with `align_corners` True.

    The centres of the outermost cells lie at the outermost pixels.
    """
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)
