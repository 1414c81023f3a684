"""`sfc`: a classifier's CAM and a prototype CAM that calibrate each other, class by class.

Source: SFC, Shared Feature Calibration (X. Zhao et al., AAAI 2024); its network is that of SIPE (Q.
Chen et al., CVPR 2022) with the pixel correlation of SEAM (Y. Wang et al., CVPR 2020).
Differs from the release: an empty slot of the image bank is never drawn; absent classes neither
lower the background nor win cells (`--no-label-first` for the release); the class counts are those
of the training list, and the number that is added to them grows with the list; a short run
subtracts the mean of the image before cells are compared (`--centred`); in inference a class that
wins no cell has its own peak as prototype; the checkpoint is the last one, not the best on ground
truth; the map that is evaluated first mixes both CAMs equally, as in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from network.calibration.bank import ImageBank
from network.calibration.maps import (
    aligned,
    contrast_kept,
    distribution_coefficient,
    normal_cam,
    over_shifted_background,
    prototype_cam,
    seed_cells,
    weighted_distance,
    with_peaks,
)
from network.calibration.network import DeepCorrelation, SideFeatures
from network.losses import add_up, classification, full_precision
from network.maps import image_cells, over_maximum, sum_of_mirrors, with_background_label
from network.methods import Batch, Recipe, option
from network.methods.cam import Cam
from network.options import weights_of
from tool.crf.post import Post
from tool.progress import Progress
from tool.train.batch import part


@dataclasses.dataclass(frozen=True)
class View:
    """What the network computes from images at one size.

    Attributes:
        score: (N, K, h, w), raw scores.
        cam: (N, K+1, h, w) in [0, 1], the normalised CAM, background first.
        refined: (N, K+1, h, w) in [0, 1], the CAM after the pixel correlation, the paper's M_W,
            background first.
        present: (N, K+1, h, w) in {0, 1}: the label of the background and the classes, and 0 on
            padding.
    """

    score: Tensor
    cam: Tensor
    refined: Tensor
    present: Tensor


class Sfc(Cam):
    """A classifier with two CAMs: its own, spread by a pixel correlation, and that of prototypes.

    Attributes:
        coefficient: (K,), the distribution coefficient of each class.
    """

    infer_inputs = ("image", "label")
    maps = ("cam", "prototype", "classifier", "seed", "walk")
    has_background = True
    recipe = Recipe(
        epochs=6,
        batch_size=16,
        backbone="resnet50",
        crop=512,
        long_side=(320, 640),
        jitter=False,
        lr=0.1,
        rates=(1, 1, 10, 10),
        weight_decay=1e-4,
        clip=1.0,
        scales=(1.0, 0.5, 1.5, 2.0),
        short={
            "steps": 200,
            "batch_size": 8,
            "crop": 224,
            "long_side": (224, 384),
            "lr": 0.02,
            "momentum": 0.9,
            "warmup": 50,
        },
        short_options={"bank_draws": 2, "bank_side": 224, "centred": True},
        post=Post(preset="label50", seeds=(1.0, 0.5)),
    )
    released: Mapping[str, str] = {}  # its files are other networks
    coefficient: Tensor

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The hyper-parameters of SFC.

        Attributes:
            weight_prototype: Weight of the distance between the classifier's CAM and the prototype
                CAM.
            weight_views: Weight of the distance between the CAMs of an image and of its half size.
            bg_factor: Factor on the background when cells are chosen for the prototypes.
            centred: Subtract the mean of the image from each cell before cells are compared, in
                the pixel correlation and with prototypes. A short run needs it: until the layers
                are trained, which takes the paper thousands of steps, all cells of an image look
                alike.
            label_first: Mask absent classes before anything else is done with the CAM. In the
                release they lower the background, and win cells in inference.
            bank_draws: Number of images that the bank adds to each batch, over all ranks; 0 for
                none. The number of ranks times --accumulate must divide it.
            bank_side: Side of a slot of the bank in pixels, at least --crop.
            replay: Number of images that the bank adds to the count of a class, as a multiple of
                the mean number of training images per class. 0.7484 gives the paper's 396 on VOC.
            bg_shift: Shift of the background: the normalised background plus this competes with
                twice each normalised class.
            mix_cam: Weight of the prototype CAM in the first map; the classifier's CAM has 1.
            mix_seed: Weight of the prototype CAM in the map `seed`, of which seeds are made.
            mix_walk: Weight of the prototype CAM in the map `walk`, which a random walk spreads.
        """

        # Hyper-parameters of `Cam`, which SFC fixes.
        pooling: ClassVar[str] = "average"
        sharpness: ClassVar[float] = 0.0
        weight_prototype: float = 1.6
        weight_views: float = 0.8
        bg_factor: float = 0.3
        centred: bool = False
        label_first: bool = True
        bank_draws: int = 4
        bank_side: int = 512
        replay: float = 0.7484
        bg_shift: float = option(0.4, inference=True)
        mix_cam: float = option(1.0, inference=True)
        mix_seed: float = option(0.7, inference=True)
        mix_walk: float = option(0.3, inference=True)

    def build(self) -> None:
        """Build the classifier, the side features, the pixel correlation and the bank."""
        super().build()
        config, backbone = self.config, self.backbone
        for name in ("bg_factor", "bg_shift"):
            if not 0 <= getattr(config, name) <= 1:
                raise ValueError(f"{name} {getattr(config, name)} is not in [0, 1]")
        for name in ("replay", "mix_cam", "mix_seed", "mix_walk"):
            if getattr(config, name) < 0:
                raise ValueError(f"{name} {getattr(config, name)} is below 0")
        if not 1 <= config.bank_side <= 4096:
            raise ValueError(f"bank_side {config.bank_side} is not in 1..4096")
        channels = backbone.taps["high"].channels
        self.classifier = nn.Conv2d(channels, self.num_classes, 1, bias=False)
        self.side = SideFeatures(backbone.maps, centred=config.centred)
        self.correlation = DeepCorrelation(channels, centred=config.centred)
        self.bank = ImageBank(
            self.num_classes, config.bank_side, mean=backbone.mean, std=backbone.std
        )
        self.register_buffer("coefficient", torch.ones(self.num_classes), persistent=False)

    def study(self, labels: Tensor) -> None:
        """Compute the distribution coefficient of each class from the training labels.

        Args:
            labels: (n, K) {0, 1} of the training list.
        """
        counts = labels.sum(dim=0)
        offset = self.config.replay * len(labels) / max(1, int((counts > 0).sum()))
        self.coefficient.copy_(distribution_coefficient(counts, offset=offset))

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Add images of the bank to the batch; see `ImageBank.with_draws`."""
        return self.bank.with_draws(batch, progress, self.config.bank_draws)

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls`, `prototype` and `views` on images and on copies of half the size.

        With the refined CAM M_W and the prototype CAM M_P of an image, M_W' of its copy, and the
        distribution coefficient c, which is 1 for the background,

            prototype = mean of c |M_W - M_P|,  views = mean of c |M_W - M_W'|.

        The background counts in `prototype` only.

        The metric `bank` is the share of the bank's slots that are filled. The metric `contrast` is
        the share of the CAMs' deviation that the pixel correlation leaves. If it is near 0, the
        refined CAMs are flat, and every map that is made of them covers the whole image.

        Args:
            batch: `image` (N, 3, H, W), `valid` (N, 1, H, W) and `label` (N, K), with the images of
                the bank (see `before_losses`).
            progress: Not used.

        Returns:
            {name: scalar}, this rank's shares.

        Source: SFC, multi-scaled distribution-weighted consistency.
        """
        del progress
        image, valid, label = batch["image"], batch["valid"], batch["label"]
        # The refined CAMs of the images and of their copies, and the side features of the images.
        taps = self.backbone(image, self.side.names)
        first = self.view(taps["high"], image, valid, label)
        half = aligned(image, tuple(max(1, side // 2) for side in image.shape[-2:]))
        second = self.view(self.backbone(half)["high"], half, valid, label)
        side = self.side(taps, valid)
        self._metrics = {
            "bank": (self.bank.written > 0).float().mean(),
            "contrast": contrast_kept(first.refined[:, 1:], first.cam[:, 1:]),
        }
        with full_precision(first.score):
            # M_P, divided by its maximum, (N, K+1, h, w).
            prototype = over_maximum(self.prototypes(side, first.refined, first.present))
            # M_W and M_W' of the present classes, without the background, (N, K, h, w) each.
            cams = [view.refined[:, 1:] * label[:, :, None, None] for view in (first, second)]
            weight = self.coefficient
            logits = [view.score.mean(dim=(-2, -1)) for view in (first, second)]
            return {
                "cls": add_up(classification(logit, label) for logit in logits) / 2,
                "prototype": weighted_distance(
                    first.refined, prototype, torch.cat([weight.new_ones(1), weight])
                ),
                "views": weighted_distance(aligned(cams[0], cams[1].shape[-2:]), cams[1], weight),
            }

    def weights(self) -> dict[str, float]:
        """Return the weights: 1 for `cls`, and `weight_NAME` of the config for the other terms."""
        return {"cls": 1.0} | weights_of(self.config)

    def after_step(self, progress: Progress) -> None:
        """Put the images of the step, of all ranks, into the bank."""
        del progress
        self.bank.keep()

    def view(self, high: Tensor, image: Tensor, valid: Tensor, label: Tensor) -> View:
        """Compute the classifier's CAM and its refinement by the pixel correlation.

        The gradient of the refined CAM reaches the classifier and the features.

        Args:
            high: (N, D, h, w), the tap `high` of the images.
            image: (N, 3, H, W), normalised.
            valid: (N, 1, H', W') bool, False on padding; of the same crop at any size.
            label: (N, K), image-level {0, 1}.
        """
        size = high.shape[-2:]
        score = self.classifier(high).float()
        inside = image_cells(valid, size).to(score.dtype)  # (N, 1, h, w)
        present = inside * with_background_label(label)  # (N, K+1, h, w)
        cam = normal_cam(score, present if self.config.label_first else None) * present
        refined = self.correlation(cam, high, aligned(image, size), inside)
        return View(score, cam, refined, present)

    def prototypes(
        self, side: Tensor, refined: Tensor, present: Tensor, *, peaks: bool = False
    ) -> Tensor:
        """Compute the prototype CAM: the positive cosine of each cell with each prototype.

        A prototype is made of the cells where its refined CAM is the largest, with the background's
        multiplied by `bg_factor`.

        Args:
            side: (N, D, h, w), the side features.
            refined: (N, K+1, h, w), the refined CAM, background first.
            present: (N, K+1, h, w) or (N, K+1, 1, 1) in {0, 1}.
            peaks: Whether a present class that wins no cell gets the cells of its maximum.

        Returns:
            (N, K+1, h, w) in [0, 1]; 0 for a class without cells.
        """
        seed = seed_cells(refined, present, bg_factor=self.config.bg_factor)
        return prototype_cam(side, with_peaks(seed, refined, present) if peaks else seed)

    def score(self, batch: Batch) -> Tensor:
        """Compute what `merge` needs, as one map (2B, C, h, w).

        Its channels are the raw scores, the side features, the tap `high` and the image. The CAMs
        are made in `merge`, because mirrors are merged before anything that is not linear.
        """
        taps = self.backbone(batch["image"], self.side.names)
        high = taps["high"]
        image = aligned(batch["image"], high.shape[-2:])
        parts = (self.classifier(high), self.side(taps), high, image)
        return torch.cat([each.float() for each in parts], dim=1)

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Merge mirrors before the CAMs are made, and scales afterwards.

        Args:
            scores: One (2, C, h, w) per scale, or (1, C, h, w) without mirrors, from `score`.
            batch: `size` (H, W) and `label` (1, K).

        Returns:
            {name: (K+1, *size) in [0, 1]}, background first, 0 for absent classes: `classifier` and
            `prototype`, and their weighted means `cam`, which is evaluated, `seed`, of which seeds
            are made, and `walk`, which a random walk spreads.
        """
        # Sum both CAMs over the scales, for the background and the present classes only.
        label, kept = batch["label"], self._kept(scores[0], batch)
        sums = [scores[0].new_zeros((len(kept), *batch["size"])) for _ in range(2)]
        for score in scores:
            for total, maps in zip(sums, self._both(sum_of_mirrors(score), label), strict=True):
                total += aligned(maps[:, kept], batch["size"])[0]
        # Normalise them, and mix them with each weight.
        classifier, prototype = (self._whole(maps, kept) for maps in sums)
        mixed = {
            name: (classifier + weight * prototype) / (1 + weight)
            for name, weight in (
                ("cam", self.config.mix_cam),
                ("seed", self.config.mix_seed),
                ("walk", self.config.mix_walk),
            )
        }
        return {"prototype": prototype, "classifier": classifier, **mixed}

    def _both(self, score: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the refined CAM and the prototype CAM of an image at one scale.

        Args:
            score: (C, h, w), the channels of `score`, summed over mirrors.
            label: (1, K), image-level {0, 1}.

        Returns:
            Two maps (1, K+1, h, w), background first.
        """
        channels = self.backbone.taps["high"].channels
        sizes = (self.num_classes, self.side.width, channels, 3)
        raw, side, high, image = score[None].split(sizes, dim=1)
        present = with_background_label(label)
        cam = normal_cam(raw, present if self.config.label_first else None)
        refined = self.correlation(cam, high, image)
        return refined, self.prototypes(side, refined, present, peaks=True)

    def _whole(self, maps: Tensor, kept: Tensor) -> Tensor:
        """Normalise maps and place them among all channels.

        Args:
            maps: (P+1, H, W), sums over scales, background first.
            kept: (P+1,) int64, the channel of each map.

        Returns:
            (K+1, H, W) in [0, 1]; 0 for all other channels.
        """
        whole = maps.new_zeros((self.num_classes + 1, *maps.shape[1:]))
        shifted = over_shifted_background(maps, bg_shift=self.config.bg_shift)
        return whole.index_copy_(0, kept, shifted)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return both CAMs of the first image and their mean, (K+1, h, w) in [0, 1] each."""
        first = part(batch, slice(1), ("image", "label"))
        present = with_background_label(first["label"])[0]
        classifier, prototype = (
            over_shifted_background(maps[0], bg_shift=self.config.bg_shift) * present
            for maps in self._both(self.score(first)[0], first["label"])
        )
        mean = (classifier + prototype) / 2
        return {"cam": mean, "classifier": classifier, "prototype": prototype}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the usual groups, all of which decay, biases and norms too."""
        groups = super().param_groups(lr, weight_decay)
        return [group | {"weight_decay": weight_decay} for group in groups]
