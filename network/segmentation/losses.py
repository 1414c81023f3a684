"""Losses of logits with masks, and the multi-scale logits of DeepLab-v2.

Letters: N batch, K foreground classes, H W pixels, h w cells. Logits are (N, K+1, h, w) with the
background first. A mask is (N, H, W) int64 in 0..K, 255 for unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.maps import image_cells, resize
from tool.parallel.dist import global_mean

LOSSES = ("plain", "balanced")
UNKNOWN = 255


def mask_at(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Reduce a mask to cells, each with the value of the pixel at its centre.

    Args:
        mask: (N, H, W).
        size: (h, w), the grid of cells.

    Returns:
        (N, h, w), of the mask's type.
    """
    # Not `nearest`, which would take the pixel at the cell's corner.
    small = F.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest-exact")
    return small[:, 0].to(mask.dtype)


def mask_loss(logit: Tensor, mask: Tensor, *, kind: str) -> Tensor:
    """Compute the cross entropy of logits with a mask of their size.

    Args:
        logit: (N, K+1, h, w).
        mask: (N, h, w).
        kind: `balanced` for `balanced_per_image`; anything else for `plain_cross_entropy`.

    Returns:
        Scalar, as that function returns it.
    """
    return (balanced_per_image if kind == "balanced" else plain_cross_entropy)(logit, mask)


def plain_cross_entropy(logit: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean cross entropy over all cells whose mask is known.

    Args:
        logit: (N, K+1, h, w).
        mask: (N, h, w).

    Returns:
        Scalar: this rank's share of the mean over the known cells of the global batch. If there are
        none, it is 0, attached to the graph, where torch's own mean would be NaN.

    Source: DeepLab-v2 (L.-C. Chen et al., TPAMI 2018).
    """
    loss, known = _per_cell(logit, mask), mask != UNKNOWN
    return global_mean(loss.sum(), known.sum().to(loss.dtype))


def balanced_per_image(logit: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean cross entropy over background cells plus that over foreground cells.

    The two means are taken per image.

    Args:
        logit: (N, K+1, h, w).
        mask: (N, h, w).

    Returns:
        Scalar: the mean over this rank's images of the sum of the two means, which is not halved.
        If an image has no cell of a kind, that mean is 0, attached to the graph.

    Source: DSRG (Z. Huang et al., CVPR 2018), the balanced loss of AdvCAM, RIB and AMN's networks.
    """
    loss, known = _per_cell(logit, mask).flatten(1), (mask != UNKNOWN).flatten(1)
    background = known & (mask == 0).flatten(1)
    means = [
        (loss * kind).sum(dim=1) / kind.sum(dim=1).clamp(min=1)
        for kind in (background, known & ~background)
    ]  # (N,) each
    return (means[0] + means[1]).mean()


def _per_cell(logit: Tensor, mask: Tensor) -> Tensor:
    """Return the cross entropy (N, h, w) of each cell, 0 where the mask is unknown."""
    return F.cross_entropy(logit, mask, ignore_index=UNKNOWN, reduction="none")


def inner_scales(smallest: float) -> tuple[float, ...]:
    """Return the scales from 1 down to `smallest` in steps of a quarter.

    Args:
        smallest: Lower limit of the scales, in (0, 1].

    Raises:
        ValueError: `smallest` is not in (0, 1].
    """
    if not 0 < smallest <= 1:
        raise ValueError(f"inner_scale {smallest:g} is not in (0, 1]")
    steps = math.floor((1 - smallest) / 0.25 + 1e-9)
    return tuple(1 - 0.25 * number for number in range(steps + 1))


def at_inner_scales(
    network: Callable[[Tensor], Tensor], image: Tensor, scales: Sequence[float], *, multiple: int
) -> list[Tensor]:
    """Return the logits of images at several scales.

    Args:
        network: Maps images (N, 3, H, W) to logits (N, K+1, h, w).
        image: (N, 3, H, W), normalised; resized bilinearly to each scale.
        scales: The scales, each in (0, 1].
        multiple: The sides of a smaller copy are rounded down to multiples of this; 1 for any side.

    Returns:
        One (N, K+1, h, w) float32 per scale, in the order of `scales`.
    """
    logits = []
    for scale in scales:
        size = tuple(inner_side(side, scale, multiple) for side in image.shape[-2:])
        logits.append(network(resize(image, size)).float())
    return logits


def inner_side(side: int, scale: float, multiple: int) -> int:
    """Return a side in pixels at an inner scale.

    Args:
        side: Pixels of the image.
        scale: In (0, 1]; with 1 the side is returned as it is.
        multiple: The result is rounded down to a multiple of this, but not below it.
    """
    if scale == 1:
        return side
    return max(multiple, math.floor(side * scale) // multiple * multiple)


def maximum_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the maximum of logits over several scales.

    Args:
        logits: One (N, K+1, h, w) per scale, at least one; resized to the first one's grid.

    Returns:
        (N, K+1, h, w) on the grid of the first scale.

    Source: DeepLab-v2 (TPAMI 2018), section 4.3.
    """
    best = logits[0]
    for logit in logits[1:]:
        best = torch.maximum(best, resize(logit, best.shape[-2:]))
    return best


def foreground_share(logit: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Compute which share of the cells inside the images has another best class than background.

    If it stays 0 in a run, the network predicts nothing but background.

    Args:
        logit: (N, K+1, h, w).
        valid: (N, 1, H, W) bool, False on padding.

    Returns:
        {"foreground": scalar in [0, 1]}, of this rank's images.
    """
    inside = image_cells(valid, logit.shape[-2:])[:, 0]  # (N, h, w)
    foreground = (logit.argmax(dim=1) > 0) & inside
    return {"foreground": foreground.sum() / inside.sum().clamp(min=1)}
