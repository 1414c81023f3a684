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
    """The three kinds of pairs of cells.

    Each mask is (N, P, h, w) bool and marks a pair at its first cell. A pair with an unknown cell,
    or one that leaves the map, is of no kind.

    Attributes:
        background: Both cells are background.
        foreground: Both cells are of the same foreground class.
        different: The cells are of two classes; background counts as one.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


@torch.no_grad()
def pair_labels(seed: Tensor, pairs: Pairs) -> PairLabels:
    """Return the kinds of the pairs of a seed.

    Args:
        seed: (N, h, w) int64 in 0..K, 255 for unknown.
        pairs: From `pairs_within`.
    """
    first, second = seed[:, None], at_offsets(seed, pairs.offsets, fill=255)
    known = (first != 255) & (second != 255)
    same = known & (first == second)
    return PairLabels(same & (first == 0), same & (first > 0), known & (first != second))


def affinity_losses(affinity: Tensor, labels: PairLabels) -> dict[str, Tensor]:
    """Compute the losses that make pairs of the same label affine and other pairs not.

    Args:
        affinity: (N, P, h, w) in [0, 1]: 1 - the largest edge between the cells.
        labels: The kinds of the pairs.

    Returns:
        `aff_background` and `aff_foreground`, the mean of -log a, and `aff_different`, the mean of
        -log(1 - a). Each is this rank's share of the mean over its pairs of the global batch. It is
        0, attached to the graph, if there are none.
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
    """Compute the losses of the displacements D on pairs of cells i and j.

    Cells of the same object should point to the same place; cells of the background should not
    differ.

    Args:
        displacement: (N, 2, h, w), (y, x) in cells.
        labels: The kinds of the pairs.
        pairs: From `pairs_within`.

    Returns:
        `dp_foreground`, the mean of |D_i - D_j - (j - i)| over foreground pairs, and
        `dp_background`, the mean of |D_i - D_j| over background pairs. Both are means over the two
        axes too, and this rank's shares, as in `affinity_losses`.
    """
    # (N, 2, P, h, w)
    difference = displacement[:, :, None] - at_offsets(displacement, pairs.offsets, fill=0)
    offset = torch.tensor(pairs.offsets, dtype=difference.dtype).T[None, :, :, None, None]
    offset = offset.to(difference.device, non_blocking=True)  # (1, 2, P, 1, 1)
    foreground, background = labels.foreground[:, None], labels.background[:, None]
    off = (difference - offset * foreground).abs()  # serves both: no pair is of both kinds
    return {
        "dp_foreground": _mean(off, foreground.expand_as(off)),
        "dp_background": _mean(off, background.expand_as(off)),
    }


def _mean(value: Tensor, chosen: Tensor) -> Tensor:
    """Return this rank's share of the mean of the chosen values."""
    kept = torch.where(chosen, value, torch.zeros_like(value))
    return global_mean(kept.sum(), chosen.sum().to(value.dtype))
