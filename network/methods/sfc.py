"""`sfc`: a classifier's CAM and a prototype CAM that calibrate each other, class by class.

Source: SFC, Shared Feature Calibration (X. Zhao et al., AAAI 2024); its network is that of SIPE (Q.
Chen et al., CVPR 2022) with the pixel correlation of SEAM (Y. Wang et al., CVPR 2020).
Differs from the release: an empty slot of the image bank is never drawn; absent classes neither
lower the background nor win cells (`--no-label-first` for the release); the class counts are those
of the training list, and the number added to them grows with it; a short run compares cells by how
they differ from the mean of their image (`--centred`); in inference a class that wins no cell has
its own peak as prototype; the checkpoint is the last one, not the best on ground truth; the map
that is evaluated first is the sum of both, as in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from network.calibration.bank import Crops, ImageBank, interleaved, joined
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
from network.losses import (
    add_up,
    classification,
    full_precision,
    image_cells,
    over_maximum,
    sum_of_mirrors,
    with_background_label,
)
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
        refined: (N, K+1, h, w) in [0, 1], the paper's M_W, background first.
        present: (N, K+1, h, w) in {0, 1}, the label, and 0 on padding.
    """

    score: Tensor
    cam: Tensor
    refined: Tensor
    present: Tensor


class Sfc(Cam):
    """A classifier, its CAM spread by a pixel correlation, and the CAM of class prototypes."""

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
            weight_prototype: Weight of the distance of the classifier's CAM to the prototype CAM.
            weight_views: Weight of the distance of the CAMs of an image and of its half.
            bg_factor: Factor on the background when cells are chosen for the prototypes.
            centred: Compare the cells of the pixel correlation by how they differ from the mean of
                their image. A short run needs it: until its layer is trained, which takes the paper
                thousands of steps, the cells of an image look alike.
            label_first: Leave absent classes out before anything is made of the CAM. The release
                lets them lower the background, and win cells in inference.
            bank_draws: Images that the bank adds to each batch, of all ranks together; 0 for none.
                It must divide by the ranks times --accumulate.
            bank_side: Side of a slot of the bank in pixels, at least --crop.
            replay: Images that the bank adds to the count of a class, as a multiple of the mean
                number of training images per class; 0.7484 gives the paper's 396 on VOC.
            bg_shift: Added to the normalised background, while the classes are doubled.
            mix_cam: Weight of the prototype CAM in the first map, against the classifier's.
            mix_seed: The same in the map `seed`, of which seeds are made.
            mix_walk: The same in the map `walk`, which a random walk spreads.
        """

        pooling: ClassVar[str] = "average"  # of the classifier, which SFC does not change
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
        """Make the classifier, the side convolutions, the pixel correlation and the bank."""
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
        self.side = SideFeatures(backbone.maps)
        self.correlation = DeepCorrelation(channels, centred=config.centred)
        self.bank = ImageBank(
            self.num_classes, config.bank_side, mean=backbone.mean, std=backbone.std
        )
        self.register_buffer("coefficient", torch.ones(self.num_classes), persistent=False)
        self._pending: list[Crops] = []

    def study(self, labels: Tensor) -> None:
        """Compute the distribution coefficient of each class from the training labels."""
        counts = labels.sum(dim=0)
        offset = self.config.replay * len(labels) / max(1, int((counts > 0).sum()))
        self.coefficient.copy_(distribution_coefficient(counts, offset=offset))

    @torch.no_grad()
    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch with images of the bank, which holds those of the batch already.

        Raises:
            ValueError: The draws do not divide by the ranks and micro-batches, or the crops are
                larger than a slot.
        """
        parts = progress.world_size * progress.accumulate
        draws, rest = divmod(self.config.bank_draws, parts)
        if rest:
            raise ValueError(
                f"--bank-draws {self.config.bank_draws} must divide by the ranks times "
                f"--accumulate, {parts}"
            )
        if progress.micro == 0:
            self._pending = []
        if not draws:
            return batch
        image, valid, label = (batch[key] for key in ("image", "valid", "label"))
        self._pending.append(self.bank.store(image, valid, label).gathered())
        # As many draws per rank, of one bank on all ranks.
        uniform = progress.uniform_per_image("bank", draws, (), image.device)
        drawn = self.bank.draw(joined(self._pending), uniform)
        order = interleaved(len(image), draws, image.device)
        more = self.bank.restore(drawn, image.shape[-2:])
        image, valid, label = (
            torch.cat(pair)[order] for pair in zip((image, valid, label), more, strict=True)
        )
        names = [*batch["image_id"], *(f"draw {k + 1} of the image bank" for k in range(draws))]
        return {"image_id": names, "image": image, "valid": valid, "label": label}

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Compute `cls`, `prototype` and `views` on the images and on their halves.

        The metric `contrast` is the share of the CAMs' deviation that the pixel correlation
        leaves. Near 0 the refined CAMs are flat, and every map made of them covers the image.

        Source: SFC, multi-scaled distribution-weighted consistency.
        """
        del progress
        image, valid, label = batch["image"], batch["valid"], batch["label"]
        taps = self.backbone(image, self.side.names)
        first = self.view(taps["high"], image, valid, label)
        half = aligned(image, tuple(max(1, side // 2) for side in image.shape[-2:]))
        second = self.view(self.backbone(half)["high"], half, valid, label)
        side = self.side(taps)
        self._metrics = {
            "bank": (self.bank.written > 0).float().mean(),
            "contrast": contrast_kept(first.refined[:, 1:], first.cam[:, 1:]),
        }
        with full_precision(first.score):
            prototype = over_maximum(self.prototypes(side, first.refined, first.present))
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
        """Put the images of the step into the bank."""
        del progress
        if self._pending:
            self.bank.write(joined(self._pending))
            self._pending = []

    def view(self, high: Tensor, image: Tensor, valid: Tensor, label: Tensor) -> View:
        """Compute the classifier's refined CAM, whose gradient reaches it, and the features.

        Args:
            high: (N, D, h, w), the tap `high`.
            image: (N, 3, H, W), of which it was computed.
            valid: (N, 1, H', W') bool, of the same crop at any size.
            label: (N, K).
        """
        size = high.shape[-2:]
        score = self.classifier(high).float()
        inside = image_cells(valid, size).to(score.dtype)
        present = inside * with_background_label(label)  # (N, K+1, h, w)
        cam = normal_cam(score, present if self.config.label_first else None) * present
        refined = self.correlation(cam, high, aligned(image, size), inside)
        return View(score, cam, refined, present)

    def prototypes(
        self, side: Tensor, refined: Tensor, present: Tensor, *, peaks: bool = False
    ) -> Tensor:
        """Return the prototype CAM (N, K+1, h, w); 0 for a class that wins no cell.

        Args:
            side: (N, D, h, w), the side features.
            refined: (N, K+1, h, w), whose argmax chooses the cells of each prototype.
            present: (N, K+1, h, w) or (N, K+1, 1, 1) in {0, 1}.
            peaks: A present class that wins no cell takes those of its maximum.
        """
        seed = seed_cells(refined, present, bg_factor=self.config.bg_factor)
        return prototype_cam(side, with_peaks(seed, refined, present) if peaks else seed)

    def score(self, batch: Batch) -> Tensor:
        """Return what `merge` needs, (2B, C, h, w).

        Its channels are the raw scores, the side features, the tap `high` and the image.
        """
        taps = self.backbone(batch["image"], self.side.names)
        high = taps["high"]
        image = aligned(batch["image"], high.shape[-2:])
        parts = (self.classifier(high), self.side(taps), high, image)
        return torch.cat([each.float() for each in parts], dim=1)

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Merge mirrors before anything is normalised, and scales after.

        Args:
            scores: One (2, C, h, w) per scale, or (1, C, h, w) without mirrors.
            batch: `size` (H, W) and `label` (1, K).

        Returns:
            Maps (K+1, *size) in [0, 1], 0 for absent classes: `classifier`, `prototype`, and the
            sums of the two that are evaluated (`cam`), made seeds of (`seed`) and walked (`walk`).
        """
        label, kept = batch["label"], self._kept(scores[0], batch)
        sums = [scores[0].new_zeros((len(kept), *batch["size"])) for _ in range(2)]
        for score in scores:
            for total, maps in zip(sums, self._both(sum_of_mirrors(score), label), strict=True):
                total += aligned(maps[:, kept], batch["size"])[0]
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
        """Return the refined CAM and the prototype CAM, (1, K+1, h, w), of the score (C, h, w)."""
        channels = self.backbone.taps["high"].channels
        sizes = (self.num_classes, self.side.width, channels, 3)
        raw, side, high, image = score[None].split(sizes, dim=1)
        present = with_background_label(label)
        cam = normal_cam(raw, present if self.config.label_first else None)
        refined = self.correlation(cam, high, image)
        return refined, self.prototypes(side, refined, present, peaks=True)

    def _whole(self, maps: Tensor, kept: Tensor) -> Tensor:
        """Return normalised maps of all K+1 channels from the sums of the channels `kept`."""
        whole = maps.new_zeros((self.num_classes + 1, *maps.shape[1:]))
        shifted = over_shifted_background(maps, bg_shift=self.config.bg_shift)
        return whole.index_copy_(0, kept, shifted)

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return both CAMs of the first image and their mean."""
        first = part(batch, slice(1), ("image", "label"))
        present = with_background_label(first["label"])[0]
        classifier, prototype = (
            over_shifted_background(maps[0], bg_shift=self.config.bg_shift) * present
            for maps in self._both(self.score(first)[0], first["label"])
        )
        mean = (classifier + prototype) / 2
        return {"cam": mean, "classifier": classifier, "prototype": prototype}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return the usual groups, all of which decay."""
        groups = super().param_groups(lr, weight_decay)
        return [group | {"weight_decay": weight_decay} for group in groups]
