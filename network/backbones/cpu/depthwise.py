"""Depthwise convolutions with a gradient that is fast on a CPU.

The CPU library computes a dilated or 5x5 depthwise convolution fast, but its gradients slowly. On
an EfficientNet-Lite0 at stride 16 they took half of a training step.

Here the gradient of the input is a convolution like the first, with the kernel turned. That of the
weight is computed on *phases*: with dilation d the cells fall into d x d phases that never meet, so
a plain convolution over N d d maps is the same computation. If the phases are smaller than the
kernel, it is a convolution of the input with the output's gradient as the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones.cpu import is_on_cpu


class DepthwiseConv2d(nn.Conv2d):
    """A drop-in replacement of an eligible `nn.Conv2d`, unchanged on an accelerator."""

    def forward(self, feature: Tensor) -> Tensor:
        """Convolve a map (N, D, h, w), keeping its shape."""
        if not is_on_cpu(feature):
            return super().forward(feature)
        return depthwise(feature, self.weight, self.bias, dilation=self.dilation[0])


def depthwise(feature: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int) -> Tensor:
    """Compute a depthwise convolution of stride 1 that keeps the size.

    Args:
        feature: (N, D, h, w).
        weight: (D, 1, k, k), k odd.
        bias: (D,) or None.
        dilation: Of both axes.

    Returns:
        (N, D, h, w).
    """
    return _Depthwise.apply(feature, weight, bias, dilation)


def replace_depthwise(module: nn.Module) -> None:
    """Replace convolutions inside `module` by `DepthwiseConv2d`, in place.

    Those are replaced whose gradients are slow on a CPU: depthwise ones of stride 1 that keep the
    size, and are dilated or larger than 3x3. Their names and parameters stay.

    Args:
        module: Its submodules are replaced, at any depth. It is not replaced itself.
    """
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _eligible(child):
            replacement = DepthwiseConv2d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,
                padding=child.padding,
                dilation=child.dilation,
                groups=child.groups,
                bias=child.bias is not None,
            )
            replacement.weight, replacement.bias = child.weight, child.bias
            setattr(module, name, replacement)
        else:
            replace_depthwise(child)


class _Depthwise(torch.autograd.Function):
    """The depthwise convolution and its gradients, in float32 also under autocast."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: Any, feature: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(feature, weight)
        ctx.dilation = dilation
        return _same_size(feature, weight, bias, dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of feature, weight and bias, if they are needed."""
        feature, weight = ctx.saved_tensors
        wants_feature, wants_weight, wants_bias, _ = ctx.needs_input_grad
        kernel = weight.shape[-1]
        # Whether a phase has fewer rows or columns than the kernel.
        small = -(-min(feature.shape[-2:]) // ctx.dilation) < kernel
        weight_gradient = _weight_by_convolution if small else _weight_by_phases
        return (
            _same_size(grad, weight.flip(2, 3), None, ctx.dilation) if wants_feature else None,
            weight_gradient(feature, grad, kernel, ctx.dilation) if wants_weight else None,
            grad.sum(dim=(0, 2, 3)) if wants_bias else None,
            None,
        )


def _same_size(feature: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(feature, weight, bias, 1, padding, dilation, len(weight))


def _weight_by_phases(feature: Tensor, grad: Tensor, kernel: int, dilation: int) -> Tensor:
    """Compute the gradient of the weight on phases.

    Args:
        feature: (N, D, h, w), the input.
        grad: (N, D, h, w), the gradient of the output.
        kernel: k.
        dilation: Of the convolution.

    Returns:
        (D, 1, k, k).
    """
    channels = feature.shape[1]
    return torch.ops.aten.convolution_backward(
        _phases(grad, dilation),
        _phases(feature, dilation),
        feature.new_empty(channels, 1, kernel, kernel),
        None,
        [1, 1],
        [kernel // 2] * 2,
        [1, 1],
        False,
        [0, 0],
        channels,
        [False, True, False],
    )[1]


def _phases(feature: Tensor, dilation: int) -> Tensor:
    """Split a map (N, D, h, w) into its phases (N d d, D, h / d, w / d), channels_last.

    If h or w is no multiple of the dilation d, zeros are added at the end.
    """
    if dilation == 1:
        return feature
    height, width = feature.shape[-2:]
    rows, columns = -(-height // dilation), -(-width // dilation)
    extra = (0, 0, 0, columns * dilation - width, 0, rows * dilation - height)
    feature = F.pad(feature.permute(0, 2, 3, 1), extra)  # (N, rows d, columns d, D)
    # (N, rows, d, columns, d, D)
    feature = feature.unflatten(1, (rows, dilation)).unflatten(3, (columns, dilation))
    return feature.permute(0, 2, 4, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _weight_by_convolution(feature: Tensor, grad: Tensor, kernel: int, dilation: int) -> Tensor:
    """Compute the same as `_weight_by_phases`, with the gradient as the kernel.

    Every image and channel has a kernel of its own, so it is a convolution over N D channels.
    """
    images, channels = feature.shape[:2]
    around = [dilation * (kernel // 2)] * 4
    # (1, h + 2 pad, w + 2 pad, N D)
    feature = F.pad(feature.permute(2, 3, 0, 1), [0, 0, 0, 0, *around]).flatten(2)[None]
    grad = grad.flatten(0, 1)[:, None]  # (N D, 1, h, w)
    # (1, N D, k, k)
    per_image = F.conv2d(
        feature.permute(0, 3, 1, 2), grad, None, stride=dilation, groups=images * channels
    )
    return per_image.view(images, channels, kernel, kernel).sum(dim=0)[:, None]


def _eligible(conv: nn.Conv2d) -> bool:
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and conv.dilation[0] == conv.dilation[1]
        and conv.kernel_size[0] == conv.kernel_size[1]
        and (conv.dilation[0] > 1 or conv.kernel_size[0] > 3)
        and conv.stride == (1, 1)
        and conv.padding == same
        and conv.kernel_size[0] % 2 == 1
        and conv.padding_mode == "zeros"
    )
