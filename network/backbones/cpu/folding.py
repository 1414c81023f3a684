"""Frozen BatchNorms folded into the convolutions before them: the same result in one pass.

The fold happens at each call, on the small weight and not on the large map. So the convolution
stays trainable and every parameter keeps its name.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from network.backbones.cpu import is_on_cpu
from network.backbones.cpu.depthwise import DepthwiseConv2d, depthwise
from network.backbones.cpu.pointwise import (
    ThinStridedConv2d,
    every_stride,
    is_thin_and_strided,
    pointwise,
)

FROZEN = (FrozenBatchNormAct2d, FrozenBatchNorm2d)
FOLDABLE = (nn.Conv2d, DepthwiseConv2d, Conv2dSame, ThinStridedConv2d)


class FoldedConv2d(nn.Conv2d):
    """A convolution that includes the frozen norm that followed it; see `fold_frozen_norms`."""

    strides_safely = True

    def take(self, conv: nn.Conv2d, norm: nn.Module) -> FoldedConv2d:
        """Become `conv` followed by `norm`; nothing is copied.

        The weight is the parameter of `conv`. `norm` is not registered as a child here, because it
        stays a child of the parent of `conv`; each call reads its buffers.

        Args:
            conv: One of `FOLDABLE`, without bias. This module has its sizes, stride, padding,
                dilation and groups.
            norm: The frozen norm as a `Folded`, with as many channels as `conv` returns.

        Returns:
            This module.
        """
        self.weight, self.bias = conv.weight, None
        self.depthwise = isinstance(conv, DepthwiseConv2d)
        self.same = isinstance(conv, Conv2dSame)
        self.thin = is_thin_and_strided(conv)
        object.__setattr__(self, "norm", norm)
        return self

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight and the bias of the convolution and the norm in one.

        Returns:
            The weight (C, D / groups, k, k) and the bias (C,), for D input and C output channels.
        """
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    def forward(self, feature: Tensor) -> Tensor:
        """Compute norm(conv(feature)) of a map (N, D, h, w)."""
        weight, bias = self.folded()
        # On a CPU, the faster or safer form of the convolution if it has one.
        if is_on_cpu(feature):
            if self.depthwise:
                return depthwise(feature, weight, bias, dilation=self.dilation[0])
            if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.groups == 1:
                return pointwise(feature, weight, bias)
            if self.thin:
                cells = every_stride(feature, self.stride, self.padding)
                return F.conv2d(cells, weight, bias, groups=self.groups)
        padding = self.padding
        if self.same:
            feature, weight, padding = self._pad_same(feature, weight)
        return F.conv2d(feature, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _pad_same(self, feature: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Apply TensorFlow's padding, which may have one row and one column more at the end.

        If the kernel is depthwise and constant, zeros are put in front of the kernel instead, with
        the same padding of the map on both sides. This needs no copy of the map.

        Returns:
            The map and the weight, padded as needed, and the padding that is left to `F.conv2d`.
        """
        # Rows and columns of padding, of both sides together.
        total = [
            max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            for size, stride, dilation, kernel in zip(
                feature.shape[-2:], self.stride, self.dilation, self.kernel_size, strict=True
            )
        ]
        high, wide = total
        if self.groups > 1 and self.dilation == (1, 1) and not weight.requires_grad:
            weight = F.pad(weight, (wide % 2, 0, high % 2, 0))
            return feature, weight, ((high + 1) // 2, (wide + 1) // 2)
        feature = F.pad(feature, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return feature, weight, (0, 0)


class Folded(nn.Module):
    """The rest of a folded norm: its buffers under their old names, and its activation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.eps = norm.eps
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, feature: Tensor) -> Tensor:
        """Apply the activation, in place if the folded convolution's result needs no gradient.

        With a gradient, working in place on the view that `pointwise` returns would mean copies.
        """
        if hasattr(self.act, "inplace"):
            self.act.inplace = not feature.requires_grad
        return self.act(feature)


def fold_frozen_norms(backbone: nn.Module) -> None:
    """Fold each frozen norm that is registered right after a bias-free convolution of its parent.

    The order of registration need not be that of execution. So the taps of `backbone` are compared
    before and after, under random statistics. If they differ, everything is left as it was.
    """
    norms = [module for module in backbone.modules() if isinstance(module, FROZEN)]
    if not norms:
        return
    buffers = [b for n in norms for b in (n.weight, n.bias, n.running_var, n.running_mean)]
    saved = [buffer.clone() for buffer in buffers]
    generator = torch.Generator().manual_seed(0)
    originals: list[tuple[nn.Module, str, nn.Module]] = []
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        # Random statistics: those of a new norm would hide a fold in the wrong place.
        for buffer in buffers:
            buffer.uniform_(0.5, 1.5, generator=generator)
        for norm in norms:
            norm.running_mean -= 1.0
        # The taps before and after the fold.
        image = torch.rand(1, 3, 64, 64, generator=generator)
        before = backbone(image, tuple(backbone.taps))
        _fold_children(backbone, originals)
        after = backbone(image, tuple(backbone.taps))
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)
    # Undo the fold if it changed a tap.
    if not all(_close(before[name], after[name]) for name in before):
        for parent, name, module in originals:
            setattr(parent, name, module)
    backbone.train(was_training)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


def _fold_children(module: nn.Module, originals: list[tuple[nn.Module, str, nn.Module]]) -> None:
    children = [(n, c) for n, c in module.named_children() if not isinstance(c, nn.Identity)]
    for (name, conv), (norm_name, norm) in itertools.pairwise(children):
        plain = type(conv) in FOLDABLE and conv.bias is None
        if plain and isinstance(norm, FROZEN) and len(norm.weight) == conv.out_channels:
            originals += [(module, name, conv), (module, norm_name, norm)]
            folded_norm = Folded(norm)
            folded = FoldedConv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
                bias=False,
            )
            setattr(module, name, folded.take(conv, folded_norm))
            setattr(module, norm_name, folded_norm)
    for _, child in module.named_children():
        if not isinstance(child, FoldedConv2d):
            _fold_children(child, originals)
