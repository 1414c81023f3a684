"""Backbones: networks that turn an image into named, non-negative feature maps (taps).

A family is one file of this folder. Its `NAMES` lists the backbones that it serves, and its
`build(name, output_stride=...)` builds one. If each of them has a single output stride,
`only_stride(name)` returns it. No other file changes when a family is added.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from network.backbones.cpu.folding import fold_frozen_norms
from network.backbones.cpu.pointwise import replace_thin_strides
from network.norms import FixedNorm2d
from tool.formats.image import IMAGENET_MEAN, IMAGENET_STD, MAX_SIDE

STRIDES = (8, 16, 32)  # output strides of backbones that have a choice
TAP_NAMES = ("tap1", "tap2", "low", "mid", "high")
FROZEN = ("norms", "stem", "shallow")  # parts of pretrained weights that can stay as they are
AFFINITY = "affinity"  # a tap of every backbone; see `Backbone`
RAW = "raw"  # likewise
TOKEN = "token"  # a tap of transformers with a class token
NORMS = ("frozen", "live")  # what the norms of pretrained weights take as their statistics
AFFINITY_SUM = 12.0  # the sum of a row: Conformer-S adds the attention of 12 blocks
_OF_EVERY = (AFFINITY, RAW)  # taps that every backbone has
_ANY = "<name>"  # at the end of an entry of `NAMES`: every name that begins like it


@dataclasses.dataclass(frozen=True)
class Tap:
    """The description of a feature map of a backbone.

    Attributes:
        channels: Number of channels.
        stride: Pixels per cell.
    """

    channels: int
    stride: int


class Backbone(nn.Module):
    """A network that returns taps.

    Besides its taps, every backbone returns

    - `affinity`, (N, p, p) with p = h w cells of the high tap. It is the attention of a
      transformer, summed over its blocks, if `affinity` is among the backbone's own taps.
      Otherwise it is the `cosine_affinity` of the high tap.
    - `raw`, (N, D, h, w): the high tap before the ReLU that makes it non-negative, if `raw` is
      among the backbone's own taps. Otherwise it is the high tap.

    A transformer has the tap `token` if it has a class token: (N, D), normalised, of any sign.

    Attributes:
        name: The name on the command line.
        taps: Maps the name of a tap to its description. `low`, `mid` and `high` are always among
            them. See also `maps`.
        mean: Mean of each channel of the RGB input, in [0, 1].
        std: Standard deviation of each channel of the RGB input, in [0, 1].
        stem: Prefixes of the parameters that stay frozen if the weights are pretrained.
        shallow: Prefixes of further parameters that a plain classifier leaves frozen.
        caffe: Its weights are of Caffe's ResNet; see `network.weights.caffe`.
        saw_masks: Whether its weights were trained on pixel masks. The function that loads the
            weights sets it.
        squares: If not 0, it takes only square images whose side is a multiple of this many pixels.
        sides: The default sides of the square images in inference, in pixels, if it takes only
            squares. The method and the user can choose others.
        image_heads: Beginnings of the names of image-level heads in its published files.
        max_side: The default of the longer side, in pixels, to which a user's photographs are
            reduced in inference. At the usual scales, up to 2, a photograph of this size takes less
            than 4 GB on a CPU.
    """

    name: str
    taps: dict[str, Tap]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stem: tuple[str, ...]
    shallow: tuple[str, ...] = ()
    caffe = False
    saw_masks = False
    squares = 0
    sides: tuple[int, ...] = ()
    image_heads: tuple[str, ...] = ()
    max_side = MAX_SIDE
    _kept: tuple[Tensor, dict[str, Tensor]] | None = None  # by `one_pass`
    _keeps = False

    def __call__(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """Return the taps of images by name; see `forward`.

        Inside `one_pass` the taps of the last images are kept and not computed again.

        Args:
            image: (N, 3, H, W), normalised.
            names: The taps to return; `affinity` and `raw` are permitted for every backbone.

        Raises:
            ValueError: The backbone takes only squares, and the images are none.
        """
        if self._kept is not None and self._kept[0] is image and set(names) <= set(self._kept[1]):
            return {name: self._kept[1][name] for name in names}
        check_squares(self, image.shape[-2:])
        replaced = [name for name in names if name in _OF_EVERY and name not in self.taps]
        wanted = [name for name in names if name not in replaced]
        if replaced:
            wanted.append("high")
        if self._keeps and RAW in self.taps:
            wanted.append(RAW)  # the gate reads it next
        found = super().__call__(image, tuple(dict.fromkeys(wanted)))
        if RAW not in self.taps and "high" in found:
            found[RAW] = found["high"]
        if AFFINITY in names and AFFINITY not in found:
            found[AFFINITY] = cosine_affinity(found["high"])
        if self._keeps:
            self._kept = image, found
        return {name: found[name] for name in names}

    @property
    def maps(self) -> dict[str, Tap]:
        """The taps that are maps (N, D, h, w), non-negative, shallow first, `high` last."""
        return {name: tap for name, tap in self.taps.items() if name in TAP_NAMES}

    @contextlib.contextmanager
    def one_pass(self) -> Iterator[None]:
        """Return a context in which a second call with the same images computes nothing."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    def freeze(self, norm: str = "frozen") -> None:
        """Freeze the stem and what `freeze_norms` says, as hosts do with pretrained weights.

        Args:
            norm: With "live" the norms stay as they are: in training they take the statistics of
                the batch.
        """
        if norm == "frozen":
            self.freeze_norms()
            fold_frozen_norms(self)
        for name, parameter in self.named_parameters():
            if name.startswith(self.stem):
                parameter.requires_grad_(False)

    def train_beyond(self, frozen: str) -> None:
        """Choose what trains of pretrained weights, in place of what `freeze` chose.

        The scale and shift of norms never train.

        Args:
            frozen: What else stays as it is: nothing with "norms", the stem with "stem", the stem
                and `shallow` with "shallow".
        """
        fixed = {
            parameter
            for module in self.modules()
            if isinstance(module, FixedNorm2d)
            for parameter in module.parameters()
        }
        prefixes = {"norms": (), "stem": self.stem, "shallow": (*self.stem, *self.shallow)}[frozen]
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(parameter not in fixed and not name.startswith(prefixes))

    def freeze_norms(self) -> None:
        """Make every BatchNorm a map that does not depend on the batch."""
        freeze_batch_norm_2d(self)

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """Compute the backbone's own taps.

        Args:
            image: (N, 3, H, W), normalised.
            names: The taps to compute; they are among `taps`.

        Returns:
            Each tap (N, D, h, w) by name, non-negative; `affinity` is (N, p, p), `token` (N, D).
        """
        raise NotImplementedError

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor of a foreign file as this network has it, or unchanged.

        Args:
            name: In the file.
            tensor: Of any shape.
        """
        del name
        return tensor

    def published(self) -> tuple[str, str]:
        """Return the address of published ImageNet weights, and a name for the file.

        Raises:
            ValueError: There are no such weights.
        """
        raise ValueError(f"--weights imagenet: no published weights exist for {self.name}")


def check_squares(backbone: Backbone, size: Sequence[int], flag: str = "") -> None:
    """Check that a backbone takes images of a size (H, W).

    Args:
        backbone: The backbone.
        size: Of the images.
        flag: What sets the size, for the message.

    Raises:
        ValueError: It takes only squares of other sides.
    """
    height, width = size
    if backbone.squares and (height != width or height % backbone.squares):
        raise ValueError(
            f"{flag}{': ' if flag else ''}{backbone.name} takes squares whose side is a multiple "
            f"of {backbone.squares}, not {width}x{height}"
        )


def cosine_affinity(feature: Tensor) -> Tensor:
    """Compute an affinity of cells that replaces attention: their positive cosines.

    Args:
        feature: (N, D, h, w), non-negative.

    Returns:
        (N, p, p) with p = h w; each row sums to `AFFINITY_SUM`.
    """
    cells = F.normalize(feature.float().flatten(2), dim=1, eps=1e-4)  # (N, D, p)
    cosine = F.relu(cells.transpose(1, 2) @ cells)
    return AFFINITY_SUM * cosine / cosine.sum(dim=2, keepdim=True).clamp(min=1e-4)


def stride_of(name: str, stride: int) -> int:
    """Return the output stride to take for a backbone where the user gives none.

    Args:
        name: Of the backbone.
        stride: The one to take if the backbone has a choice.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    family = _family_of(name)
    return family.only_stride(name) if hasattr(family, "only_stride") else stride


