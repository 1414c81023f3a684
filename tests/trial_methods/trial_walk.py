"""A trial of the contract, of SBE's shape: boundary labels and CAMs, a walk, no mirror."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from network.heads import classifier
from network.maps import over_maximum
from network.methods import Batch, Method, Recipe, option
from network.walk.random_walk import random_walk
from tool.crf.post import Post
from tool.parallel.dist import global_mean
from tool.progress import Progress


class TrialWalk(Method):
    """Two maps from the high tap: `edge` follows the boundary label, `object` the CAMs."""

    inputs = ("image", "label", "boundary", "cam")
    infer_inputs = ("image", "label", "cam")
    recipe = Recipe(
        mirror=False, scales=(1.0,), output_stride=8, post=Post(alpha=4.0, seeds=(0.5, 0.2))
    )

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Of the walk."""

        walk_steps: int = option(4, "steps of the walk", inference=True)

    def build(self) -> None:
        """Make the head."""
        self.edge = classifier(self.backbone.taps["high"].channels, 2)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`edge` where the label is not 255; `object` everywhere."""
        del progress
        edge, body = self.edge(self.backbone(batch["image"])["high"]).float().unbind(dim=1)
        size = edge.shape[-2:]
        label = F.interpolate(batch["boundary"][:, None].float(), size=size, mode="nearest-exact")[
            :, 0
        ]
        known = label != 255
        each = F.binary_cross_entropy_with_logits(edge, (label == 1).float(), reduction="none")
        target = F.interpolate(batch["cam"], size=size, mode="area").amax(dim=1)
        return {
            "edge": global_mean((each * known).sum(), known.sum()),
            "object": F.binary_cross_entropy_with_logits(body, target),
        }

    def weights(self) -> dict[str, float]:
        """Equal weights."""
        return {"edge": 1.0, "object": 1.0}

    def score(self, batch: Batch) -> Tensor:
        """(B, 1, h, w): the edge in [0, 1]."""
        return self.edge(self.backbone(batch["image"])["high"])[:, :1].float().sigmoid()

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the earlier CAMs, walked within the edges of the first scale."""
        assert len(batch["sizes"]) == len(scores)
        present = batch["label"][0].nonzero()[:, 0]
        cam = batch["cam"].new_zeros((batch["cam"].shape[1], *batch["size"]))
        if len(present):
            edge = scores[0].mean(dim=0, keepdim=True)
            size = batch["cam"].shape[-2:]
            edge = F.interpolate(edge, size=size, mode="bilinear")[0, 0]
            walked = random_walk(batch["cam"][0, present], edge, steps=self.config.walk_steps)
            sized = F.interpolate(walked[None], size=batch["size"], mode="bilinear")
            cam[present] = over_maximum(sized[0])
        return {"cam": cam}

    def classify(self, batch: Batch) -> Tensor:
        """Return the same for every class: how much of the image is object."""
        body = self.edge(self.backbone(batch["image"])["high"])[:, 1].float().sigmoid()
        return body.mean(dim=(1, 2))[:, None].expand(-1, self.num_classes)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The edge, and the CAMs that were read."""
        edge = torch.sigmoid(self.edge(self.backbone(batch["image"][:1])["high"])[0, :1].float())
        return {"edge": edge, "cam": batch["cam"][0] * batch["label"][0, :, None, None]}
