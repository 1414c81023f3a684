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
    """Each cell against one prototype of `cells` as positive and the other valid ones as negatives.

    Args:
        embedding: (N, D, g, g) of this rank, receives the gradient.
        cells: the view whose prototypes are used.
        positive: (N g g,) the positive class of each of this rank's cells, -1 for none.
        negatives: (K+1, K+1) bool, which classes are negatives of a positive class; None: all
            others.

    Returns:
        (N g g,) losses, 0 where there is no valid positive, and (N g g,) bool where there is one.

    Source: PPC (CVPR 2022), cross-view and intra-view contrast.
    """
    flat = flatten_cells(embedding.float())
    index = positive.clamp(min=0)
    has = (positive >= 0) & cells.valid[index]
    allowed = cells.valid.expand(len(flat), -1)
    if negatives is not None:
        own = F.one_hot(index, len(cells.valid)).bool()
        allowed = allowed & (negatives[index] | own)
    logit = l2_normalize(flat) @ l2_normalize(cells.prototype).T / temperature
    logit = logit.masked_fill(~allowed, -torch.inf)
    logit = torch.where(has[:, None], logit, torch.zeros_like(logit))
    loss = logit.logsumexp(dim=1) - logit.gather(1, index[:, None])[:, 0]
    return torch.where(has, loss, torch.zeros_like(loss)), has


@torch.no_grad()
def intra_weights(cells: Cells, progress: Progress, name: str) -> Tensor:
    """(T,) how often each cell is a query of PPC's intra-view contrast: 0, 1 or 2.

    Half of each class's cells are drawn at random; to them comes the hard half, the 60 % least
    similar to their prototype without the hardest 10 %.

    Source: PPC (CVPR 2022), section 3.4.
    """
    size = class_sizes(cells.pseudo, len(cells.valid) - 1)
    own = l2_normalize(cells.prototype)[cells.pseudo]
    similarity = (l2_normalize(cells.embedding) * own).sum(dim=1)
    draw = progress.uniform(name, (len(cells.pseudo),), cells.pseudo.device)
    count = size[cells.pseudo]
    hardness = _rank_in_class(similarity, cells.pseudo, size)
    chosen = (_rank_in_class(draw, cells.pseudo, size) < 0.5 * count).float()
    return chosen + ((hardness >= 0.1 * count) & (hardness < 0.6 * count)).float()


def _rank_in_class(value: Tensor, pseudo: Tensor, size: Tensor) -> Tensor:
    """(T,) position of each cell among those of its class, by ascending `value`."""
    order = value.argsort(stable=True)
    order = order[pseudo[order].argsort(stable=True)]
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(order)
    rank[order] = place
    return rank - (size.cumsum(0) - size)[pseudo]


@torch.no_grad()
def nearest_prototypes(cells: Cells, *, first: int, last: int) -> Tensor:
    """(K+1, K+1) bool: each class's valid others of ranks `first`..`last` by cosine, 1 the nearest.

    Where there are fewer than `last` others, all of them.
    """
    similarity = cosine(cells.prototype, cells.prototype)
    other = cells.valid[None] & ~torch.eye(
        len(cells.valid), dtype=torch.bool, device=similarity.device
    )
    similarity = similarity.masked_fill(~other, -torch.inf)
    rank = similarity.argsort(dim=1, descending=True).argsort(dim=1) + 1
    ranked = other & (rank >= first) & (rank <= last)
    return torch.where(other.sum(dim=1, keepdim=True) < last, other, ranked)
