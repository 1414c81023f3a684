"""Pixel contrast: pseudo labels, prototypes, hard queries, negatives, InfoNCE.

Everything that *chooses* (pseudo labels, prototypes, which cells, which negatives) sees the global
batch and carries no gradient; the gradient flows through this rank's query embeddings only.

Letters: N images of this rank, G images of all ranks, K classes, D width, g cells a side, T = G g g
cells,
P class slots, M query slots a class, n negatives. Nothing here asks the device for a number, except
on the CPU, where asking is free: `class_slots`, `draw_queries` and `Queries.blocks` leave out there
what an accelerator computes and masks.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tool import dist
from tool.progress import Progress

_EPS = 1e-5
_BLOCK = 32  # rows of queries: on the CPU a matrix product takes a multiple of these


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast: cosines are divided by temperatures as low as 0.1."""
    return torch.autocast(like.device.type, enabled=False)


def pseudo_labels(score: Tensor, label: Tensor, *, bg_score: float | Tensor) -> Tensor:
    """The class of each cell: the best present class, or 0 where none is above `bg_score`.

    Args:
        score: (G, K, g, g) in [0, 1], the normalised refined CAM.
        label: (G, K).
        bg_score: score of the background, constant or (G, g, g). (A softmax over both would not
            change the argmax.)

    Returns:
        (G, g, g) int64 in 0..K.
    """
    present = score.masked_fill(label[:, :, None, None] == 0, -1.0)
    best, index = present.max(dim=1)
    return torch.where(best > bg_score, index + 1, 0)


def class_prototypes(
    embedding: Tensor, score: Tensor, label: Tensor, *, top: int
) -> tuple[Tensor, Tensor]:
    """One prototype a class: its `top` best cells in the images that have it, weighted by score.

    Args:
        embedding: (G, D, g, g). score: (G, C, g, g) >= 0. label: (G, C): which images may
            contribute.

    Returns:
        (C, D) and (C,) bool: False where the class has no cell with a positive score.

    Source: PPC (Y. Du et al., CVPR 2022), eq. 2. Differs from the releases: images without the
    class contribute nothing.
    """
    allowed = torch.where(label[:, :, None, None] > 0, score, 0.0)
    weight, cell = allowed.transpose(0, 1).flatten(1).topk(top, dim=1)
    chosen = take(by_cell(embedding), cell)
    total = weight.sum(dim=1)
    prototype = (chosen * weight[:, :, None]).sum(dim=1) / total.clamp(min=_EPS)[:, None]
    return prototype, total > 0


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of one view over the global batch, flattened, without gradient.

    Attributes:
        embedding: (T, D). score: (T,) of the cell's own pseudo class, 0 on background. pseudo: (T,)
            in 0..K.
        images: G. prototype: (K+1, D), row 0 the background's. valid: (K+1,) bool.
    """

    embedding: Tensor
    score: Tensor
    pseudo: Tensor
    images: int
    prototype: Tensor
    valid: Tensor

    def local(self, cells: Tensor, progress: Progress) -> Tensor:
        """This rank's slice of a (T, ...) tensor."""
        share = len(cells) // progress.world_size
        return cells[progress.rank * share : (progress.rank + 1) * share]


