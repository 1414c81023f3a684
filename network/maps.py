"""Sizes and normalisations of maps: from cells to pixels and back, and to [0, 1].

Here is nothing that a method learns by: the losses of maps are in `network.losses`.

Letters: N batch, C channels, K foreground classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-5


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, C, H, W) to (N, C, *size), bilinearly, with `align_corners` False."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def enlarge(maps: Tensor, stride: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Enlarge maps from cells to pixels.

    The h = ceil(H / stride) cells of a column can reach beyond the image. So the maps are enlarged
    to all pixels that the cells cover, and then cropped. If they were resized straight to H, their
    content would be shifted, most at the right and bottom.

    Args:
        maps: (N, C, h, w), on cells of `stride` pixels.
        stride: Pixels per cell and side.
        size: (H, W), the size of the result in pixels. If the cells do not cover it, the maps are
            resized straight to it.

    Returns:
        (N, C, H, W).
    """
    whole = tuple(cells * stride for cells in maps.shape[-2:])
    if any(a < b for a, b in zip(whole, size, strict=True)):
        return resize(maps, size)
    return resize(maps, whole)[..., : size[0], : size[1]]


def resize_cells(maps: Tensor, stride: int, copy: Sequence[int], size: Sequence[int]) -> Tensor:
    """Resize maps from the cells of a scaled copy of an image to the pixels of the image.

    As in `enlarge`, the cells can reach beyond the copy, and what lies beyond it is cropped.

    Args:
        maps: (N, C, h, w), on cells of `stride` pixels of the copy.
        stride: Pixels of the copy per cell and side.
        copy: Height and width of the copy in pixels.
        size: (H, W), height and width of the image in pixels.

    Returns:
        (N, C, H, W).
    """
    if any(cells * stride < part for cells, part in zip(maps.shape[-2:], copy, strict=True)):
        return resize(maps, size)  # a backbone whose cells do not reach the end of the image
    # The factors are a little too large, so that rounding does not lose the last row or column.
    factors = tuple(
        (1 + 1e-6) * stride * whole / part for whole, part in zip(size, copy, strict=True)
    )
    sized = F.interpolate(maps, scale_factor=factors, mode="bilinear", align_corners=False)
    return sized[..., : size[0], : size[1]]


def resize_area(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Reduce maps (N, C, H, W) to (N, C, *size) by averaging the pixels of each cell."""
    return F.adaptive_avg_pool2d(maps, tuple(size))


def at_cells(seed: Tensor, stride: int) -> Tensor:
    """Reduce a seed to one value per cell: that of the pixel at the cell's centre.

    Labels have no mean, so they cannot be averaged.

    Args:
        seed: (N, H, W), of any integer type.
        stride: Pixels per cell and side.

    Returns:
        (N, ceil(H / stride), ceil(W / stride)). Cell i has the value of the pixel
        `stride` * i + `stride` // 2, or of the last pixel if that lies outside.
    """
    rows, columns = (
        torch.arange(stride // 2, length + stride // 2, stride, device=seed.device).clamp(
            max=length - 1
        )
        for length in seed.shape[-2:]
    )
    return seed[:, rows[:, None], columns]


def image_cells(valid: Tensor, size: Sequence[int]) -> Tensor:
    """Find the cells that lie at least half inside the image.

    Args:
        valid: (N, 1, H, W) bool, False on padding.
        size: (h, w).

    Returns:
        (N, 1, h, w) bool.
    """
    return resize_area(valid.float(), size) >= 0.5


def over_maximum(maps: Tensor) -> Tensor:
    """Divide each channel of each image by its maximum plus 1e-5, after a ReLU.

    Args:
        maps: (N, C, h, w).

    Returns:
        (N, C, h, w) in [0, 1).
    """
    maps = F.relu(maps)
    return maps / (maps.amax(dim=(-2, -1), keepdim=True) + _EPS)


def sum_of_mirrors(maps: Tensor) -> Tensor:
    """Add the maps of an image and of its mirror, the latter mirrored back.

    Args:
        maps: (2, C, h, w), those of the image and of its mirror; or (1, C, h, w), those of the
            image alone.

    Returns:
        (C, h, w).
    """
    return maps[0] + maps[1].flip(-1) if len(maps) > 1 else maps[0]


def min_max(maps: Tensor) -> Tensor:
    """Stretch each channel of each image to [0, 1], after a ReLU.

    Args:
        maps: (N, C, h, w).

    Returns:
        (N, C, h, w) in [0, 1); a constant map becomes 0.
    """
    maps = F.relu(maps)
    low = maps.amin(dim=(-2, -1), keepdim=True)
    high = maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + _EPS)


def with_background_label(label: Tensor) -> Tensor:
    """Prepend a 1 for the background to a label (N, K); return (N, K+1, 1, 1)."""
    return F.pad(label, (1, 0), value=1.0)[:, :, None, None]
