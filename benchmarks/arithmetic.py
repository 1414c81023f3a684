"""Count the floating point operations of a backbone, and compare them with the peak of a card."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from network.backbones import Backbone

# Peak dense bf16 TFLOP/s (fp16 for the V100), by a part of the card's name in torch.
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "V100": 125, "RTX 4090": 165}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a backbone: the shape (N, 3, H, W) of its image, and the requested taps."""

    shape: tuple[int, ...]
    taps: tuple[str, ...]


def backbone_flops(
    backbone: Backbone, calls: Sequence[Call], *, backward: bool = True
) -> tuple[int, int]:
    """Return the number of operations of the forward and of the backward of some calls.

    A multiply-add counts as 2. Only convolutions and matrix products count. They are counted on a
    copy without data, so that counting is fast and does not depend on the machine.

    Args:
        backbone: The backbone, which is not changed.
        calls: The calls.
        backward: Whether to count the backward; else its number is 0.
    """
    without_data = copy.deepcopy(backbone).to("meta").eval()
    forward = backward_too = 0
    for call, times in Counter(calls).items():
        one, one_backward = flops_of(without_data, call, backward=backward)
        forward += times * one
        backward_too += times * one_backward
    return forward, backward_too


def flops_of(module: nn.Module, call: Call, *, backward: bool) -> tuple[int, int]:
    """Return the operations of the forward and of the backward of one call of a `meta` module.

    Args:
        module: A module on torch's device `meta`.
        call: The call.
        backward: Whether to count the backward; else its number is 0.
    """
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        maps = module(torch.empty(call.shape, device="meta"), call.taps)
        forward = counter.get_total_flops()
        if backward:
            sum(tap.sum() for tap in maps.values()).backward()
    return forward, counter.get_total_flops() - forward


def convolution_backward_flops(
    grad: Sequence[int], feature: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Return the number of operations of a convolution's gradients.

    The gradient of the input and that of the weight each cost as much as the forward. torch's own
    function is not used, because it counts a depthwise convolution as a full one.

    Args:
        grad: Shape of the gradient of the output.
        feature: Shape of the input.
        weight: Shape of the weight.
        rest: The other arguments of the operator. The last one says which gradients it computes: of
            the input, of the weight and of the bias.
    """
    del feature
    wants_feature, wants_weight, _ = rest[-1]
    return 2 * math.prod(grad) * math.prod(weight[1:]) * (wants_feature + wants_weight)


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Return the `given` peak in TFLOP/s, else that of the device if it is known, else None."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def share_of_peak(flops: float, milliseconds: float, peak: float | None) -> str:
    """Return in words the TFLOP/s that were reached, and their share of `peak` TFLOP/s.

    Args:
        flops: Number of operations.
        milliseconds: The time that they took.
        peak: Peak of the device in TFLOP/s; None if it is not known.
    """
    found = reached(flops, milliseconds, peak)
    share = f"{found['share_of_peak']:.1%} of {peak:g} TFLOP/s" if peak else "give --peak-tflops"
    return f"{found['tflops']:.3g} TFLOP/s; share of peak: {share}"


def reached(flops: float, milliseconds: float, peak: float | None) -> dict[str, float | None]:
    """Return the same as numbers; the share is None if the peak is not known."""
    tflops = flops / milliseconds / 1e9
    return {"tflops": tflops, "share_of_peak": tflops / peak if peak else None}