@torch.no_grad()
def view_cells(
    embedding: Tensor,
    refined_cam: Tensor,
    label: Tensor,
    *,
    bg_score: float | Tensor,
    background: bool,
    top_share: int = 16,
) -> Cells:
    """Gather one view of all ranks and find its pseudo labels and prototypes.

    Args:
        embedding: (N, D, g, g) of this rank.
        refined_cam: (N, K, g, g) foreground channels, normalised to [0, 1] per image and class.
        label: (N, K).
        bg_score: score of the background in the pseudo labels, constant or (N, g, g).
        top_share: a prototype is made of g * g / `top_share` cells.
        background: make a background prototype too, from the cells where every class is lowest;
            else its row is zero and not valid.
    """
    embedding, label = dist.gather(embedding.float()), dist.gather(label)
    score = dist.gather(refined_cam.float()) * label[:, :, None, None]
    if isinstance(bg_score, Tensor):
        bg_score = dist.gather(bg_score.float())
    pseudo = pseudo_labels(score, label, bg_score=bg_score)
    top = max(1, score.shape[-2] * score.shape[-1] // top_share)
    maps = torch.cat([1 - score.amax(1, True), score], dim=1)
    contributes = F.pad(label, (1, 0), value=float(background))
    prototype, valid = class_prototypes(embedding, maps, contributes, top=top)
    own = score.gather(1, (pseudo - 1).clamp(min=0)[:, None])[:, 0] * (pseudo > 0)
    flat = own.flatten(), pseudo.flatten()
    return Cells(by_cell(embedding), *flat, len(label), prototype, valid)


def class_slots(label: Tensor) -> Tensor:
    """(P,) 0-based classes to compute for: those of the batch on the CPU, all K on an accelerator.

    Asking an accelerator which classes are present would stop its stream; absent ones have no query
    and change nothing. The draws are keyed per class, so both give the same result. There is always
    one slot: a batch without any class computes for the first.
    """
    if label.device.type == "cpu":
        present = dist.gather(label).amax(dim=0).nonzero()[:, 0]
        return present if len(present) else present.new_zeros(1)
    return torch.arange(label.shape[1], device=label.device)


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
        if self.chosen.device.type != "cpu":
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
    if candidates.device.type == "cpu" and len(candidates):
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


def info_nce(
    query: Tensor,
    positive: Tensor,
    negatives: Sequence[Tensor],
    *,
    temperature: float,
    blocks: Sequence[tuple[int, int, int]] | None = None,
) -> tuple[Tensor, ...]:
    """InfoNCE of each query against its class's positive and each set of its class's negatives.

    Args:
        query: (P, M, D), unit vectors, as `query_embedding` gives them; receives the gradient.
        positive: (P, D), unit vectors, constant.
        negatives: the sets, each (P, n, D), unit vectors, constant.
        temperature: divides the cosines; at least 0.03, so that no exponential overflows.
        blocks: `Queries.blocks`, the rows that are wanted; None: all.

    Returns:
        (P, M) losses a set; outside the blocks they mean nothing.

    Source: FBR (TCSVT 2024), pixel-to-NROI and intra-foreground contrast.
    Differs from the release: there the cosine runs over the wrong axis and the queries are
    detached.
    """
    if blocks is None:
        blocks = [(0, query.shape[1], len(query))]
    constants = [tensor.detach() for tensor in (positive, *negatives)]
    return _InfoNCE.apply(query, *constants, temperature, blocks).unbind()


class _InfoNCE(torch.autograd.Function):
    """softplus(log sum_r exp(query . negative_r / T) - query . positive / T), a row a set.

    Cosines over T are within +-1/0.03 (`info_nce`), so no maximum has to be subtracted. The softmax
    over the negatives, which autograd would write out once more, is never formed: its product with
    the negatives is scaled row by row.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, positive: Tensor, *others: Any) -> Tensor:
        """(P, M, D), (P, D), S sets of (P, n, D), T, `Queries.blocks` -> (S, P, M)."""
        *negatives, temperature, blocks = others
        scaled = query / temperature
        total = query.new_ones(len(negatives), *query.shape[:2])
        weights = []
        for first, last, slots in blocks:
            rows = scaled[:slots, first:last]
            for sums, negative in zip(total, negatives, strict=True):
                weights.append((rows @ negative[:slots].transpose(1, 2)).exp_())
                torch.sum(weights[-1], dim=2, out=sums[:slots, first:last])
        loss = F.softplus(total.log() - (scaled @ positive[:, :, None])[:, :, 0])
        ctx.save_for_backward(positive, total, loss, *negatives, *weights)
        ctx.temperature, ctx.blocks = temperature, blocks
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """(S, P, M) -> (P, M, D); positives and negatives are constants."""
        positive, total, loss, *rest = ctx.saved_tensors
        negatives, weights = rest[: len(total)], iter(rest[len(total) :])
        share = -gradient * torch.expm1(-loss) / ctx.temperature  # of the softmax: all but positive
        scale, pull = (share / total)[..., None], share.sum(dim=0)[..., None]
        result = positive.new_zeros(*loss.shape[1:], positive.shape[1])
        for first, last, slots in ctx.blocks:
            part = result[:slots, first:last]
            part.addcmul_(positive[:slots, None], pull[:slots, first:last], value=-1)
            for factor, negative in zip(scale, negatives, strict=True):
                push = next(weights) @ negative[:slots]
                part.addcmul_(push, factor[:slots, first:last])
        return result, *(None for _ in range(len(negatives) + 3))


def query_embedding(
    embedding: Tensor, queries: Queries, progress: Progress
) -> tuple[Tensor, Tensor]:
    """This rank's queries as unit vectors, with gradient.

    Args:
        embedding: (N, D, g, g) of this rank.

    Returns:
        (P, M, D), and (P, M) bool: which are chosen and live on this rank.
    """
    flat = by_cell(embedding.float())
    local = queries.cell - progress.rank * len(flat)
    here = queries.chosen & (local >= 0) & (local < len(flat))
    return take(unit(flat), local.clamp(0, len(flat) - 1)), here


def class_balanced_mean(
    value: Tensor, here: Tensor, queries: Queries, usable: Tensor, progress: Progress
) -> Tensor:
    """This rank's share of the mean over a class's queries, then over classes that have any.

    Args:
        value: (P, M). here: (P, M) bool, this rank's queries. usable: (P,) bool, classes with
            negatives.

    Returns:
        Scalar; exactly 0, attached to the graph, when no class is usable.
    """
    kept = torch.where(here & usable[:, None], value, torch.zeros_like(value))
    return class_mean(kept.sum(dim=1) / queries.count.clamp(min=1), queries, usable, progress)


def class_mean(value: Tensor, queries: Queries, usable: Tensor, progress: Progress) -> Tensor:
    """This rank's share of the mean of (P,) `value` over the usable classes that have queries."""
    counted = usable & (queries.count > 0)
    return (value * (counted / counted.sum().clamp(min=1))).sum() * progress.world_size


@torch.no_grad()
def mean_query(query: Tensor, here: Tensor, queries: Queries) -> Tensor:
    """(P, D): this rank's share of the mean of each class's queries (P, M, D).

    A query's mean cosine to any unit vectors is a product with this.
    """
    share = here / queries.count[:, None].clamp(min=1)
    return (share[:, None] @ query)[:, 0]


def class_sizes(pseudo: Tensor, num_classes: int) -> Tensor:
    """(K+1,) how many cells have each pseudo label; on an accelerator without asking it."""
    size = torch.zeros(num_classes + 1, dtype=torch.long, device=pseudo.device)
    return size.scatter_add(0, pseudo, torch.ones_like(pseudo))


def by_cell(maps: Tensor) -> Tensor:
    """(G, D, g, g) -> (G g g, D); no copy where the maps are channels_last."""
    return maps.movedim(1, -1).flatten(0, 2)


def take(matrix: Tensor, index: Tensor) -> Tensor:
    """`matrix[index]`, (A, D) and indices of any shape -> (..., D); three times as fast."""
    return matrix.index_select(0, index.flatten()).unflatten(0, index.shape)


def unit(vector: Tensor) -> Tensor:
    """(..., D) over its length; the gradient of a vanishing vector stays bounded."""
    return F.normalize(vector, dim=-1, eps=1e-4)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(A, D) and (B, D) -> (A, B)."""
    return unit(a) @ unit(b).T
