"""The contract of a method, and how one is found: by its file name in this folder.

To add a method, add `network/methods/NAME.py` with one subclass of `Method`; no other Python file
changes.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import reprlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import Backbone, build_backbone
from network.backbones.cpu.pointwise import replace_thin_strides
from network.dropout import begin_step
from network.losses import over_maximum
from network.options import option as option
from tool.progress import Progress, derive_seed

Batch = dict[str, Any]
_LARGEST = 2**31 - 1  # of a count


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults of the flags of `train_fbr.py` and `infer_cam.py`, as data.

    Attributes:
        steps, batch_size: of the whole run; the batch is the global one.
        epochs: where it is given, `steps` follows from it and the length of the list.
        crop: side in pixels. long_side: range of the resized image's longer side.
        scale: where it is given, the range of the factor of the resize, in place of `long_side`.
        jitter: change the colours too.
        backbone: where there is a GPU. optimizer: "sgd" or "adam". lr: of pretrained weights.
        rates: factors on it, for pretrained weights and biases, new weights and biases.
        momentum: SGD's. weight_decay: on weights. power: of the polynomial decay; 0: constant.
        scales: of the inference.
    """

    steps: int = 20_000
    epochs: float | None = None
    batch_size: int = 8
    crop: int = 448
    long_side: tuple[int, int] = (448, 768)
    scale: tuple[float, float] | None = None
    jitter: bool = True
    backbone: str = "resnet38d"
    optimizer: str = "sgd"
    lr: float = 0.01
    rates: tuple[float, float, float, float] = (1, 2, 10, 20)
    momentum: float = 0.0
    weight_decay: float = 5e-4
    power: float = 0.9
    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)

    def long_side_for(self, crop: int) -> tuple[int, int]:
        """The range of the longer side that belongs to `crop`: both scale together."""
        low, high = self.long_side
        return round(low * crop / self.crop), round(high * crop / self.crop)

    def steps_for(self, images: int, batch_size: int, epochs: float | None = None) -> int:
        """Steps of the whole run on a list of `images`; by `epochs`, else the recipe's."""
        epochs = epochs or self.epochs
        if epochs is None:
            return self.steps
        return max(1, round(epochs * images / batch_size))


