"""Backbones: an image in, named non-negative feature maps (taps) out, with their facts as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import timm
import torch.nn.functional as F
import torchvision
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from network.depthwise import replace_depthwise
from network.folding import fold_frozen_norms
from network.pointwise import replace_thin_strides
from network.resnet38d import ResNet38d

TAP_NAMES = ("tap1", "tap2", "low", "mid", "high")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKBONES = ("resnet38d", "resnet38d_slim", "resnet50", "timm:<name>")


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


class ResNet38dBackbone(Backbone):
    """ResNet38-d at full or 1/8 width; `low`, `mid`, `high` are the field's conv4, conv5, conv6."""

    def __init__(self, name: str, *, width: int) -> None:
        super().__init__()
        self.name = name
        channels = (128, 256, 512, 1024, 4096)
        self.taps = {
            tap: Tap(number // width, stride)
            for tap, number, stride in zip(TAP_NAMES, channels, (2, 4, 8, 8, 8), strict=True)
        }
        self.net = ResNet38d(width=width)
        self.stem = ("net.conv1a.", "net.b2.", "net.b2_1.", "net.b2_2.")

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        return self.net(image, names)


class ResNet50Backbone(Backbone):
    """torchvision's ResNet-50 at stride 8 or 16; the taps are the stem and the four stages.

    The last stage (two at stride 8) is dilated, where IRN's network takes stride 1 alone: the
    weights are the same.
    """

    def __init__(self, *, output_stride: int) -> None:
        super().__init__()
        self.name = "resnet50"
        dilate = {8: (False, True, True), 16: (False, False, True), 32: (False, False, False)}
        if output_stride not in dilate:
            raise ValueError(f"resnet50 has no output stride {output_stride}: choose 8, 16 or 32")
        self.net = torchvision.models.resnet50(
            weights=None, replace_stride_with_dilation=dilate[output_stride]
        )
        del self.net.fc
        strides = (4, 4, 8, min(16, output_stride), output_stride)
        self.taps = {
            tap: Tap(number, stride)
            for tap, number, stride in zip(
                TAP_NAMES, (64, 256, 512, 1024, 2048), strides, strict=True
            )
        }
        self.stem = ("net.conv1.", "net.bn1.", "net.layer1.")

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        net = self.net
        feature = net.maxpool(F.relu(net.bn1(net.conv1(image))))
        taps = {"tap1": feature}
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        for name, stage in zip(TAP_NAMES[1:], stages, strict=True):
            taps[name] = feature = stage(feature)
        return {name: taps[name] for name in names}


class TimmBackbone(Backbone):
    """Any timm model that gives feature maps; taps that timm leaves linear pass a ReLU."""

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__()
        self.name = name
        model_name = name.removeprefix("timm:")
        if set(model_name) & set(":/"):  # hf-hub:, local-dir: timm would fetch what it builds
            raise ValueError(f"backbone {name!r}: only the names of timm's own models are known")
        try:
            self.net = timm.create_model(
                model_name, features_only=True, output_stride=output_stride, pretrained=False
            )
        except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
            raise ValueError(
                f"backbone {name!r}: timm cannot make it with feature maps at output stride "
                f"{output_stride} ({error})"
            ) from error
        except AssertionError as error:  # timm's way to say that a network cannot be dilated
            raise ValueError(
                f"backbone {name!r} has no output stride {output_stride}: try 32"
            ) from error
        replace_depthwise(self.net)
        info = self.net.feature_info
        names = TAP_NAMES[-len(info) :] if len(info) <= 5 else TAP_NAMES
        if len(info) < 3:
            raise ValueError(f"backbone {name!r} has {len(info)} feature maps, three are needed")
        channels, strides = info.channels()[-5:], info.reduction()[-5:]
        self.taps = {tap: Tap(c, s) for tap, c, s in zip(names, channels, strides, strict=True)}
        self.mean, self.std = input_statistics(model_name, self.net.pretrained_cfg)
        self.stem = self._stem([i["module"] for i in info.get_dicts()], info.reduction())

    def _stem(self, modules: list[str], strides: list[int]) -> tuple[str, ...]:
        """Everything up to the last feature map of stride 4, in the order of registration."""
        shallow = [m for m, s in zip(modules, strides, strict=True) if s <= 4]
        if not shallow:
            return ()
        last = "net." + shallow[-1].replace(".", "_" if hasattr(self.net, "return_layers") else ".")
        names = [name for name, _ in self.named_parameters()]
        inside = [i for i, name in enumerate(names) if name.startswith(last + ".")]
        return tuple(names[: inside[-1] + 1]) if inside else ()

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        maps = self.net(image)[-5:]
        taps = dict(zip(self.taps, maps, strict=True))
        return {name: F.relu(taps[name]) for name in names}


def input_statistics(
    model_name: str, config: dict
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of a timm model's input.

    The EfficientNet-Lite weights were trained on (x - 127) / 128 with x in 0..255, which timm
    rounds to mean and std 0.5.
    """
    if model_name.startswith("tf_efficientnet_lite"):
        return (127 / 255,) * 3, (128 / 255,) * 3
    return tuple(config["mean"]), tuple(config["std"])


def build_backbone(name: str, *, output_stride: int = 16) -> Backbone:
    """Build the backbone called `name`, with random weights and without unsafe convolutions.

    Args:
        output_stride: Of the deepest tap, in pixels; ResNet38-d is always 8.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.
    """
    backbone = _build(name, output_stride)
    replace_thin_strides(backbone)
    return backbone


def _build(name: str, output_stride: int) -> Backbone:
    if name == "resnet38d":
        return ResNet38dBackbone(name, width=1)
    if name == "resnet38d_slim":
        return ResNet38dBackbone(name, width=8)
    if name == "resnet50":
        return ResNet50Backbone(output_stride=output_stride)
    if name.startswith("timm:"):
        return TimmBackbone(name, output_stride=output_stride)
    raise ValueError(f"unknown backbone {name!r}: there are {', '.join(BACKBONES)}")
