"""ResNet38-d, the wide residual network (model A1) of this field's CAM methods.

Source: Z. Wu, C. Shen, A. van den Hengel, "Wider or Deeper", 2016; stride 8 by dilation as in PSA
(J. Ahn, S. Kwak, CVPR 2018). The parameters have the names of the field's files, so that weights
from there load.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import TAP_NAMES, Backbone, Tap
from network.backbones.cpu.pointwise import FEWEST_CHANNELS
from network.dropout import SeededDropout

NAMES = ("resnet38d", "resnet38d_slim")

# Name, input, middle and output channels, stride, dilations of the two convolutions.
_PLAIN = [
    ("b2", 64, 128, 128, 2, 1, 1),
    ("b2_1", 128, 128, 128, 1, 1, 1),
    ("b2_2", 128, 128, 128, 1, 1, 1),
    ("b3", 128, 256, 256, 2, 1, 1),
    ("b3_1", 256, 256, 256, 1, 1, 1),
    ("b3_2", 256, 256, 256, 1, 1, 1),
    ("b4", 256, 512, 512, 2, 1, 1),
    *[(f"b4_{i}", 512, 512, 512, 1, 1, 1) for i in range(1, 6)],
    ("b5", 512, 512, 1024, 1, 1, 2),
    ("b5_1", 1024, 512, 1024, 1, 2, 2),
    ("b5_2", 1024, 512, 1024, 1, 2, 2),
]
# Name, input and output channels, dropout.
_BOTTLENECK = [("b6", 1024, 2048, 0.3), ("b7", 2048, 4096, 0.5)]
# Block -> the tap that is the pre-activation of this block.
_TAPS = {"b3": "tap1", "b4": "tap2", "b5": "low", "b6": "mid"}


class Block(nn.Module):
    """A pre-activated block of two 3x3 convolutions.

    Args:
        width: Input, middle and output channels.
        stride: Of the first convolution and of the shortcut.
        first_dilation: Of the first convolution.
        dilation: Of the second convolution.
    """

    def __init__(
        self, width: tuple[int, int, int], *, stride: int, first_dilation: int, dilation: int
    ) -> None:
        super().__init__()
        inputs, middle, outputs = width
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = _conv3(inputs, middle, stride=stride, dilation=first_dilation)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = _conv3(middle, outputs, dilation=dilation)
        if inputs != outputs or stride != 1:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def activate(self, feature: Tensor) -> Tensor:
        """Return the block's pre-activation, ReLU(BatchNorm(input))."""
        return F.relu(self.bn_branch2a(feature))

    def forward(self, feature: Tensor, activated: Tensor) -> Tensor:
        """Compute the block.

        Args:
            feature: (N, in, h, w).
            activated: (N, in, h, w), its pre-activation.

        Returns:
            (N, out, h / stride, w / stride).
        """
        shortcut = self.conv_branch1(activated) if hasattr(self, "conv_branch1") else feature
        branch = self.conv_branch2a(activated)
        return shortcut + self.conv_branch2b1(F.relu(self.bn_branch2b1(branch)))


