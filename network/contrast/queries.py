"""Hard queries, and the negatives that FBR samples for them."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from network.contrast.cells import Cells, class_sizes, cosine, flatten_cells, l2_normalize, take
from tool.parallel.machine import reading_is_free
from tool.progress import Progress

_BLOCK = 32  # rows of queries: on the CPU a matrix product takes a multiple of these


@torch.no_grad()
def hard_cells(cells: Cells, class_ids: Tensor, *, quantile: float, floor: float) -> Tensor:
    """Find the foreground cells of each class that are not confident.

    A cell is confident if its score exceeds a quantile. The quantile is taken over the cells of the
    same image with the same pseudo label and a score above `floor`.

    Args:
        cells: The view.
        class_ids: (P,) 0-based classes.
        quantile: In [0, 1].
        floor: Scores up to this do not count for the quantile.

    Returns:
        (P, T) bool.
    """
    own = cells.pseudo[None] == class_ids[:, None] + 1  # (P, T)
    # The quantile of each image and class, in the scores that count.
    score = cells.score.expand_as(own).unflatten(1, (cells.images, -1))  # (P, G, g g)
    counted = own.unflatten(1, (cells.images, -1)) & (score > floor)
    scores = torch.where(counted, score, torch.nan)
    limit = torch.nanquantile(scores, quantile, dim=2, keepdim=True)  # (P, G, 1)
    # Without any score that counts the limit is NaN, and every cell is hard.
    return own & ~(score > limit).flatten(1)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Chosen query cells, M for each of P classes.

    `draw_queries` puts the chosen cells of a class first, and the classes with most of them first.

    Attributes:
        class_ids: (P,) 0-based classes.
        cell: (P, M) int64, indices into the global cells.
        chosen: (P, M) bool, which entries of `cell` are queries.
    """

    class_ids: Tensor
    cell: Tensor
    chosen: Tensor

    @functools.cached_property
    def count(self) -> Tensor:
        """Number of chosen cells of each slot, (P,)."""
        return self.chosen.sum(dim=1)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return blocks of (P, M) that hold every chosen query.

        On an accelerator the number of chosen queries is not read. There the only block holds
        everything.

        Returns:
            (first, last, classes) of each block: it spans entries `first` to `last` - 1 of M, in
            the first `classes` of P.
        """
        classes, rows = self.chosen.shape
        if not reading_is_free(self.chosen):
            return [(0, rows, classes)]
        # How many classes still have queries at the beginning of each run of _BLOCK rows.
        counts = self.chosen[:, ::_BLOCK].sum(dim=0).tolist()
        # Runs with the same number form one block.
        starts = [i * _BLOCK for i, n in enumerate(counts) if not i or n != counts[i - 1]]
        ends = [*starts[1:], rows]
        return [(s, e, counts[s // _BLOCK]) for s, e in zip(starts, ends, strict=True)]


@torch.no_grad()
def draw_queries(
    cells: Cells, candidates: Tensor, class_ids: Tensor, progress: Progress, name: str, *, cap: int
) -> Queries:
    """Sample queries among each class's candidates, uniformly and without replacement.

    Args:
        cells: The view.
        candidates: (P, T) bool.
        class_ids: (P,) 0-based classes.
        progress: The step, which keys the draw.
        name: Of the draw.
        cap: Queries per class at most.

    Returns:
        The queries; the classes with most of them come first.
    """
    # The candidates with the highest random priorities; all others have 0.
    priority = progress.uniform(name, (len(cells.pseudo),), cells.pseudo.device)
    priority = torch.where(candidates, priority + 1, 0.0)  # (P, T)
    value, cell = priority.topk(min(cap, _most(candidates)), dim=1)  # (P, M)
    chosen = value > 0
    # `Queries.blocks` relies on this order.
    order = chosen.sum(dim=1).argsort(descending=True, stable=True)
    return Queries(class_ids[order], cell[order], chosen[order])


def _most(candidates: Tensor) -> int:
    """Return how many candidates (P, T) a class has at most, or T on an accelerator."""
    if reading_is_free(candidates) and len(candidates):
        return max(1, int(candidates.sum(dim=1).max()))
    return candidates.shape[1]


@torch.no_grad()
def foreground_negatives(
    cells: Cells,
    class_ids: Tensor,
    progress: Progress,
    name: str,
    *,
    count: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Sample cells of other classes, of similar classes more often: FBR's active sampling.

    Args:
        cells: The view.
        class_ids: (P,) 0-based classes that need negatives; only they are sampled from, too.
        progress: The step, which keys the draw.
        name: Of the draw.
        count: n, negatives per class.
        temperature: Divides the cosines of prototypes; a softmax over them gives the chances.

    Returns:
        (P, n) cell indices, and (P,) bool: False if no other class has both a cell and a valid
        prototype.

    Source: FBR (TCSVT 2024), intra-foreground contrast; the sampling follows ReCo (S. Liu et al.,
    2022).
    """
    num_classes = len(cells.valid) - 1
    device = cells.pseudo.device
    # The cells sorted by pseudo label, and where each label begins among them.
    size = class_sizes(cells.pseudo, num_classes)  # (K+1,)
    start, order = size.cumsum(0) - size, cells.pseudo.argsort(stable=True)  # (K+1,), (T,)
    # The chance of each other class, by the cosine of the prototypes.
    has_prototype = (size[class_ids + 1] > 0) & cells.valid[class_ids + 1]  # (P,)
    prototype = cells.prototype[class_ids + 1]
    similarity = cosine(prototype, prototype) / temperature  # (P, P)
    same = torch.eye(len(class_ids), dtype=torch.bool, device=device)
    similarity = similarity.masked_fill(same | ~has_prototype[None], -torch.inf)
    any_other = (has_prototype[None] & ~same).any(dim=1)  # (P,); without any, the row would be -inf
    chance = torch.where(any_other[:, None], similarity, 0.0).softmax(dim=1)
    # The draws are made for all K classes, so that those of a class do not depend on the others.
    draw = progress.uniform(name, (2, num_classes, count), device)[:, class_ids]  # (2, P, n)
    # The first draw picks the class, on the cumulated chances.
    ladder = chance.cumsum(1)
    column = torch.searchsorted(ladder / ladder[:, -1:], draw[0].contiguous(), right=True)
    other = class_ids[column.clamp(max=len(class_ids) - 1)] + 1  # (P, n) in 1..K
    # The second one picks a cell of that class.
    offset = (draw[1] * size[other]).long().clamp(max=(size[other] - 1).clamp(min=0))
    position = (start[other] + offset).clamp(max=len(order) - 1)
    return order[position], any_other


def query_embedding(
    embedding: Tensor, queries: Queries, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Return the embeddings of this rank's queries as unit vectors, with gradient.

    Args:
        embedding: (N, D, g, g) of this rank.
        queries: The queries of all ranks.
        progress: The step, which knows the rank.

    Returns:
        (P, M, D) vectors, and (P, M) bool: which of them are chosen queries of this rank. The
        others mean nothing.
    """
    flat = flatten_cells(embedding.float())  # (N g g, D)
    local = queries.cell - progress.rank * len(flat)  # index in this rank's cells
    is_local = queries.chosen & (local >= 0) & (local < len(flat))
    return take(l2_normalize(flat), local.clamp(0, len(flat) - 1)), is_local
