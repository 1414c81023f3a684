"""ResNet-101 with dilated stages, as segmentation networks use it, in two forms.

`resnet101` is torchvision's: a stage has its stride in the first 3x3 convolution. `resnet101_caffe`
is Caffe's: the stride is in the first 1x1 convolution, and the input is in 0..255 without its mean.
Weights of one form load into the other without an error and give wrong features there.
`network.weights.caffe` tells the files apart.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; DeepLab-v2 (L.-C.
Chen et al., TPAMI 2018) for the dilation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import Tensor

from network.backbones import Backbone
from network.backbones.resnet50 import ResNetBackbone, address_of, flat_stages
from tool.formats.cam import strided_size

NAMES = ("resnet101", "resnet101_caffe")


class ResNet101Backbone(ResNetBackbone):
    """ResNet-101 at output stride 8, 16 or 32; a stage without its stride is dilated in return.

    At stride 8 the last two stages are dilated by 2 and 4, at stride 16 the last by 2. The first
    3x3 of such a stage keeps the dilation of the stage before, because it read that grid before
    the stride was left out.
    """

    def __init__(self, name: str, *, output_stride: int) -> None:
        flat = flat_stages(name, output_stride)
        net = torchvision.models.resnet101(weights=None, replace_stride_with_dilation=flat)
        super().__init__(name, net, output_stride=output_stride)

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`: torchvision's IMAGENET1K_V1, from which this field starts."""
        return address_of(torchvision.models.ResNet101_Weights.IMAGENET1K_V1)


class CaffeResNet101Backbone(ResNet101Backbone):
    """ResNet-101 in Caffe's form.

    The stride of a stage lies before its first 3x3. So every 3x3 of a dilated stage is dilated, the
    first one too. The max-pooling rounds up, which adds a row or column to maps of even size. The
    stages compute on it, as the weights were trained; the taps do not contain it, so that a cell is
    `stride` pixels for every size of the image.
    """

    mean = (122.675 / 255, 116.669 / 255, 104.008 / 255)
    std = (1 / 255, 1 / 255, 1 / 255)
    caffe = True

    def __init__(self, name: str, *, output_stride: int) -> None:
        super().__init__(name, output_stride=output_stride)
        self.net.maxpool.ceil_mode = True
        for stage in (self.net.layer2, self.net.layer3, self.net.layer4):
            first, second = stage[0], stage[1]
            first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
            first.conv2.dilation = first.conv2.padding = second.conv2.dilation

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """See `Backbone.forward`."""
        taps = super().forward(image, names)
        for name in names:
            h, w = strided_size(image.shape[-2:], self.taps[name].stride)
            taps[name] = taps[name][..., :h, :w]
        return taps

    def published(self) -> tuple[str, str]:
        """See `Backbone.published`: there are none."""
        return Backbone.published(self)


def build(name: str, *, output_stride: int) -> Backbone:
    """Build ResNet-101 in torchvision's or Caffe's form at output stride 8, 16 or 32."""
    kind = CaffeResNet101Backbone if name == "resnet101_caffe" else ResNet101Backbone
    return kind(name, output_stride=output_stride)