class Bottleneck(nn.Module):
    """A pre-activated block of a 1x1, a 3x3 and a 1x1 convolution.

    Channel dropout stands before the last two.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        dilation: Of the 3x3 convolution.
        dropout: Probability of zeroing a channel.
    """

    def __init__(self, inputs: int, outputs: int, *, dilation: int, dropout: float) -> None:
        super().__init__()
        narrow, middle = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(narrow)
        self.dropout_2b1 = SeededDropout(dropout, channels=True)
        self.conv_branch2b1 = _conv3(narrow, middle, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(middle)
        self.dropout_2b2 = SeededDropout(dropout, channels=True)
        self.conv_branch2b2 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def activate(self, feature: Tensor) -> Tensor:
        """Return the block's pre-activation, ReLU(BatchNorm(input))."""
        return F.relu(self.bn_branch2a(feature))

    def forward(self, feature: Tensor, activated: Tensor) -> Tensor:
        """Compute the block.

        Args:
            feature: (N, in, h, w); not used, as the shortcut reads the pre-activation too.
            activated: (N, in, h, w), its pre-activation.

        Returns:
            (N, out, h, w).
        """
        del feature
        branch = F.relu(self.bn_branch2b1(self.conv_branch2a(activated)))
        branch = F.relu(self.bn_branch2b2(self.conv_branch2b1(self.dropout_2b1(branch))))
        return self.conv_branch1(activated) + self.conv_branch2b2(self.dropout_2b2(branch))


class ResNet38d(nn.Module):
    """ResNet38-d without its classifier, output stride 8.

    Args:
        width: Divides every channel count (1: the real network, 8: the slim one for tests). The
            first convolution keeps at least 16 channels (see `network.backbones.cpu.pointwise`).
    """

    def __init__(self, *, width: int = 1) -> None:
        super().__init__()
        first = max(64 // width, FEWEST_CHANNELS)
        self.conv1a = _conv3(3, first, dilation=1)
        self.order: list[str] = []
        for name, inputs, middle, outputs, stride, first_dilation, dilation in _PLAIN:
            channels = (
                first if name == "b2" else inputs // width,
                middle // width,
                outputs // width,
            )
            self._add(
                name,
                Block(channels, stride=stride, first_dilation=first_dilation, dilation=dilation),
            )
        for name, inputs, outputs, dropout in _BOTTLENECK:
            self._add(
                name, Bottleneck(inputs // width, outputs // width, dilation=4, dropout=dropout)
            )
        self.bn7 = nn.BatchNorm2d(4096 // width)

    def _add(self, name: str, block: nn.Module) -> None:
        self.add_module(name, block)
        self.order.append(name)

    def forward(self, image: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Compute the taps called `names` of an image (N, 3, H, W), each (N, D, h, w) and >= 0."""
        taps = {}
        feature = self.conv1a(image)
        for name in self.order:
            block = getattr(self, name)
            activated = block.activate(feature)
            if _TAPS.get(name) in names:
                taps[_TAPS[name]] = activated
            feature = block(feature, activated)
        if "high" in names:
            taps["high"] = F.relu(self.bn7(feature))
        return taps


_MXNET_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}


def name_from_mxnet(name: str) -> str:
    """Translate a parameter's name from the MXNet file of the ImageNet ResNet38 to this module's.

    For example, `arg:res2b1_branch2a_weight` becomes `b2_1.conv_branch2a.weight`. Names of another
    form are returned unchanged.
    """
    bare = re.sub(r"^(arg|aux):", "", name)
    if bare == "conv1a_weight":
        return "conv1a.weight"
    found = re.fullmatch(r"bn7_(gamma|beta|moving_mean|moving_var)", bare)
    if found:
        return f"bn7.{_MXNET_NORM[found[1]]}"
    found = re.fullmatch(r"(res|bn)(\d)([ab])(\d*)_(branch\w+?)_(\w+)", bare)
    if not found:
        return name
    kind, stage, letter, index, branch, part = found.groups()
    block = f"b{stage}" + (f"_{index}" if letter == "b" else "")
    if kind == "res":
        return f"{block}.conv_{branch}.{part}"
    return f"{block}.bn_{branch}.{_MXNET_NORM.get(part, part)}"


def _conv3(inputs: int, outputs: int, *, dilation: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )


class ResNet38dBackbone(Backbone):
    """ResNet38-d at full or 1/8 width.

    The taps `low`, `mid` and `high` are what the field calls conv4, conv5 and conv6.
    """

    def __init__(self, name: str, *, width: int) -> None:
        super().__init__()
        self.name = name
        channels = (128, 256, 512, 1024, 4096)
        self.taps = {
            tap: Tap(number // width, stride)
            for tap, number, stride in zip(TAP_NAMES, channels, (2, 4, 8, 8, 8), strict=True)
        }
        self.net = ResNet38d(width=width)
        if width == 1:
            self.max_side = 512  # a photograph takes 3.0 GB at scale 2; 1024 would take about 8
        self.stem = ("net.conv1a.", "net.b2.", "net.b2_1.", "net.b2_2.")

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        return self.net(image, names)

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`."""
        if self.name != "resnet38d":
            return super().published()
        raise ValueError(
            "--weights imagenet: neither torchvision nor timm has resnet38d: "
            "`python -m tool.download weights` fetches its weights, then --weights FILE"
        )


def only_stride(name: str) -> int:
    """Return 8, the only output stride."""
    del name
    return 8


def build(name: str, *, output_stride: int) -> Backbone:
    """Build ResNet38-d at full width, or at an eighth of it for tests; its stride is always 8."""
    del output_stride
    return ResNet38dBackbone(name, width=1 if name == "resnet38d" else 8)
