"""IRN's losses: class boundaries and displacements, learned from pairs of cells with known seeds.

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
    """Which pairs of cells are of each of three kinds.

    Each mask is (N, P, h, w) bool and marks a pair at its first cell. A pair is of no kind if a
    cell is unknown or the second one lies outside the map.

    Attributes:
        background: Pairs of two background cells.
        foreground: Pairs of two cells of the same foreground class.
        different: Pairs of two cells of different classes. Background counts as a class.
    """

    background: Tensor
    foreground: Tensor
    different: Tensor


@torch.no_grad()
def pair_labels(seed: Tensor, pairs: Pairs) -> PairLabels:
    """Find out of which kind each pair of cells is.

    Args:
        seed: (N, h, w) int64 in 0..K, 255 for unknown.
        pairs: The pairs, from `pairs_within`.

    Returns:
        Three masks (N, P, h, w).
    """
    first, second = seed[:, None], at_offsets(seed, pairs.offsets, fill=255)
    known = (first != 255) & (second != 255)
    same = known & (first == second)
    return PairLabels(same & (first == 0), same & (first > 0), known & (first != second))


def affinity_losses(affinity: Tensor, labels: PairLabels) -> dict[str, Tensor]:
    """Compute the losses that raise the affinity of cells of one class and lower that of others.

    Args:
        affinity: (N, P, h, w) in [0, 1], 1 minus the largest edge between the cells, as
            `path_affinity` returns it; receives the gradient.
        labels: The kinds of the pairs.

    Returns:
        {name: scalar}. With the affinity a, `aff_background` and `aff_foreground` are the mean of
        -log a over pairs of their kind, and `aff_different` is the mean of -log(1 - a). Each is
        this rank's share of the mean over the global batch, and 0, attached to the graph, if there
        is no such pair.

    Source: IRN (CVPR 2019), the losses of the class boundary map.
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

    Near cells of the same class should point to the same place, i + D_i = j + D_j. Near cells of
    the background should have the same displacement.

    Args:
        displacement: (N, 2, h, w), (y, x) in cells; receives the gradient.
        labels: The kinds of the pairs.
        pairs: The pairs, from `pairs_within`.

    Returns:
        {name: scalar}: `dp_foreground`, the mean of |D_i - D_j - (j - i)| over foreground pairs,
        and `dp_background`, the mean of |D_i - D_j| over background pairs. Both are means over the
        two axes, too, and this rank's shares, as in `affinity_losses`.

    Source: IRN (CVPR 2019), the losses of the displacement field.
    """
    # D_i - D_j of every pair, (N, 2, P, h, w).
    difference = displacement[:, :, None] - at_offsets(displacement, pairs.offsets, fill=0)
    # j - i is the same for all pairs of an offset.
    offset = torch.tensor(pairs.offsets, dtype=difference.dtype).T[None, :, :, None, None]
    offset = offset.to(difference.device, non_blocking=True)  # (1, 2, P, 1, 1)
    foreground, background = labels.foreground[:, None], labels.background[:, None]
    # One tensor for both terms, because no pair is of both kinds: j - i is subtracted from
    # foreground pairs only.
    off = (difference - offset * foreground).abs()
    return {
        "dp_foreground": _mean(off, foreground.expand_as(off)),
        "dp_background": _mean(off, background.expand_as(off)),
    }


def _mean(value: Tensor, chosen: Tensor) -> Tensor:
    """Return this rank's share of the mean of the chosen values over the global batch."""
    kept = torch.where(chosen, value, torch.zeros_like(value))
    return global_mean(kept.sum(), chosen.sum().to(value.dtype))
