"""The hard queries of FBR, and the negatives that it samples among cells of other classes."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from network.contrast.cells import Cells, class_sizes, cosine, flatten_cells, l2_normalize, take
from tool.parallel.machine import reading_is_free
from tool.progress import Progress

_BLOCK = 32  # the rows of a block of queries on the CPU are a multiple of this


@torch.no_grad()
def hard_cells(cells: Cells, class_ids: Tensor, *, quantile: float, floor: float) -> Tensor:
    """Find the foreground cells of each class that are not confident.

    A cell is confident if its score is above a quantile. The quantile is taken over the cells of
    the same image that have the same pseudo label and a score above `floor`.

    Args:
        cells: The view.
        class_ids: (P,) 0-based classes.
        quantile: Which quantile, in [0, 1].
        floor: Scores up to this do not count for the quantile.

    Returns:
        (P, T) bool.

    Source: FBR (TCSVT 2024), hard queries.
    """
    own = cells.pseudo[None] == class_ids[:, None] + 1  # (P, T)
    # The quantile of each class and image, over the scores that count.
    score = cells.score.expand_as(own).unflatten(1, (cells.images, -1))  # (P, G, g g)
    counted = own.unflatten(1, (cells.images, -1)) & (score > floor)  # (P, G, g g)
    scores = torch.where(counted, score, torch.nan)
    limit = torch.nanquantile(scores, quantile, dim=2, keepdim=True)  # (P, G, 1)
    # If no score counts, the limit is NaN, no score is above it, and every cell is hard.
    return own & ~(score > limit).flatten(1)


@dataclasses.dataclass(frozen=True)
class Queries:
    """The query cells of P classes, up to M per class.

    Classes with more queries come before those with fewer. In each class the entries that are
    queries come first.

    Attributes:
        class_ids: (P,) 0-based classes.
        cell: (P, M) int64, indices into the cells of the global batch.
        chosen: (P, M) bool, which entries of `cell` are queries.
    """

    class_ids: Tensor
    cell: Tensor
    chosen: Tensor

    @functools.cached_property
    def count(self) -> Tensor:
        """Number of queries of each class, (P,) int64."""
        return self.chosen.sum(dim=1)

    def blocks(self) -> list[tuple[int, int, int]]:
        """Return blocks of the (P, M) entries that together hold every query.

        On an accelerator, where the number of queries is not read, there is one block of all
        entries.

        Returns:
            (first, last, classes) per block, which spans the entries `first` to `last` - 1 of the
            first `classes` classes.
        """
        classes, rows = self.chosen.shape
        if not reading_is_free(self.chosen):
            return [(0, rows, classes)]
        # Cut M into runs of _BLOCK entries. A class with a query in a run has one at its beginning,
        # and the classes that do are the first ones. So this is their number per run.
        counts = self.chosen[:, ::_BLOCK].sum(dim=0).tolist()
        # Adjacent runs with the same number form one block.
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
        candidates: (P, T) bool, the cells that may be queries of a class.
        class_ids: (P,) 0-based classes.
        progress: The step, which keys the draw.
        name: Name of the draw.
        cap: Largest number of queries per class, at least 1.

    Returns:
        The queries. Classes with more of them come first, so `class_ids` is in a new order.
    """
    # Choose the candidates with the highest random priorities. All other cells have 0.
    priority = progress.uniform(name, (len(cells.pseudo),), cells.pseudo.device)
    priority = torch.where(candidates, priority + 1, 0.0)  # (P, T)
    value, cell = priority.topk(min(cap, _most(candidates)), dim=1)  # (P, M)
    chosen = value > 0
    # Sort the classes by their number of queries, on which `Queries.blocks` relies.
    order = chosen.sum(dim=1).argsort(descending=True, stable=True)  # (P,)
    return Queries(class_ids[order], cell[order], chosen[order])


def _most(candidates: Tensor) -> int:
    """Return the largest number of candidates of a class, at least 1; on an accelerator T.

    Args:
        candidates: (P, T) bool.
    """
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

    For a class c, each negative is drawn in two stages: first another class o, with the probability

        softmax over o of cos(prototype_c, prototype_o) / temperature,

    then one of the cells of o, uniformly. Both draws are with replacement.

    Args:
        cells: The view.
        class_ids: (P,) 0-based classes that need negatives. The negatives come from the same
            classes.
        progress: The step, which keys the draw.
        name: Name of the draw.
        count: n, the number of negatives per class.
        temperature: Divides the cosines; a lower one prefers similar classes more.

    Returns:
        (P, n) int64 cell indices, and (P,) bool: False if no other class has both a cell and a
        valid prototype. The indices of such a class mean nothing.

    Source: FBR (TCSVT 2024), intra-foreground contrast; the sampling follows ReCo (S. Liu et al.,
    2022).
    """
    num_classes = len(cells.valid) - 1
    device = cells.pseudo.device
    # 1. Sort the cells by pseudo label, so that those of a label are adjacent; `start` is where
    # each label begins.
    size = class_sizes(cells.pseudo, num_classes)  # (K+1,)
    start, order = size.cumsum(0) - size, cells.pseudo.argsort(stable=True)  # (K+1,), (T,)
    # 2. Compute the probability of each other class. The class itself, and classes without a cell
    # or a prototype, get 0.
    has_prototype = (size[class_ids + 1] > 0) & cells.valid[class_ids + 1]  # (P,)
    prototype = cells.prototype[class_ids + 1]  # (P, D)
    similarity = cosine(prototype, prototype) / temperature  # (P, P)
    same = torch.eye(len(class_ids), dtype=torch.bool, device=device)
    similarity = similarity.masked_fill(same | ~has_prototype[None], -torch.inf)
    # A row without any other class would be -inf throughout and its softmax NaN.
    any_other = (has_prototype[None] & ~same).any(dim=1)  # (P,)
    chance = torch.where(any_other[:, None], similarity, 0.0).softmax(dim=1)  # (P, P)
    # 3. Draw for all K classes, so that the numbers of a class do not depend on which other classes
    # are present.
    draw = progress.uniform(name, (2, num_classes, count), device)[:, class_ids]  # (2, P, n)
    # 4. The first number picks the class: the first whose cumulative probability is above it. The
    # division makes the last one exactly 1 in spite of rounding.
    ladder = chance.cumsum(1)  # (P, P)
    column = torch.searchsorted(ladder / ladder[:, -1:], draw[0].contiguous(), right=True)
    other = class_ids[column.clamp(max=len(class_ids) - 1)] + 1  # (P, n) in 1..K
    # 5. The second number picks a cell of that class.
    offset = (draw[1] * size[other]).long().clamp(max=(size[other] - 1).clamp(min=0))  # (P, n)
    position = (start[other] + offset).clamp(max=len(order) - 1)
    return order[position], any_other


def query_embedding(
    embedding: Tensor, queries: Queries, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Return the embeddings of this rank's queries as unit vectors, with gradient.

    Args:
        embedding: (N, D, g, g) of this rank, with the same N on all ranks; receives the gradient.
        queries: The queries of all ranks, up to M for each of P classes.
        progress: The step. Its `rank` says which cells of the global batch are those of
            `embedding`.

    Returns:
        (P, M, D) float32 vectors, and (P, M) bool: which of them are queries of this rank. The
        others are vectors of arbitrary cells, to be left out.
    """
    flat = flatten_cells(embedding.float())  # (N g g, D)
    local = queries.cell - progress.rank * len(flat)  # index in this rank's cells
    is_local = queries.chosen & (local >= 0) & (local < len(flat))
    return take(l2_normalize(flat), local.clamp(0, len(flat) - 1)), is_local
