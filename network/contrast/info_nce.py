"""InfoNCE of queries, and means over queries and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from network.contrast.queries import Queries
from tool.progress import Progress


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
