"""IRN's losses: class boundaries and displacements, learned from pairs of confidently seeded cells.

Source: IRN (J. Ahn et al., CVPR 2019), section 4.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from network.walk.random_walk import Pairs, at_offsets
from tool.parallel.dist import global_mean

_EPS = 1e-5


@dataclasses.dataclass(frozen=True)
class PairLabels:
    """Which pairs of cells are what; each (N, P, h, w) bool, at the first cell of the pair.

    Attributes:
        background: both cells are background. foreground: both of one class. different: of two
            classes, background being one. A pair with an unknown cell, or that leaves the map, is
            none of them.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


@torch.no_grad()
def pair_labels(seed: Tensor, pairs: Pairs) -> PairLabels:
    """The labels of the pairs of a seed (N, h, w) int64 in 0..K, 255."""
    first, second = seed[:, None], at_offsets(seed, pairs.offsets, fill=255)
    known = (first != 255) & (second != 255)
    same = known & (first == second)
    return PairLabels(same & (first == 0), same & (first > 0), known & (first != second))


def affinity_losses(affinity: Tensor, labels: PairLabels) -> dict[str, Tensor]:
    """Pairs of one label should be affine, others not.

    Args:
        affinity: (N, P, h, w) in [0, 1], 1 - the largest edge between the cells.

    Returns:
        `aff_background`, `aff_foreground`: mean of -log a; `aff_different`: mean of -log(1 - a),
        each over its pairs of the global batch; 0, attached, where there are none.
    """
    affine, parted = -(affinity + _EPS).log(), -(1 - affinity + _EPS).log()
    return {
        "aff_background": _mean(affine, labels.background),
        "aff_foreground": _mean(affine, labels.foreground),
        "aff_different": _mean(parted, labels.different),
    }


def displacement_losses(
    displacement: Tensor, labels: PairLabels, pairs: Pairs
) -> dict[str, Tensor]:
    """Cells of one object point to one place, those of the background nowhere.

    Args:
        displacement: (N, 2, h, w), (y, x) in cells.

    Returns:
        `dp_foreground`: mean over foreground pairs of |D_i - D_j - (j - i)|; `dp_background`: mean
        over background pairs of |D_i - D_j|; both over the two axes.
    """
    difference = displacement[:, :, None] - at_offsets(displacement, pairs.offsets, fill=0)
    offset = torch.tensor(pairs.offsets, dtype=difference.dtype).T[None, :, :, None, None]
    offset = offset.to(difference.device, non_blocking=True)
    foreground, background = labels.foreground[:, None], labels.background[:, None]
    off = (difference - offset * foreground).abs()  # once for both: no pair is of both kinds
    return {
        "dp_foreground": _mean(off, foreground.expand_as(off)),
        "dp_background": _mean(off, background.expand_as(off)),
    }


def _mean(value: Tensor, chosen: Tensor) -> Tensor:
    """This rank's share of the mean of the chosen values."""
    kept = torch.where(chosen, value, torch.zeros_like(value))
    return global_mean(kept.sum(), chosen.sum().to(value.dtype))