def check_stride(name: str, stride: int) -> None:
    """Check the output stride that a user gives for a backbone.

    Args:
        name: Of the backbone.
        stride: In pixels.

    Raises:
        ValueError: The backbone does not have it, or its name is unknown.
    """
    only = stride_of(name, stride)
    if stride != only:
        raise ValueError(
            f"backbone {name!r} has no output stride {stride}: its only one is {only}, which it "
            "has without --output-stride"
        )
    if stride not in STRIDES and not hasattr(_family_of(name), "only_stride"):
        shown = ", ".join(map(str, STRIDES))
        raise ValueError(f"backbone {name!r} has no output stride {stride}: choose one of {shown}")


def _families() -> list[ModuleType]:
    """Import and return the modules of this folder that serve backbones."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    found = [importlib.import_module(f"{__name__}.{name}") for name in names]
    for family in found:
        if not (hasattr(family, "NAMES") and hasattr(family, "build")):
            raise ValueError(f"{family.__file__} must define NAMES and build")
    return found


def backbone_names() -> list[str]:
    """Return the names that the families serve; `timm:<name>` stands for many."""
    return [name for family in _families() for name in family.NAMES]


def _family_of(name: str) -> ModuleType:
    """Return the family that serves the backbone called `name`.

    If several do, it is the one with the longest beginning of the name in its `NAMES`.

    Raises:
        ValueError: There is none; the message lists the known ones.
    """
    serving = [
        (len(known), family)
        for family in _families()
        for known in family.NAMES
        if name == known or (known.endswith(_ANY) and name.startswith(known.removesuffix(_ANY)))
    ]
    if not serving:
        raise ValueError(f"unknown backbone {name!r}: there are {', '.join(backbone_names())}")
    return max(serving, key=lambda one: one[0])[1]


def build_backbone(name: str, *, output_stride: int = 16) -> Backbone:
    """Build the backbone called `name`, with random weights and without unsafe convolutions.

    Args:
        name: One of `backbone_names`.
        output_stride: Stride of the deepest tap in pixels. That of ResNet38-d is always 8.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    backbone = _family_of(name).build(name, output_stride=output_stride)
    replace_thin_strides(backbone)
    return backbone
