"""ResNet-50 with torchvision's weights, in the form that IRN and AMN train.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; IRN (J. Ahn et al.,
CVPR 2019) for the stride, the frozen layers and the norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import torch.nn.functional as F
import torchvision
from torch import Tensor

from network.backbones import TAP_NAMES, Backbone, Tap
from network.norms import fix_statistics

NAMES = ("resnet50",)


def flat_stages(name: str, output_stride: int) -> list[bool]:
    """Return whether each of the last three stages of a ResNet has a stride of 1.

    Args:
        name: Name of the backbone, for the message.
        output_stride: 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"{name} has no output stride {output_stride}: choose 8, 16 or 32")
    return [False, output_stride == 8, output_stride <= 16]


class ResNetBackbone(Backbone):
    """A ResNet of bottleneck blocks; its taps are the stem and four stages.

    Args:
        name: The name on the command line.
        net: The network with torchvision's names. Its last layer is removed.
        output_stride: The stride that `net` has.
    """

    def __init__(self, name: str, net: torchvision.models.ResNet, *, output_stride: int) -> None:
        super().__init__()
        self.name = name
        self.net = net
        del self.net.fc
        strides = (4, 4, 8, min(16, output_stride), output_stride)
        self.taps = {
            tap: Tap(number, stride)
            for tap, number, stride in zip(
                TAP_NAMES, (64, 256, 512, 1024, 2048), strides, strict=True
            )
        }
        self.stem = ("net.conv1.", "net.bn1.")
        self.shallow = ("net.layer1.", "net.layer2.")

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        net = self.net
        feature = net.maxpool(F.relu(net.bn1(net.conv1(image))))
        taps = {"tap1": feature}
        stages = (net.layer1, net.layer2, net.layer3, net.layer4)
        for name, stage in zip(TAP_NAMES[1:], stages, strict=True):
            taps[name] = feature = stage(feature)
        return {name: taps[name] for name in names}


class ResNet50Backbone(ResNetBackbone):
    """ResNet-50 at output stride 8, 16 or 32.

    At stride 16 the last stage has a stride of 1, at stride 8 the last two. As in IRN, no stage is
    dilated in return. With pretrained weights the first convolution is frozen, and every norm keeps
    its statistics and trains its affine map.
    """

    def __init__(self, *, output_stride: int) -> None:
        flat = flat_stages("resnet50", output_stride)
        net = torchvision.models.resnet50(weights=None)
        for stage, is_flat in zip((net.layer2, net.layer3, net.layer4), flat, strict=True):
            if is_flat:
                stage[0].conv2.stride = stage[0].downsample[0].stride = (1, 1)
        super().__init__("resnet50", net, output_stride=output_stride)

    def freeze_norms(self) -> None:
        """See `Backbone.freeze_norms`: only the statistics are constant."""
        fix_statistics(self)

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`: torchvision's IMAGENET1K_V1, from which this field starts."""
        return address_of(torchvision.models.ResNet50_Weights.IMAGENET1K_V1)


def address_of(weights: torchvision.models.WeightsEnum) -> tuple[str, str]:
    """Return the address of weights that torchvision publishes, and a name for the file."""
    return weights.url, PurePosixPath(urlsplit(weights.url).path).name


def build(name: str, *, output_stride: int) -> Backbone:
    """Build ResNet-50 at output stride 8, 16 or 32."""
    del name
    return ResNet50Backbone(output_stride=output_stride)
