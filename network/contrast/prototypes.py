"""Cells against class prototypes: PPC's cross-view, pseudo-label and intra-view contrast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.cells import Cells, class_sizes, flatten_cells, l2_normalize
from tool.progress import Progress


def prototype_cross_entropy(
    embedding: Tensor,
    cells: Cells,
    positive: Tensor,
    *,
    temperature: float,
    ranks: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the cross entropy of each cell over cosines to class prototypes.

    One prototype is the cell's positive; the other valid ones, or some of them, are its negatives.

    Args:
        embedding: (N, D, g, g) of this rank; receives the gradient.
        cells: The view whose prototypes are used.
        positive: (N g g,) int64, the positive class of each of this rank's cells; -1 for none.
        temperature: Divides the cosines.
        ranks: First and last rank of the negatives, from 1 for the prototype that is most similar
            to the cell, not counting its positive. None for all others, as where there are fewer.

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
    logit = l2_normalize(flat) @ l2_normalize(cells.prototype).T / temperature  # (N g g, K+1)
    if ranks is not None:
        own = F.one_hot(index, len(cells.valid)).bool()
        allowed = own | of_ranks(logit.detach(), allowed & ~own, *ranks)
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
        (T,) float, each value 0, 1 or 2; 0 on padding.

    Source: PPC (CVPR 2022), section 3.4.
    """
    # Padding counts as a class of its own, so that it is in no share of another.
    classes = len(cells.valid)
    pseudo = torch.where(cells.inside, cells.pseudo, classes)  # (T,) in 0..K+1
    size = class_sizes(pseudo, classes)  # (K+2,)
    # The cosine of each cell to the prototype of its pseudo class.
    own = l2_normalize(cells.prototype)[cells.pseudo]  # (T, D)
    similarity = (l2_normalize(cells.embedding) * own).sum(dim=1)  # (T,)
    # Shares of a class become ranks inside it: by the draw, and by cosine, hardest first.
    draw = progress.uniform(name, (len(pseudo),), pseudo.device)
    count = size[pseudo]  # (T,)
    hardness = _rank_in_class(similarity, pseudo, size)
    chosen = (_rank_in_class(draw, pseudo, size) < 0.5 * count).float()
    hard = (hardness >= 0.1 * count) & (hardness < 0.6 * count)
    return (chosen + hard.float()) * cells.inside


def _rank_in_class(value: Tensor, pseudo: Tensor, size: Tensor) -> Tensor:
    """Return the position (T,) of each cell among those of its class, by ascending `value` (T,)."""
    # Two stable sorts: by value, then by class.
    order = value.argsort(stable=True)
    order = order[pseudo[order].argsort(stable=True)]
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(order)
    rank[order] = place
    return rank - (size.cumsum(0) - size)[pseudo]


def of_ranks(similarity: Tensor, others: Tensor, first: int, last: int) -> Tensor:
    """Choose the entries of each row whose value has a rank in a range.

    Args:
        similarity: (T, C).
        others: (T, C) bool, the entries that count.
        first: Rank of the largest value to choose, from 1.
        last: Rank of the smallest value to choose. A row of fewer entries keeps all of them.

    Returns:
        (T, C) bool.
    """
    order = similarity.masked_fill(~others, -torch.inf).argsort(dim=1, descending=True)
    rank = order.argsort(dim=1) + 1
    ranked = others & (rank >= first) & (rank <= last)
    return torch.where(others.sum(dim=1, keepdim=True) < last, others, ranked)


@torch.no_grad()
def class_balanced(weight: Tensor, pseudo: Tensor, num_classes: int) -> Tensor:
    """Scale weights of cells so that those of each class sum to the same, and all of them to 1.

    Args:
        weight: (T,), not negative.
        pseudo: (T,) int64 in 0..K.
        num_classes: K.

    Returns:
        (T,); zeros if all weights are 0.
    """
    total = weight.new_zeros(num_classes + 1).scatter_add(0, pseudo, weight)  # (K+1,)
    classes = (total > 0).sum().clamp(min=1)
    return weight / total.clamp(min=1e-6)[pseudo] / classes
