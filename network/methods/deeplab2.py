"""`deeplab2`: DeepLab-v2, a segmentation network, trained on pseudo masks at several scales.

Source: L.-C. Chen et al., "DeepLab", TPAMI 2018, in the recipe of deeplab-pytorch, with which the
field reports val and test.
Differs from the release: the learning rate falls at every step, not at every tenth; in inference
the photograph itself is resized to the inner scales, bicubically.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from network.backbones import FROZEN
from network.heads import Aspp
from network.maps import resize, sum_of_mirrors
from network.methods import Batch, Method, Recipe, option
from network.segmentation.heads import ConcatAspp, dilation_of
from network.segmentation.losses import (
    LOSSES,
    at_inner_scales,
    foreground_share,
    inner_scales,
    mask_at,
    mask_loss,
    maximum_of,
)
from tool.crf.post import Post
from tool.progress import Progress


class Deeplab2(Method):
    """A pyramid of dilated convolutions on the deepest tap, and its logits at inner scales."""

    inputs = ("image", "mask")
    infer_inputs = ("image",)
    has_background = True
    recipe = Recipe(
        steps=20_000,
        batch_size=10,
        accumulate=2,
        crop=321,
        long_side=(321, 550),
        scale=(0.5, 0.75, 1.0, 1.25, 1.5),
        jitter=False,
        backbone="resnet101",
        output_stride=8,
        lr=2.5e-4,
        rates=(1, 1, 10, 20),
        momentum=0.9,
        scales=(1.0, 0.75, 0.5),
        mirror=False,
        short={
            "steps": 600,
            "batch_size": 8,
            "accumulate": 1,
            "crop": 224,
            "scale": (0.7, 1.4),
            "output_stride": 16,
            "lr": 0.005,
            "warmup": 50,
            "clip": 1.0,
        },
        short_options={"inner_scale": 0.75, "frozen": "shallow"},
        post=Post(preset="dlv2", seeds=(1.0, 0.5)),
    )
    released: Mapping[str, str] = {
        f"aspp.c{branch}.{part}": f"classifier.branches.{branch}.{part}"
        for branch in range(4)
        for part in ("weight", "bias")
    }

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of DeepLab-v2.

        Attributes:
            head: Head of the network: sum adds the branches of the pyramid, concat is PPC's head.
            rate: Dilation of the first branch in pixels. The others have 2, 3 and 4 times as much.
            loss: Loss over the pixels of a mask: plain is the mean over all of them. With balanced,
                background and foreground of an image have the same weight.
            inner_scale: Smallest inner scale in training. The inner scales go down from 1 in steps
                of 0.25; with 1 there is no other. Inference uses `--scales` instead.
            frozen: Pretrained weights that do not train: the norms, or also the stem, or also the
                first two stages. Use shallow for a few hundred images.
        """

        head: str = option("sum", choices=("sum", "concat"))
        rate: int = 48
        loss: str = option("plain", choices=LOSSES)
        inner_scale: float = 0.5
        frozen: str = option("norms", choices=FROZEN)

    def build(self) -> None:
        """Build the head, and choose which pretrained weights train."""
        config, tap = self.config, self.backbone.taps["high"]
        self.scales = inner_scales(config.inner_scale)
        if not 1 <= config.rate <= 1000:
            raise ValueError(f"rate {config.rate} is not in 1..1000 pixels")
        if self.pretrained:
            self.backbone.train_beyond(config.frozen)
        dilations = [dilation_of(number * config.rate, tap.stride) for number in (1, 2, 3, 4)]
        head = ConcatAspp if config.head == "concat" else Aspp
        self.classifier = head(tap.channels, self.num_classes + 1, dilations=dilations)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute the loss of the logits at each inner scale, and of their maximum.

        The mask is reduced to the resolution of the logits.

        Returns:
            {name: scalar}: `seg_S` for each inner scale S, and `seg_max` if there are several.
        """
        del progress
        stride = self.backbone.taps["high"].stride
        logits = at_inner_scales(self.logit, batch["image"], self.scales, multiple=stride)
        best = maximum_of(logits)
        with torch.no_grad():
            self._metrics = foreground_share(best, batch["valid"])
        return {
            name: mask_loss(logit, mask_at(batch["mask"], logit.shape[-2:]), kind=self.config.loss)
            for name, logit in zip(self.weights(), (*logits, best), strict=False)
        }

    def weights(self) -> dict[str, float]:
        """Return the weights of the terms, all 1."""
        names = [f"seg_{scale:g}" for scale in self.scales]
        return dict.fromkeys(names + ["seg_max"] * (len(names) > 1), 1.0)

    def logit(self, image: Tensor) -> Tensor:
        """Compute the logits (N, K+1, h, w) of images (N, 3, H, W) at one scale."""
        return self.classifier(self.backbone(image)["high"])

    def score(self, batch: Batch) -> Tensor:
        """Compute the logits (2B, K+1, h, w), background first."""
        return self.logit(batch["image"]).float()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Merge logits to probabilities.

        They are the softmax of the maximum over scales of the mean of an image and its mirror.

        Args:
            scores: One (2, K+1, h, w) per scale, or (1, K+1, h, w) without mirrors.
            batch: `size` (H, W).

        Returns:
            {"cam": (K+1, H, W) in [0, 1]}, which sum to 1.
        """
        logits = (sum_of_mirrors(resize(score, batch["size"])) / len(score) for score in scores)
        return {"cam": functools.reduce(torch.maximum, logits).softmax(dim=0)}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return {"prob": (K+1, h, w)}, the probabilities of the first image."""
        return {"prob": self.score({"image": batch["image"][:1]})[0].softmax(dim=0)}
