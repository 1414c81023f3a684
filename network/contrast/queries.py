"""Hard queries and the negatives that FBR samples for them."""

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
def hard_cells(cells: Cells, slots: Tensor, *, quantile: float, floor: float) -> Tensor:
    """(P, T) bool: the foreground cells of each class that are not confident.

    Confident is a score above the `quantile` of the scores above `floor` of that image's cells with
    the same pseudo label.
    """
    own = cells.pseudo[None] == slots[:, None] + 1
    score = cells.score.expand_as(own).unflatten(1, (cells.images, -1))
    counted = own.unflatten(1, (cells.images, -1)) & (score > floor)
    scores = torch.where(counted, score, torch.nan)
    limit = torch.nanquantile(scores, quantile, dim=2, keepdim=True)
    return own & ~(score > limit).flatten(1)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Chosen query cells, P class slots of M each.

    Attributes:
        slots: (P,) 0-based classes. cell: (P, M) indices into the global cells. chosen: (P, M)
            bool. As `draw_queries` makes them, a slot's chosen cells come first, and the slots
            with most of them.
    """

    slots: Tensor
    cell: Tensor
    chosen: Tensor

    @functools.cached_property
    def count(self) -> Tensor:
        """(P,) how many are chosen."""
        return self.chosen.sum(dim=1)

    def blocks(self) -> list[tuple[int, int, int]]:
        """(first row, last row + 1, slots) of blocks of (P, M) that hold every chosen query.

        On an accelerator, which is not asked how many are chosen, one block of everything.
        """
        slots, rows = self.chosen.shape
        if not reading_is_free(self.chosen):
            return [(0, rows, slots)]
        counts = self.chosen[:, ::_BLOCK].sum(dim=0).tolist()
        starts = [i * _BLOCK for i, n in enumerate(counts) if not i or n != counts[i - 1]]
        ends = [*starts[1:], rows]
        return [(s, e, counts[s // _BLOCK]) for s, e in zip(starts, ends, strict=True)]


@torch.no_grad()
def draw_queries(
    cells: Cells, candidates: Tensor, slots: Tensor, progress: Progress, name: str, *, cap: int
) -> Queries:
    """At most `cap` of each class's candidate cells (P, T), uniformly without replacement."""
    priority = progress.uniform(name, (len(cells.pseudo),), cells.pseudo.device)
    priority = torch.where(candidates, priority + 1, 0.0)
    value, cell = priority.topk(min(cap, _most(candidates)), dim=1)
    chosen = value > 0
    order = chosen.sum(dim=1).argsort(descending=True, stable=True)
    return Queries(slots[order], cell[order], chosen[order])


def _most(candidates: Tensor) -> int:
    """How many slots a class needs at most; on an accelerator, which is not asked, all T."""
    if reading_is_free(candidates) and len(candidates):
        return max(1, int(candidates.sum(dim=1).max()))
    return candidates.shape[1]


@torch.no_grad()
def foreground_negatives(
    cells: Cells, slots: Tensor, progress: Progress, name: str, *, count: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Cells of other classes, similar classes more often: FBR's active sampling.

    Args:
        slots: (P,) classes whose negatives are wanted.
        count: n, negatives a class. temperature: of the softmax over prototype cosines.

    Returns:
        (P, n) cell indices, and (P,) bool: False where no other class has a cell.

    Source: FBR (TCSVT 2024), intra-foreground contrast; the sampling follows ReCo (S. Liu et al.,
    2022).
    """
    num_classes = len(cells.valid) - 1
    device = cells.pseudo.device
    size = class_sizes(cells.pseudo, num_classes)
    start, order = size.cumsum(0) - size, cells.pseudo.argsort(stable=True)
    usable = (size[slots + 1] > 0) & cells.valid[slots + 1]
    prototype = cells.prototype[slots + 1]
    similarity = cosine(prototype, prototype) / temperature
    same = torch.eye(len(slots), dtype=torch.bool, device=device)
    similarity = similarity.masked_fill(same | ~usable[None], -torch.inf)
    any_other = (usable[None] & ~same).any(dim=1)
    chance = torch.where(any_other[:, None], similarity, 0.0).softmax(dim=1)
    draw = progress.uniform(name, (2, num_classes, count), device)[:, slots]
    ladder = chance.cumsum(1)
    column = torch.searchsorted(ladder / ladder[:, -1:], draw[0].contiguous(), right=True)
    other = slots[column.clamp(max=len(slots) - 1)] + 1
    offset = (draw[1] * size[other]).long().clamp(max=(size[other] - 1).clamp(min=0))
    position = (start[other] + offset).clamp(max=len(order) - 1)
    return order[position], any_other


def query_embedding(
    embedding: Tensor, queries: Queries, progress: Progress
) -> tuple[Tensor, Tensor]:
    """This rank's queries as unit vectors, with gradient.

    Args:
        embedding: (N, D, g, g) of this rank.

    Returns:
        (P, M, D), and (P, M) bool: which are chosen and live on this rank.
    """
    flat = flatten_cells(embedding.float())
    local = queries.cell - progress.rank * len(flat)
    here = queries.chosen & (local >= 0) & (local < len(flat))
    return take(l2_normalize(flat), local.clamp(0, len(flat) - 1)), here
