"""`irn`: class boundaries from confident seeds, and the random walk of earlier CAMs within them.

Source: IRN (J. Ahn, S. Cho, S. Kwak, CVPR 2019), for semantic segmentation.
Differs from the release: the displacement branch is an auxiliary loss alone (no mean shift, no
instances); images of any size are walked whole; the walk is sparse; pairs near the border count.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from network.backbones import TAP_NAMES, Backbone
from network.dropout import KeyedDropout
from network.heads import BoundaryHead, DisplacementHead
from network.losses import full_precision, resize
from network.methods import Batch, Method, Recipe, option
from network.walk.affinity import affinity_losses, displacement_losses, pair_labels
from network.walk.random_walk import pairs_within, path_affinity, random_walk
from tool.formats.cam import strided_size
from tool.progress import Progress

STRIDE = 4


class Irn(Method):
    """A boundary and a displacement branch on five frozen taps, at a stride of 4."""

    inputs = ("image", "label", "seed")
    infer_inputs = ("image", "label", "cam")
    recipe = Recipe(
        epochs=3,
        batch_size=32,
        backbone="resnet50",
        crop=512,
        long_side=(320, 640),
        scale=(0.5, 1.5),
        jitter=False,
        lr=0.1,
        weight_decay=1e-4,
        scales=(1.0,),
    )

    @dataclasses.dataclass(frozen=True)
    class Config:
        """IRN's hyper-parameters; those of the walk are used in inference alone."""

        radius: int = option(10, "pairs closer than this, in cells, are compared in training")
        walk_radius: int = option(
            5, "a step of the random walk reaches cells closer than this", inference=True
        )
        beta: float = option(10.0, "exponent of the affinity in the walk", inference=True)
        exponent: int = option(8, "the walk has 2 to this power steps", inference=True)
        power: float = option(1.0, "of the earlier CAM before the walk (AMN: 1.3)", inference=True)

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        for name in ("radius", "walk_radius"):
            if not 2 <= getattr(config, name) <= 50:
                raise ValueError(f"{name} {getattr(config, name)} is not in 2..50")
        if config.beta <= 0 or config.power <= 0:
            raise ValueError(f"beta {config.beta} and power {config.power} must be above 0")
        if config.exponent > 20:
            raise ValueError(f"exponent {config.exponent}: a walk of more than 2^20 steps")
        if list(backbone.taps) != list(TAP_NAMES):
            raise ValueError(
                f"method 'irn' needs a backbone of five taps: {backbone.name!r} has "
                f"{', '.join(backbone.taps)}"
            )
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        if not pretrained:
            backbone.freeze_norms()
        backbone.requires_grad_(False)
        for module in backbone.modules():
            if isinstance(module, KeyedDropout):
                module.probability = 0.0
        taps = tuple(backbone.taps.values())
        self.boundary = BoundaryHead(taps)
        self.displacement = DisplacementHead(taps)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`aff_background`, `aff_foreground`, `aff_different`, `dp_foreground`, `dp_background`."""
        del progress
        seed = batch["seed"][:, ::STRIDE, ::STRIDE]
        taps = self.taps(batch["image"])
        edge = self.boundary(taps, seed.shape[-2:]).float().sigmoid()[:, 0]
        displacement = self.displacement(taps, seed.shape[-2:]).float()
        pairs = pairs_within(self.config.radius)
        labels = pair_labels(seed, pairs)
        with full_precision(edge):
            terms = affinity_losses(path_affinity(edge, pairs), labels)
            return terms | displacement_losses(displacement, labels, pairs)

    def weights(self) -> dict[str, float]:
        """Half for pairs of one label, half for others; the two displacement terms half each."""
        return {
            "aff_background": 0.25,
            "aff_foreground": 0.25,
            "aff_different": 0.5,
            "dp_foreground": 0.5,
            "dp_background": 0.5,
        }

    def taps(self, image: Tensor) -> list[Tensor]:
        """The five taps of (N, 3, H, W), constants."""
        with torch.no_grad():
            taps = self.backbone(image, TAP_NAMES)
        return [taps[name] for name in TAP_NAMES]

    def score(self, batch: Batch) -> Tensor:
        """(2B, 1, ceil(H / 4), ceil(W / 4)) logits of the boundary."""
        size = strided_size(batch["image"].shape[-2:], STRIDE)
        return self.boundary(self.taps(batch["image"]), size).float()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The earlier CAMs, walked within the boundaries, in the cells of the largest scale.

        Args:
            scores: one (2, 1, h, w) a scale.
            batch: `size` (H, W), `label` (1, K), `cam` (1, K, h, w).

        Returns:
            {"cam": (K, *size)} in [0, 1]: enlarged, over its maximum over classes and cells.
        """
        label, earlier = batch["label"][0], batch["cam"][0].float()
        present = label.nonzero()[:, 0]
        grid = max((both.shape[-2:] for both in scores), key=math.prod)
        total = sum(resize(both, grid) for both in scores)
        edge = ((total[0, 0] + total[1, 0].flip(-1)) / (2 * len(scores))).sigmoid()
        cam = earlier.new_zeros((len(label), *batch["size"]))
        if len(present):
            walked = random_walk(
                resize(earlier[None, present], grid)[0].clamp(min=0) ** self.config.power,
                edge,
                radius=self.config.walk_radius,
                beta=self.config.beta,
                steps=2**self.config.exponent,
            )
            walked = resize(walked[None], batch["size"])[0]
            cam[present] = walked / walked.max().clamp(min=1e-12)
        return {"cam": cam}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's boundaries."""
        return {"edge": self.score({"image": batch["image"][:1]}).sigmoid()[0]}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """The boundary branch at `lr`, the displacement branch at ten times that."""
        return [
            {"params": list(head.parameters()), "lr": lr * factor, "weight_decay": weight_decay}
            for head, factor in ((self.boundary, 1), (self.displacement, 10))
        ]
