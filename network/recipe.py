"""Recipes: the defaults that a method gives the flags of all four stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tool.crf.post import Post
from tool.flags import flag
from tool.infer.scales import Views
from tool.ranges import (
    AMOUNT,
    BATCH,
    COUNT,
    CROP,
    EPOCHS,
    FACTOR,
    MOMENTUM,
    POSITIVE,
    RATE,
    SIDE,
    STEPS,
    UNIT,
)

STRIDES = (8, 14, 16, 32)  # output strides; 14 is the patch of some ViTs
OPTIMIZERS = ("sgd", "adam", "adamw")
_IN_SHORT: tuple[str, ...] = ("steps", "batch_size", "accumulate", "crop", "long_side", "scale")
_IN_SHORT += ("output_stride", "lr", "momentum", "weight_decay", "warmup", "clip")
SHORT = {"steps": 200, "crop": 224, "warmup": 50}
SHORT_SGD = SHORT | {"lr": 0.02, "momentum": 0.9, "clip": 1.0}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults of the flags of all four stages, as data. A flag on the command line wins.

    Attributes:
        steps: Optimizer steps of the whole run, which set the schedule of the learning rate.
        epochs: How often each image is seen, in place of a number of steps.
        batch_size: Images per step, of all ranks together. Change the learning rate in proportion.
        accumulate: Micro-batches per step; more take less memory. Each holds the same images
            whatever the number of ranks.
        crop: Side of the training crop in pixels. A smaller one is faster and sees less context.
        long_side: Range of the resized image's longer side in pixels. By default it grows with the
            crop.
        scale: Factors of the resize in place of a longer side: two are a range, any other number of
            them are choices.
        jitter: Change brightness, contrast, saturation and hue of each crop.
        backbone: Network under the method. Take resnet38d for the papers' setting on a GPU, or
            timm:NAME for any of timm's networks with feature maps and its plain ViTs, such as
            timm:vit_small_patch16_224.dino; an unknown name lists more.
        output_stride: Pixels per cell of the deepest features: 8, 16 or 32. A smaller one gives
            finer CAMs and takes more memory. Some backbones have a single one and get it without
            this flag: resnet38d 8, conformer_s 16, a ViT the size of its patch.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate of pretrained weights. New layers learn faster, by the factors of `rates`.
        rates: Factors on `lr` of pretrained weights and biases, new weights and biases.
        momentum: Momentum of SGD. The released hosts train without; a short run needs it.
        weight_decay: Decay of the weights. Biases and norms have none.
        warmup: Steps in which the learning rate rises linearly. Give some if the loss diverges at
            the start.
        power: Of the polynomial decay of the rates; 0 for constant rates.
        clip: Largest norm of a step's gradient; a longer one is scaled down to it. By
            default there is no limit, nor with 0.
        scales: Factors on the size of an image, in inference.
        sides: Sides of the squares that an image is resized to in inference, in place of `scales`.
        mirror: Infer the mirror of each image too.
        short: Other values of some of these (`_IN_SHORT`), for a few hundred images on a CPU. None
            for `SHORT_SGD`, or `SHORT` with another optimizer.
        short_options: Other defaults of the method's own options, for the same runs as `short`.
        post: How the maps become masks, in stages 3 and 4.

    Raises:
        ValueError: The optimizer is unknown, or `short` has a name that it cannot change.
    """

    steps: int = flag(20_000, type=STEPS, exclusive="length")
    epochs: float | None = flag(None, type=EPOCHS, exclusive="length")
    batch_size: int = flag(8, type=BATCH, metavar="IMAGES")
    accumulate: int = flag(1, type=BATCH, metavar="N")
    crop: int = flag(448, type=CROP, metavar="PIXELS")
    long_side: tuple[int, int] = flag(
        (448, 768), type=SIDE, exclusive="size", nargs=2, metavar=("LOW", "HIGH")
    )
    scale: tuple[float, ...] | None = flag(None, type=FACTOR, exclusive="size", metavar="FACTOR")
    jitter: bool = True
    backbone: str = "resnet38d"
    output_stride: int = flag(16, type=POSITIVE, choices=STRIDES, metavar="PIXELS")
    optimizer: str = "sgd"
    lr: float = flag(0.01, type=RATE)
    rates: tuple[float, float, float, float] = (1, 2, 10, 20)
    momentum: float = flag(0.0, type=MOMENTUM)
    weight_decay: float = flag(5e-4, type=UNIT)
    warmup: int = flag(0, type=COUNT, metavar="STEPS")
    power: float = 0.9
    clip: float | None = flag(None, type=AMOUNT, metavar="NORM")
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    sides: tuple[int, ...] | None = None
    mirror: bool = True
    short: Mapping[str, Any] | None = None
    short_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    post: Post = dataclasses.field(default_factory=Post)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: there are {', '.join(OPTIMIZERS)}")
        if wrong := sorted(set(self.short or ()) - set(_IN_SHORT)):
            raise ValueError(f"short: {', '.join(wrong)}: it may change {', '.join(_IN_SHORT)}")

    def gated(self) -> Recipe:
        """Return this recipe with the NROI gate in inference (`network.contrast.gate`)."""
        return dataclasses.replace(self, post=dataclasses.replace(self.post, gate="nroi"))

    def chosen(self, short: bool) -> Recipe:
        """Return this recipe, or the one for a few hundred images."""
        if not short:
            return self
        # By default the rates are those that cam, eps, ppc and fbr take.
        default = SHORT_SGD if self.optimizer == "sgd" else SHORT
        return self.changed(default if self.short is None else self.short)

    def changed(self, given: Mapping[str, Any]) -> Recipe:
        """Return this recipe with other values, such as those of the command line.

        Raises:
            ValueError: There is a momentum and the optimizer has none.
        """
        if given.get("momentum") and self.optimizer != "sgd":
            raise ValueError(f"--momentum: this method is trained with {self.optimizer}")
        values: dict[str, Any] = {"clip": self.clip, **given}
        if "steps" in given:
            values["epochs"] = None  # which would win over the steps
        if "long_side" in given:
            values["scale"] = None
        else:
            values["long_side"] = self.long_side_for(given.get("crop", self.crop))
        values["clip"] = values["clip"] or None
        return dataclasses.replace(self, **values)

    def views(self) -> Views:
        """Return the copies of an image that pass through the network in inference."""
        return Views(self.scales, self.sides, self.mirror)

    def long_side_for(self, crop: int) -> tuple[int, int]:
        """Return the range of the longer side that belongs to `crop`: both scale together."""
        low, high = self.long_side
        return round(low * crop / self.crop), round(high * crop / self.crop)

    def steps_for(self, images: int) -> int:
        """Return the steps of a run on a list of `images`: those of `epochs`, else `steps`."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * images / self.batch_size))
