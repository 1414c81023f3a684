"""Cells against class prototypes: PPC's cross-view, pseudo-label and intra-view contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.cells import Cells, class_sizes, cosine, flatten_cells, l2_normalize
from tool.progress import Progress


def prototype_cross_entropy(
    embedding: Tensor,
    cells: Cells,
    positive: Tensor,
    *,
    temperature: float,
    negatives: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy of each cell over cosines to class prototypes.

    One prototype is the cell's positive; the other valid ones are its negatives.

    Args:
        embedding: (N, D, g, g) of this rank; receives the gradient.
        cells: The view whose prototypes are used.
        positive: (N g g,) int64, the positive class of each of this rank's cells; -1 for none.
        temperature: Divides the cosines.
        negatives: (K+1, K+1) bool, which classes are negatives of a positive class; None for all
            others.

    Returns:
        (N g g,) losses, 0 for cells without a valid positive, and (N g g,) bool: which cells have
        one.

    Source: PPC (CVPR 2022), cross-view and intra-view contrast.
    """
    flat = flatten_cells(embedding.float())  # (N g g, D)
    # The positive of each cell, and the prototypes in its denominator.
    index = positive.clamp(min=0)
    has_positive = (positive >= 0) & cells.valid[index]
    allowed = cells.valid.expand(len(flat), -1)  # (N g g, K+1)
    if negatives is not None:
        own = F.one_hot(index, len(cells.valid)).bool()
        allowed = allowed & (negatives[index] | own)
    logit = l2_normalize(flat) @ l2_normalize(cells.prototype).T / temperature  # (N g g, K+1)
    logit = logit.masked_fill(~allowed, -torch.inf)
    # A row without a positive could be -inf throughout, and its gradient NaN.
    logit = torch.where(has_positive[:, None], logit, torch.zeros_like(logit))
    loss = logit.logsumexp(dim=1) - logit.gather(1, index[:, None])[:, 0]
    return torch.where(has_positive, loss, torch.zeros_like(loss)), has_positive


@torch.no_grad()
def intra_weights(cells: Cells, progress: Progress, name: str) -> Tensor:
    """Count how often each cell is a query of PPC's intra-view contrast.

    Half of each class's cells are drawn at random. The hard half is added to them: the 60 % least
    similar to their prototype, without the hardest 10 %.

    Args:
        cells: The view.
        progress: The step, which keys the draw.
        name: Of the draw.

    Returns:
        (T,) float, each value 0, 1 or 2.

    Source: PPC (CVPR 2022), section 3.4.
    """
    size = class_sizes(cells.pseudo, len(cells.valid) - 1)  # (K+1,)
    # The cosine of each cell to the prototype of its pseudo class.
    own = l2_normalize(cells.prototype)[cells.pseudo]  # (T, D)
    similarity = (l2_normalize(cells.embedding) * own).sum(dim=1)  # (T,)
    # Shares of a class become ranks inside it: by the draw, and by cosine, hardest first.
    draw = progress.uniform(name, (len(cells.pseudo),), cells.pseudo.device)
    count = size[cells.pseudo]  # (T,)
    hardness = _rank_in_class(similarity, cells.pseudo, size)
    chosen = (_rank_in_class(draw, cells.pseudo, size) < 0.5 * count).float()
    return chosen + ((hardness >= 0.1 * count) & (hardness < 0.6 * count)).float()


def _rank_in_class(value: Tensor, pseudo: Tensor, size: Tensor) -> Tensor:
    """Return the position (T,) of each cell among those of its class, by ascending `value` (T,)."""
    # Two stable sorts: by value, then by class.
    order = value.argsort(stable=True)
    order = order[pseudo[order].argsort(stable=True)]
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(order)
    rank[order] = place
    return rank - (size.cumsum(0) - size)[pseudo]


@torch.no_grad()
def nearest_prototypes(cells: Cells, *, first: int, last: int) -> Tensor:
    """Choose for each class other classes by the rank of their prototypes' cosine to its own.

    Only classes with a valid prototype are chosen. If there are fewer than `last` of them, all are.

    Args:
        cells: The view.
        first: Rank of the nearest class to choose, from 1.
        last: Rank of the farthest class to choose.

    Returns:
        (K+1, K+1) bool, one row per class.
    """
    similarity = cosine(cells.prototype, cells.prototype)
    other = cells.valid[None] & ~torch.eye(
        len(cells.valid), dtype=torch.bool, device=similarity.device
    )
    similarity = similarity.masked_fill(~other, -torch.inf)
    rank = similarity.argsort(dim=1, descending=True).argsort(dim=1) + 1  # 1 for the nearest
    ranked = other & (rank >= first) & (rank <= last)
    return torch.where(other.sum(dim=1, keepdim=True) < last, other, ranked)
