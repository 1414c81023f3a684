"""1x1 convolutions on a CPU: as a matrix product, and a safe form of thin strided ones.

oneDNN has a bug on processors with AVX-512: in channels_last, the gradient of a 1x1 convolution
with a stride and fewer than 16 input channels writes past its buffer. The process then dies of a
segmentation fault or of a corrupted heap. A strided 1x1 convolution equals one of stride 1 on every
stride-th cell, so the faulty kernel is never needed.
"""

from __future__ import annotations

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from network.backbones.cpu import is_on_cpu

FEWEST_CHANNELS = 16  # input channels from which on oneDNN's kernel is right


class ThinStridedConv2d(nn.Conv2d):
    """A drop-in replacement of a thin strided 1x1 `nn.Conv2d`, unchanged on an accelerator."""

    strides_safely = True

    def forward(self, feature: Tensor) -> Tensor:
        """Map (N, D, h, w) to (N, E, h / stride, w / stride)."""
        if not is_on_cpu(feature):
            return super().forward(feature)
        cells = every_stride(feature, self.stride, self.padding)
        return F.conv2d(cells, self.weight, self.bias, groups=self.groups)


def is_thin_and_strided(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is of the kind that oneDNN may compute wrongly."""
    small = conv.kernel_size == (1, 1) and conv.weight.shape[1] < FEWEST_CHANNELS
    return small and max(conv.stride) > 1


def replace_thin_strides(module: nn.Module) -> None:
    """Replace every thin strided 1x1 convolution inside `module`; names and weights stay.

    Raises:
        ValueError: `module` holds one whose type cannot be replaced.
    """
    for name, child in module.named_children():
        safe = getattr(child, "strides_safely", False)
        if isinstance(child, nn.Conv2d) and is_thin_and_strided(child) and not safe:
            setattr(module, name, _replacement(child))
        else:
            replace_thin_strides(child)


def _replacement(conv: nn.Conv2d) -> ThinStridedConv2d:
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros"
    if not plain and type(conv) is not Conv2dSame:  # of size 1x1, it has nothing to pad
        raise ValueError(
            f"the network holds a {type(conv).__name__} of size 1x1 with stride {conv.stride} and "
            f"{conv.in_channels} input channels, which some CPUs compute wrongly: choose another"
        )
    replacement = ThinStridedConv2d(
        conv.in_channels,
        conv.out_channels,
        1,
        stride=conv.stride,
        padding=(0, 0) if isinstance(conv.padding, str) else conv.padding,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",  # its weights are those of `conv`: no random draw is spent
    )
    replacement.weight, replacement.bias = conv.weight, conv.bias
    return replacement.train(conv.training)


def every_stride(feature: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """Return the cells (N, D, h / stride, w / stride) that a strided 1x1 convolution reads."""
    if any(padding):
        high, wide = padding
        feature = F.pad(feature, (wide, wide, high, high))
    return feature[:, :, :: stride[0], :: stride[1]]


def pointwise(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a 1x1 convolution as one matrix product over cells, which is faster in channels_last.

    Args:
        feature: (N, D, h, w).
        weight: (E, D, 1, 1).
        bias: (E,).

    Returns:
        (N, E, h, w), a view in channels_last.
    """
    return F.linear(feature.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
