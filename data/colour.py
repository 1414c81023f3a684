"""Colour jitter and normalisation of a batch of 8-bit crops, on the device that holds the batch.

Brightness, contrast, saturation and hue are affine in RGB. So the jitter of an image is one matrix,
and it takes one product per pixel instead of four passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from data.fields import FIELDS
from tool.train.batch import Batch

JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
_LUMA = (0.299, 0.587, 0.114)
_GREY = torch.tensor(_LUMA, dtype=torch.float64).expand(3, 3)
_TO_YIQ = torch.tensor(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def draw_jitter() -> Tensor:
    """Draw the jitter of one image from torch's CPU generator.

    The factors of brightness, contrast and saturation are uniform in 1 +- `JITTER`. The turn of the
    hue is uniform in +- `JITTER`.

    Returns:
        (3, 6), as from `jitter_matrix`.
    """
    draws = 2 * torch.rand(len(JITTER), dtype=torch.float64) - 1
    factors = {
        name: width * draw + (name != "hue")
        for (name, width), draw in zip(JITTER.items(), draws.tolist(), strict=True)
    }
    return jitter_matrix(**factors)


def jitter_matrix(
    *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """Compute the matrix that combines the four changes of colour.

    Args:
        brightness: Factor on the pixel.
        contrast: Factor on the distance of the pixel to the mean grey of the image.
        saturation: Factor on the distance of the pixel to its own grey.
        hue: Turn in revolutions.

    Returns:
        (3, 6) float32 [A | B]: a pixel becomes A @ pixel + B @ (mean pixel of the image).

    Differs from torchvision's ColorJitter: nothing is rounded or clipped in between. The hue turns
    about the grey axis of YIQ instead of HSV's hexagon. So all four changes are affine and commute,
    and there is no order to draw.
    """
    one = torch.eye(3, dtype=torch.float64)
    chroma = saturation * one + (1 - saturation) * _GREY
    turned = chroma @ _FROM_YIQ @ _chroma_rotation(hue) @ _TO_YIQ
    of_mean = brightness * (1 - contrast) * _GREY
    return torch.cat([brightness * contrast * turned, of_mean], dim=1).float()


def _chroma_rotation(turn: float) -> Tensor:
    """Return the (3, 3) rotation of the chroma in YIQ by `turn` revolutions."""
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rows = [(1.0, 0.0, 0.0), (0.0, cos, sin), (0.0, -sin, cos)]
    return torch.tensor(rows, dtype=torch.float64)


def jittered(image: Tensor, valid: Tensor, jitter: Tensor) -> Tensor:
    """Jitter each image by its own matrix.

    Args:
        image: (N, 3, H, W) float in [0, 1].
        valid: (N, 1, H, W) bool, the pixels whose mean is the pivot of the contrast.
        jitter: (N, 3, 6), each as from `draw_jitter`.

    Returns:
        (N, 3, H, W), clipped to [0, 1].
    """
    inside = valid.to(image.dtype)
    mean = (image * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)  # (N, 3)
    offset = jitter[:, :, 3:] @ mean[:, :, None]  # (N, 3, 1)
    pixels = torch.baddbmm(offset, jitter[:, :, :3], image.flatten(2))  # (N, 3, H W)
    return pixels.clamp_(0, 1).view(image.shape)


class DeviceTransform:
    """The part of the augmentation that runs on the device: conversion, jitter, normalisation.

    Args:
        mean: Mean of each of the 3 channels of the backbone's input, in [0, 1].
        std: Standard deviation of each of the 3 channels of the backbone's input, in [0, 1].
        device: The device of the batches.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, batch: Batch) -> Batch:
        """Turn a batch of the loader into one that a method sees.

        Args:
            batch: Samples of `data.dataset.TrainDataset`, stacked, on the device.

        Returns:
            The batch that `data.dataset.TrainDataset` documents. The image is 0 on padding.
        """
        raw: dict[str, Any] = dict(batch)
        finished = {key: value for key, value in raw.items() if key != "jitter"}
        image = jittered(raw["image"].float().div_(255), raw["valid"], raw["jitter"])
        normal = image.sub_(self.mean).div_(self.std).mul_(raw["valid"])
        finished["image"] = normal.contiguous(memory_format=torch.channels_last)
        for key in FIELDS.keys() & raw.keys():
            finished[key] = FIELDS[key].finish(raw[key])
        return cast(Batch, finished)
