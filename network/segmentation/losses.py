"""Losses of logits against masks, and the multi-scale logits of DeepLab-v2.

Letters: N batch, K foreground classes, H W pixels, h w cells. Logits are (N, K+1, h, w) with the
background first. A mask is (N, H, W) int64 in 0..K, 255 for unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.losses import image_cells, resize
from tool.parallel.dist import global_mean

LOSSES = ("plain", "balanced")
UNKNOWN = 255


def mask_at(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Reduce a mask to cells: each takes the pixel at its centre.

    Args:
        mask: (N, H, W).
        size: (h, w).

    Returns:
        (N, h, w) of the mask's type. Torch's `nearest` would take the pixel at the cell's corner
        instead, up to a cell beside it.
    """
    small = F.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest-exact")
    return small[:, 0].to(mask.dtype)


def mask_loss(logit: Tensor, mask: Tensor, *, kind: str) -> Tensor:
    """Compute the cross entropy of logits against a mask of their size.

    Args:
        logit: (N, K+1, h, w).
        mask: (N, h, w).
        kind: `plain` or `balanced`; see `plain_cross_entropy` and `balanced_per_image`.
    """
    return (balanced_per_image if kind == "balanced" else plain_cross_entropy)(logit, mask)


def plain_cross_entropy(logit: Tensor, mask: Tensor) -> Tensor:
    """Compute the mean cross entropy over all cells that are known.

    Returns:
        Scalar: this rank's share of the mean over the known cells of the global batch. If there are
        none it is 0, attached to the graph; torch's own mean would be NaN.

    Source: DeepLab-v2 (L.-C. Chen et al., TPAMI 2018).
    """
    loss, known = _per_cell(logit, mask), mask != UNKNOWN
    return global_mean(loss.sum(), known.sum().to(loss.dtype))


def balanced_per_image(logit: Tensor, mask: Tensor) -> Tensor:
    """Compute per image the mean over background plus the mean over foreground cells.

    Returns:
        Scalar: the mean over the images of this rank. The two means are not halved. A kind of cell
        that an image lacks adds 0, attached to the graph.

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
    """Return the inner scales: 1, then down to `smallest` in steps of a quarter.

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
    """Return the logits of an image at several scales, the largest first.

    Args:
        network: Maps images (N, 3, H, W) to logits (N, K+1, h, w).
        image: (N, 3, H, W), normalised.
        scales: At most 1. The image is resized bilinearly.
        multiple: Sides of a smaller copy are multiples of it, rounded down; 1 for any side.
    """
    logits = []
    for scale in scales:
        size = tuple(inner_side(side, scale, multiple) for side in image.shape[-2:])
        logits.append(network(resize(image, size)).float())
    return logits


def inner_side(side: int, scale: float, multiple: int) -> int:
    """Return a side in pixels at an inner scale, rounded down to a multiple."""
    if scale == 1:
        return side
    return max(multiple, math.floor(side * scale) // multiple * multiple)


def maximum_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the maximum (N, K+1, h, w) of logits at several scales, on the first one's grid.

    Source: DeepLab-v2 (TPAMI 2018), section 4.3.
    """
    best = logits[0]
    for logit in logits[1:]:
        best = torch.maximum(best, resize(logit, best.shape[-2:]))
    return best


def foreground_share(logit: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Return the share of the cells inside the image whose best class is not the background.

    A run whose share stays 0 predicts only background.

    Args:
        logit: (N, K+1, h, w).
        valid: (N, 1, H, W) bool, False on padding.

    Returns:
        {"foreground": scalar in [0, 1]}.
    """
    inside = image_cells(valid, logit.shape[-2:])[:, 0]
    foreground = (logit.argmax(dim=1) > 0) & inside
    return {"foreground": foreground.sum() / inside.sum().clamp(min=1)}
