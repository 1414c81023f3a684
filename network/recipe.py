"""Recipes: the defaults that a method gives the flags of all four stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tool.crf.post import Post
from tool.infer.scales import Views

OPTIMIZERS = ("sgd", "adam", "adamw")
_IN_SHORT = ("steps", "batch_size", "accumulate", "crop", "long_side", "scale")
_IN_SHORT += ("lr", "momentum", "weight_decay", "warmup", "clip")
SHORT = {"steps": 200, "crop": 224, "warmup": 50}
SHORT_SGD = SHORT | {"lr": 0.005, "momentum": 0.9}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults of the flags of all four stages, as data. A flag on the command line wins.

    Attributes:
        steps: Optimizer steps of the whole run.
        epochs: If given, `steps` follows from it and the length of the list.
        batch_size: Images per step, of all ranks together.
        accumulate: Micro-batches per step. Each holds the same images whatever the number of ranks.
        crop: Side of the training crop in pixels.
        long_side: Range of the resized image's longer side in pixels, at this `crop`.
        scale: If given, factors of the resize in place of `long_side`: two are a range, any other
            number of them are choices.
        jitter: Change the colours too.
        backbone: Default on a machine with a GPU.
        output_stride: Pixels per cell of the deepest tap.
        optimizer: "sgd", "adam" or "adamw".
        lr: Learning rate of pretrained weights.
        rates: Factors on `lr` of pretrained weights and biases, new weights and biases.
        momentum: Of SGD.
        weight_decay: On weights, not on biases and norms.
        warmup: Steps of a linear rise of the rates.
        power: Of the polynomial decay of the rates; 0 for constant rates.
        clip: Largest norm of the gradient; None for no limit.
        scales: Factors on the size of an image, in inference.
        sides: Sides of the squares that an image is resized to in inference, in place of `scales`.
        mirror: Infer the mirror of each image too.
        short: Other values of some of these (`_IN_SHORT`), for a few hundred images on a CPU. None
            for `SHORT_SGD`, or `SHORT` with another optimizer.
        post: How the maps become masks, in stages 3 and 4.

    Raises:
        ValueError: The optimizer is unknown, or `short` has a name that it cannot change.
    """

    steps: int = 20_000
    epochs: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    crop: int = 448
    long_side: tuple[int, int] = (448, 768)
    scale: tuple[float, ...] | None = None
    jitter: bool = True
    backbone: str = "resnet38d"
    output_stride: int = 16
    optimizer: str = "sgd"
    lr: float = 0.01
    rates: tuple[float, float, float, float] = (1, 2, 10, 20)
    momentum: float = 0.0
    weight_decay: float = 5e-4
    warmup: int = 0
    power: float = 0.9
    clip: float | None = None
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    sides: tuple[int, ...] | None = None
    mirror: bool = True
    short: Mapping[str, Any] | None = None
    post: Post = dataclasses.field(default_factory=Post)

    def __post_init__(self) -> None:
        if self.short is None:  # by default the rates are those that cam, eps, ppc and fbr take
            object.__setattr__(self, "short", SHORT_SGD if self.optimizer == "sgd" else SHORT)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}: there are {', '.join(OPTIMIZERS)}")
        if wrong := sorted(set(self.short) - set(_IN_SHORT)):
            raise ValueError(f"short: {', '.join(wrong)}: it may change {', '.join(_IN_SHORT)}")

    def chosen(self, short: bool) -> Recipe:
        """Return this recipe, or the one for a few hundred images."""
        if not short:
            return self
        changed = {"long_side": self.long_side_for(self.short.get("crop", self.crop))}
        if "steps" in self.short:
            changed["epochs"] = None  # which would win over the steps
        return dataclasses.replace(self, **(changed | dict(self.short)))

    def views(self) -> Views:
        """Return the sizes of the copies of an image, in inference."""
        return Views(self.scales, self.sides)

    def long_side_for(self, crop: int) -> tuple[int, int]:
        """Return the range of the longer side that belongs to `crop`: both scale together."""
        low, high = self.long_side
        return round(low * crop / self.crop), round(high * crop / self.crop)

    def steps_for(self, images: int, batch_size: int, epochs: float | None = None) -> int:
        """Return the steps of a run on a list of `images`: by `epochs`, else the recipe's."""
        epochs = epochs or self.epochs
        if epochs is None:
            return self.steps
        return max(1, round(epochs * images / batch_size))
