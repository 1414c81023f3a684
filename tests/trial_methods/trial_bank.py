"""A trial of the contract, of SFC's shape: two maps, an image bank, class counts, clipping."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import Backbone
from network.heads import classifier
from network.losses import classification
from network.maps import over_maximum
from network.methods import Batch, Method, Recipe, option
from tool.parallel.dist import gather
from tool.progress import Progress


class ImageBank(nn.Module):
    """One slot per class: the last image that has the class, small and 8 bits."""

    is_state = True

    def __init__(self, num_classes: int, side: int) -> None:
        super().__init__()
        self.register_buffer("image", torch.zeros(num_classes, 3, side, side, dtype=torch.uint8))
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.bool))


class TrialBank(Method):
    """`cls` weighted by class counts, and `replay` on images of the bank."""

    maps = ("cam", "squared")
    recipe = Recipe(clip=1.0)

    @dataclasses.dataclass(frozen=True)
    class Config:
        """A plain field, a bool, and one with choices."""

        side: int = 32
        balanced: bool = option(True, "weigh the classes by their counts")
        pool: str = option("mean", "pooling of the score maps", choices=("mean", "max"))

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__(backbone, num_classes, config, pretrained=pretrained)
        self.classifier = classifier(backbone.taps["high"].channels, num_classes)
        self.images = ImageBank(num_classes, config.side)
        self.register_buffer("class_weight", torch.ones(num_classes), persistent=False)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def study(self, labels: Tensor) -> None:
        """Weigh a class by the inverse of how often it is there; the mean weight is 1."""
        weight = 1 / labels.sum(dim=0).clamp(min=1)
        if self.config.balanced:
            self.class_weight.copy_(weight / weight.mean())

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Add one image of the bank per image of the batch; nothing of empty slots."""
        images, device = len(batch["image"]), batch["image"].device
        draw = progress.uniform_per_image("slot", images, (), device)
        slot = (draw * self.num_classes).long()
        label = F.one_hot(slot, self.num_classes) * self.images.filled[slot, None]
        replay = self.images.image[slot].float() / 127.5 - 1
        return batch | {"replay": replay, "replay_label": label.float()}

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`cls` and `replay`; leaves the images for the bank pending."""
        if progress.micro == 0:
            self._pending = []
        small = F.interpolate(batch["image"], size=(self.config.side,) * 2, mode="area")
        eight_bit = (small.detach().clamp(-1, 1) * 127.5 + 127.5).to(torch.uint8)
        self._pending.append((gather(eight_bit), gather(batch["label"])))
        logit = self.pooled(batch["image"]) * self.class_weight
        return {
            "cls": classification(logit, batch["label"]),
            "replay": classification(self.pooled(batch["replay"]), batch["replay_label"]),
        }

    def pooled(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K) logits."""
        score = self.classifier(self.backbone(image)["high"]).float()
        return score.mean(dim=(-2, -1)) if self.config.pool == "mean" else score.amax(dim=(-2, -1))

    def weights(self) -> dict[str, float]:
        """Both terms have a weight of their own."""
        return {"cls": 1.0, "replay": 0.5}

    def metrics(self) -> dict[str, Tensor]:
        """Return the share of the slots that are filled."""
        return {"filled": self.images.filled.float().mean()}

    def after_step(self, progress: Progress) -> None:
        """Fill the slot of each class with the last image that has it."""
        del progress
        image, label = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        order = torch.arange(1, len(image) + 1, device=image.device)[:, None] * (label > 0)
        last, index = order.max(dim=0)
        present = last > 0
        kept = torch.where(present[:, None, None, None], image[index], self.images.image)
        self.images.image.copy_(kept)
        self.images.filled.logical_or_(present)

    def score(self, batch: Batch) -> Tensor:
        """(2B, K, h, w): the positive part of the score maps."""
        return F.relu(self.classifier(self.backbone(batch["image"])["high"]).float())

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the usual CAM, and its square."""
        cam = super().merge(scores, batch)["cam"]
        return {"cam": cam, "squared": cam.square()}

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first image's CAM."""
        cam = over_maximum(self.score({"image": batch["image"][:1]}))
        return {"cam": cam[0] * batch["label"][0, :, None, None]}
