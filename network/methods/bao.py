"""`bao`: TransCAM with an explicit map of the background, in place of a threshold.

Source: BAO, Background-aware Activation map Optimization (JVCIR 2025). Its label conditioning and
its balanced, smoothed loss are AMN's (M. Lee et al., CVPR 2022).
Differs from the release: padded cells have no label; a batch without foreground, or without
background, is no division by zero; the number of classes, the batch size and the length of the
EMA's schedule are those of the run; and see `network.methods.transcam`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import AFFINITY
from network.heads import LabelConditioning
from network.losses import balanced_cross_entropy, classification
from network.maps import image_cells, min_max, with_background_label
from network.methods import Batch, option
from network.methods.transcam import TransCam
from network.options import weights_of
from network.shadow import Shadow
from network.spreading import label_cells, momentum_at, score_head, spread
from tool.crf.post import Post
from tool.progress import Progress
from tool.train.batch import part


class Bao(TransCam):
    """An online network, and a target network that labels its cells.

    The target's labels are fg where a class's M* is above half of its maximum. On them the online
    network learns AM, K + 1 activation maps of features that the label conditions. Its map is the
    background of AM with the classes of M*: the best of them wins, without a threshold.
    """

    has_background = True
    conditioned = True
    recipe = dataclasses.replace(
        TransCam.recipe,
        epochs=10,
        short_options={**TransCam.recipe.short_options, "target_momentum": 0.98},
        post=Post(preset="label50", seeds=(1.0, 0.5)),
    )
    released: Mapping[str, str] = dict(TransCam.released) | {
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in (("label_enc", "condition.embed"), ("classifier_x", "activation"))
        for part in ("weight", "bias")
    }

    @dataclasses.dataclass(frozen=True)
    class Config(TransCam.Config):
        """The hyper-parameters of BAO.

        Attributes:
            weight_pcl: Weight of the classification of cells.
            smoothing: Label smoothing: the share of the target that the other maps divide.
            target_momentum: Momentum of the target network at the start of an epoch, in which it
                rises to 1. In the first epoch the target equals the online network. Give a smaller
                one if an epoch has few steps: in VOC's 1,322 the target moves 28 % of the way.
            network: What infers: the online network, or the target.
        """

        weight_pcl: float = 1.0
        smoothing: float = 0.4
        target_momentum: float = 0.9995
        network: str = option("online", choices=("online", "target"), inference=True)

    def build(self) -> None:
        """Make what TransCAM has, the conditioned activation maps, and the target network."""
        super().build()
        smoothing, momentum = self.config.smoothing, self.config.target_momentum
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing {smoothing} is not in [0, 1)")
        if not 0 <= momentum <= 1:
            raise ValueError(f"target_momentum {momentum} is not in [0, 1]")
        channels = self.backbone.taps["high"].channels
        self.condition = LabelConditioning(self.num_classes, channels)
        nn.init.trunc_normal_(self.condition.embed.weight, std=0.02)
        nn.init.zeros_(self.condition.embed.bias)
        self.activation = score_head(channels, self.num_classes + 1, init=self.config.head_init)
        self.target = Shadow(self)

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Let the target begin as the online network, whose weights are loaded by now."""
        if progress.step == 0:
            self.target.take(self)
        return batch

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls` as TransCAM does, and `pcl`: cells of AM against the target's labels.

        The affinity is not detached, so `pcl` trains the attention as well.
        """
        del progress
        image, label = batch["image"], batch["label"]
        with torch.no_grad():
            maps = self.target.run(self, self.image_maps, image)
            inside = image_cells(batch["valid"], maps.shape[-2:])
            found = label_cells(maps, label, inside)
        taps = self.taps(image, affinity=True)
        activation = self.activation_maps(taps, label)
        self._metrics = {"foreground": ((found > 0) & (found < 255)).float().mean()}
        return {
            "cls": classification(self.logit(taps), label),
            "pcl": balanced_cross_entropy(activation, found, smoothing=self.config.smoothing),
        }

    def weights(self) -> dict[str, float]:
        """Return the weights: 1 for `cls`, and that of the config for `pcl`."""
        return {"cls": 1.0} | weights_of(self.config)

    def after_step(self, progress: Progress) -> None:
        """Let the target equal the online network in the first epoch, and follow it slowly later.

        Its momentum is that of the step in the epoch, so it starts anew with each epoch.
        """
        epoch, step = divmod(progress.step, progress.steps_per_epoch)
        if epoch == 0:
            self.target.take(self)
            return
        momentum = momentum_at(step, progress.steps_per_epoch, first=self.config.target_momentum)
        self.target.follow(self, momentum=momentum)

    def image_maps(self, image: Tensor) -> Tensor:
        """Return M* (N, K, h, w), of any sign, of images (N, 3, H, W)."""
        return self.spread_maps(self.taps(image, affinity=True))

    def activation_maps(self, taps: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return AM (N, K+1, h, w), logits, background first, of taps and the label (N, K)."""
        maps = self.activation(self.condition(taps["high"], label))
        return spread(maps, taps[AFFINITY])

    def image_map(self, image: Tensor, label: Tensor) -> Tensor:
        """Return the background of AM and the classes of M*, (N, K+1, h, w), of any sign."""
        taps = self.taps(image, affinity=True)
        ground = self.activation_maps(taps, label)[:, :1]
        return torch.cat([ground, self.spread_maps(taps)], dim=1)

    def score(self, batch: Batch) -> Tensor:
        """Return the maps (2B, K+1, h, w), background first, of any sign.

        Raises:
            ValueError: The target network is to infer, and the checkpoint lacks it.
        """
        image, label = batch["image"], batch["label"]
        label = label.repeat_interleave(len(image) // len(label), dim=0)
        if self.config.network == "online":
            return self.image_map(image, label)
        if not int(self.target.times):
            raise ValueError(
                "network=target: the file has no target network, which exports leave out; give "
                "the checkpoint.pth of the run"
            )
        return self.target.run(self, self.image_map, image, label)

    def embed(self, batch: Batch) -> Tensor | None:
        """Return the features of the network that infers."""
        if self.config.network == "online":
            return super().embed(batch)
        return self.target.run(self, super().embed, batch)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return the maps of the first image at one scale, and the labels that the target gives."""
        first = part(batch, slice(1), ("image", "label", "valid"))
        present = with_background_label(first["label"])[0]
        maps = self.target.run(self, self.image_maps, first["image"])
        found = label_cells(maps, first["label"], image_cells(first["valid"], maps.shape[-2:]))
        one_hot = F.one_hot(found[0].clamp(max=self.num_classes), self.num_classes + 1)
        inside = (found < 255).float()
        return {
            "cam": min_max(self.score(first))[0] * present,
            "labels": one_hot.permute(2, 0, 1) * inside,
        }
