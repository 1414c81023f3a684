"""How many floating point operations a backbone takes, and what a card could do at most."""

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

# dense bf16 TFLOP/s (of the V100: fp16) by a part of the name that torch gives the card
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "V100": 125, "RTX 4090": 165}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a backbone: the shape (N, 3, H, W) of its image, and the taps asked for."""

    shape: tuple[int, ...]
    taps: tuple[str, ...]


def backbone_flops(
    backbone: Backbone, calls: Sequence[Call], *, backward: bool = True
) -> tuple[int, int]:
    """Return the operations of the forward and of the backward of some calls.

    A multiply-add counts 2. Only convolutions and matrix products count. They are counted on a copy
    without data, so that it is instant and independent of the machine.
    """
    without_data = copy.deepcopy(backbone).to("meta").eval()
    forward = backward_too = 0
    for call, times in Counter(calls).items():
        one, one_backward = flops_of(without_data, call, backward=backward)
        forward += times * one
        backward_too += times * one_backward
    return forward, backward_too


def flops_of(module: nn.Module, call: Call, *, backward: bool) -> tuple[int, int]:
    """Return the operations of the forward and of the backward of one call of a `meta` module."""
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
    """Return the operations of a convolution's gradients, from the shapes of its arguments.

    Each of the two, of the input and of the weight, costs what the forward costs. (torch's own
    count takes a depthwise convolution for a full one.)
    """
    del feature
    wants_feature, wants_weight, _ = rest[-1]
    return 2 * math.prod(grad) * math.prod(weight[1:]) * (wants_feature + wants_weight)


def peak_tflops(device: torch.device, given: float | None) -> float | None:
    """Return the `given` peak, else that of a known card, else None."""
    if given is not None or device.type != "cuda":
        return given
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def share_of_peak(flops: float, milliseconds: float, peak: float | None) -> str:
    """Return in words what was reached, and its share of `peak` TFLOP/s."""
    found = reached(flops, milliseconds, peak)
    share = f"{found['share_of_peak']:.1%} of {peak:g} TFLOP/s" if peak else "give --peak-tflops"
    return f"{found['tflops']:.3g} TFLOP/s; share of peak: {share}"


def reached(flops: float, milliseconds: float, peak: float | None) -> dict[str, float | None]:
    """Return the TFLOP/s, and their share of `peak` TFLOP/s if that is known."""
    tflops = flops / milliseconds / 1e9
    return {"tflops": tflops, "share_of_peak": tflops / peak if peak else None}
