"""Backbones: an image in, named non-negative feature maps (taps) out, with their facts as data.

A family is one file of this folder. Its `NAMES` are the backbones it serves, and its
`build(name, output_stride=...)` makes one; no other file changes when a family is added.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from network.backbones.cpu.folding import fold_frozen_norms
from network.backbones.cpu.pointwise import replace_thin_strides

TAP_NAMES = ("tap1", "tap2", "low", "mid", "high")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ANY = "<name>"  # in `NAMES`: every name with this beginning


@dataclasses.dataclass(frozen=True)
class Tap:
    """A feature map a backbone gives: its channels and its stride in pixels a cell."""

    channels: int
    stride: int


class Backbone(nn.Module):
    """A network cut into taps.

    Attributes:
        name: as on the command line.
        taps: name -> `Tap`; always `low`, `mid` and `high`, deepest last.
        mean, std: of the RGB input in [0, 1].
        stem: prefixes of the parameters that stay frozen when pretrained.
    """

    name: str
    taps: dict[str, Tap]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stem: tuple[str, ...]

    def freeze(self) -> None:
        """Freeze the stem and every BatchNorm, as all hosts do on pretrained weights."""
        self.freeze_norms()
        fold_frozen_norms(self)
        for name, parameter in self.named_parameters():
            if name.startswith(self.stem):
                parameter.requires_grad_(False)

    def freeze_norms(self) -> None:
        """Make every BatchNorm a constant map."""
        freeze_batch_norm_2d(self)

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """(N, 3, H, W), normalised -> {name: (N, D, h, w)}, every map >= 0."""
        raise NotImplementedError

    def published(self) -> tuple[str, str]:
        """Return the address of published ImageNet weights, and a name for the file.

        Raises:
            ValueError: There are none; says what to do instead.
        """
        raise ValueError(f"--weights imagenet: no published weights exist for {self.name}")


def _families() -> list[ModuleType]:
    """The files of this folder that serve backbones."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def backbone_names() -> list[str]:
    """Return the names that the families serve; `timm:<name>` stands for many."""
    return [name for family in _families() for name in family.NAMES]


def _serves(family: ModuleType, name: str) -> bool:
    return any(
        name.startswith(known.removesuffix(_ANY)) if known.endswith(_ANY) else name == known
        for known in family.NAMES
    )


def build_backbone(name: str, *, output_stride: int = 16) -> Backbone:
    """Build the backbone called `name`, with random weights and without unsafe convolutions.

    Args:
        output_stride: Of the deepest tap, in pixels; ResNet38-d is always 8.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    for family in _families():
        if _serves(family, name):
            backbone = family.build(name, output_stride=output_stride)
            replace_thin_strides(backbone)
            return backbone
    raise ValueError(f"unknown backbone {name!r}: there are {', '.join(backbone_names())}")
