"""Dilated depthwise convolution as a plain one on the phases of its input.

The CPU library has no fast backward for a dilated depthwise convolution: on an EfficientNet-Lite0
at
stride 16 four of them took over 40 % of a training step. With dilation d the cells fall into d x d
phases
that never meet, so that a plain convolution over N d d images of phases is the same computation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PhasedConv2d(nn.Conv2d):
    """A drop-in for an eligible `nn.Conv2d`; on an accelerator it is that convolution."""

    def forward(self, feature: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, D, h, w)."""
        if feature.device.type != "cpu":
            return super().forward(feature)
        return depthwise_phases(feature, self.weight, self.bias, dilation=self.dilation[0])


def depthwise_phases(
    feature: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int
) -> Tensor:
    """The dilated depthwise convolution of stride 1 that keeps the size.

    Args:
        feature: (N, D, h, w). weight: (D, 1, k, k), k odd. bias: (D,) or None.

    Returns:
        (N, D, h, w), channels_last.
    """
    height, width = feature.shape[-2:]
    rows, columns = -(-height // dilation), -(-width // dilation)
    feature = feature.permute(0, 2, 3, 1)
    extra = (0, 0, 0, columns * dilation - width, 0, rows * dilation - height)
    feature = F.pad(feature, extra).unflatten(1, (rows, dilation)).unflatten(3, (columns, dilation))
    phases = feature.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)
    padding = tuple(size // 2 for size in weight.shape[-2:])
    phases = F.conv2d(phases, weight, bias, padding=padding, groups=len(weight))
    merged = phases.permute(0, 2, 3, 1).unflatten(0, (-1, dilation, dilation))
    merged = merged.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)
    return merged[:, :height, :width].permute(0, 3, 1, 2)


def phase_depthwise(module: nn.Module) -> None:
    """Replace every dilated depthwise convolution of stride 1 that keeps its size."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _eligible(child):
            phased = PhasedConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                padding=child.padding,
                dilation=child.dilation,
                groups=child.groups,
                bias=child.bias is not None,
            )
            phased.weight, phased.bias = child.weight, child.bias
            setattr(module, name, phased)
        else:
            phase_depthwise(child)


def _eligible(conv: nn.Conv2d) -> bool:
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (
        conv.groups == conv.in_channels > 1
        and conv.dilation[0] == conv.dilation[1] > 1
        and conv.stride == (1, 1)
        and conv.padding == same
        and all(size % 2 for size in conv.kernel_size)
        and conv.padding_mode == "zeros"
    )