class Method(nn.Module):
    """What the stages know of a method.

    Args:
        backbone: with its weights already in, frozen where they are pretrained.
        num_classes: K, without background.
        config: this method's hyper-parameters.
        pretrained: the backbone's weights were; else every parameter takes the rate of new layers.
    """

    inputs: tuple[str, ...] = ("image", "label")
    infer_inputs: tuple[str, ...] = ("image", "label")
    has_background = False
    recipe = Recipe()

    @dataclasses.dataclass(frozen=True)
    class Config:
        """Hyper-parameters in the paper's symbols; each becomes a flag."""

    def __init__(
        self, backbone: Backbone, num_classes: int, config: Any, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.config = config
        self.pretrained = pretrained
        self._metrics: dict[str, Tensor] = {}

    def losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Named, unweighted scalar terms of a batch; under several ranks, this rank's shares."""
        raise NotImplementedError

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """`losses` with this step's random draws, called so that DDP's hooks see it."""
        begin_step(self, progress)
        return self.losses(batch, progress)

    def weights(self) -> dict[str, float]:
        """The coefficient of every term of `losses`: the same names."""
        raise NotImplementedError

    def score(self, batch: Batch) -> Tensor:
        """Maps of images at one scale and of their mirrors.

        Args:
            batch: `image` (2B, 3, H, W): B images of one size, each followed by its mirror; `label`
                (B, K) where it is known.

        Returns:
            (2B, C, h, w), non-negative for the `merge` below.
        """
        raise NotImplementedError

    def merge(self, scores: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Scales and mirrors of one image into named maps, one folder each.

        Args:
            scores: one (2, C, h, w) a scale, C = K.
            batch: `size` (H, W) of the image and `label` (1, K).

        Returns:
            {"cam": (K, H, W)} in [0, 1): resized, un-mirrored, summed, label-masked, over its
            maximum.
        """
        label = batch["label"][0]
        present = label.nonzero()[:, 0]
        total = scores[0].new_zeros((len(present), *batch["size"]))
        for score in scores if len(present) else ():
            both = F.interpolate(
                score[:, present], size=batch["size"], mode="bilinear", align_corners=False
            )
            total += both[0] + both[1].flip(-1)
        cam = total.new_zeros((len(label), *batch["size"]))
        cam[present] = over_maximum(total)
        return {"cam": cam}

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """The batch that `losses` sees; SFC's image bank adds images here."""
        del progress
        return batch

    def after_step(self, progress: Progress) -> None:
        """Write what `losses` left pending (bank, EMA) after the optimizer's step.

        State that is not weights belongs in a module of its own with `is_state = True`.
        """

    def metrics(self) -> dict[str, Tensor]:
        """Detached scalars of the last `losses`, logged beside the terms, never summed."""
        return self._metrics

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """{name: (K or K+1, h, w) in [0, 1]} maps of the batch's first image, for the log."""
        del batch
        return {}

    def param_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Four groups, each with its factor of the recipe's `rates` on the learning rate.

        Weight decay acts on weights only. Norm scales count as biases.
        """
        old = {id(p) for p in self.backbone.parameters()} if self.pretrained else set()
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                key = (id(parameter) not in old, parameter.ndim <= 1)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": lr * self.recipe.rates[2 * new + bias],
                "weight_decay": 0.0 if bias else weight_decay,
            }
            for (new, bias), parameters in sorted(groups.items(), key=lambda item: item[0])
        ]


def method_names() -> list[str]:
    """The names of all methods: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find_method(name: str) -> type[Method]:
    """The method class in `network/methods/NAME.py`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in method_names():
        raise ValueError(f"unknown method {name!r}: there are {', '.join(method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type)
        and issubclass(item, Method)
        and item.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__name__} must define one Method, not {len(classes)}"
    return classes[0]


def build_method(config: dict[str, Any]) -> Method:
    """The method a configuration describes, with random weights keyed by its `seed`.

    Args:
        config: `method`, `backbone`, `output_stride`, `num_classes`, `pretrained`, `method_config`,
            `seed` (0 where missing).

    Raises:
        ValueError: unknown method, backbone or hyper-parameter, or one that cannot be.
    """
    method = find_method(config["method"])
    known = {field.name: field.default for field in dataclasses.fields(method.Config)}
    unknown = sorted(set(config["method_config"]) - set(known))
    if unknown:
        raise ValueError(
            f"method {config['method']!r} has no hyper-parameter {', '.join(unknown)}: "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    for name, value in config["method_config"].items():
        _check_option(name, value, known[name])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.get("seed", 0), "weights"))
        backbone = build_backbone(config["backbone"], output_stride=config["output_stride"])
        if config["pretrained"]:
            backbone.freeze()
        hyper = method.Config(**config["method_config"])
        try:
            built = method(backbone, config["num_classes"], hyper, pretrained=config["pretrained"])
        except RuntimeError as error:  # torch's word for sizes that no memory holds
            raise ValueError(
                f"method {config['method']!r} cannot be made with these sizes: {error}"
            ) from error
    replace_thin_strides(built)
    return built


def _check_option(name: str, value: Any, default: Any) -> None:
    """A hyper-parameter has its default's type; a `ValueError` says so.

    A count (an int) is not negative, and fits in 32 bits; a float is finite and may be an int.
    """
    kind = type(default)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and kind is int:
        fits = 0 <= value <= _LARGEST
    elif fits and kind is float:
        fits = abs(value) < math.inf  # not so for NaN
    if not fits:
        rule = {int: "a count (an int)", float: "a finite number"}.get(kind, f"a {kind.__name__}")
        raise ValueError(
            f"the hyper-parameter {name} is {reprlib.repr(value)}: it must be {rule}, "
            f"like its default {default!r}"
        )
