"""The InfoNCE loss of queries, and means over queries and classes."""

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
    """Compute the InfoNCE loss of each query, once for each set of negatives.

    A query is compared with the positive of its class and with the negatives of its class.

    Args:
        query: (P, M, D), unit vectors, as `query_embedding` returns them; receives the gradient.
        positive: (P, D), unit vectors, constant.
        negatives: The sets, each (P, n, D), unit vectors, constant.
        temperature: Divides the cosines; at least 0.03, so that no exponential overflows.
        blocks: The rows to compute, as `Queries.blocks` returns them; None computes all.

    Returns:
        (P, M) losses per set. Outside the blocks their values mean nothing.

    Source: FBR (TCSVT 2024), pixel-to-NROI and intra-foreground contrast.
    Differs from the release: there the cosine runs over the wrong axis and the queries are
    detached.
    """
    if blocks is None:
        blocks = [(0, query.shape[1], len(query))]
    constants = [tensor.detach() for tensor in (positive, *negatives)]
    return _InfoNCE.apply(query, *constants, temperature, blocks).unbind()


class _InfoNCE(torch.autograd.Function):
    """The loss softplus(log sum_r exp(query . negative_r / T) - query . positive / T) per set.

    Cosines over T are within +-1/0.03 (see `info_nce`), so no maximum has to be subtracted. The
    softmax over the negatives, which autograd would store once more, is never formed. Instead, the
    product of the exponentials with the negatives is scaled row by row.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, positive: Tensor, *others: Any) -> Tensor:
        """Compute the losses.

        Args:
            ctx: Keeps what `backward` needs.
            query: (P, M, D).
            positive: (P, D).
            others: S sets of negatives (P, n, D), the temperature T, and the blocks.

        Returns:
            (S, P, M).
        """
        *negatives, temperature, blocks = others
        scaled = query / temperature
        # Sums of exponentials; the ones outside the blocks keep the logarithm finite.
        total = query.new_ones(len(negatives), *query.shape[:2])  # (S, P, M)
        weights = []  # the exponentials, one tensor per block and set
        for first, last, classes in blocks:
            rows = scaled[:classes, first:last]  # (classes, rows, D)
            for sums, negative in zip(total, negatives, strict=True):
                similarity = rows @ negative[:classes].transpose(1, 2)  # (classes, rows, n)
                weights.append(similarity.exp_())
                torch.sum(weights[-1], dim=2, out=sums[:classes, first:last])
        # -log of the softmax share of the positive, as a softplus.
        loss = F.softplus(total.log() - (scaled @ positive[:, :, None])[:, :, 0])
        ctx.save_for_backward(positive, total, loss, *negatives, *weights)
        ctx.temperature, ctx.blocks = temperature, blocks
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Turn the gradient (S, P, M) of the losses into that of the queries, (P, M, D).

        Positives and negatives are constants and get none.
        """
        positive, total, loss, *rest = ctx.saved_tensors
        negatives, weights = rest[: len(total)], iter(rest[len(total) :])
        # 1 - exp(-loss) is the softmax share of all negatives together, the slope of the softplus.
        share = -gradient * torch.expm1(-loss) / ctx.temperature  # (S, P, M)
        # A query is pulled to its positive and pushed from the weighted mean of its negatives.
        scale, pull = (share / total)[..., None], share.sum(dim=0)[..., None]
        result = positive.new_zeros(*loss.shape[1:], positive.shape[1])  # (P, M, D)
        for first, last, classes in ctx.blocks:
            part = result[:classes, first:last]  # (classes, rows, D)
            part.addcmul_(positive[:classes, None], pull[:classes, first:last], value=-1)
            for factor, negative in zip(scale, negatives, strict=True):
                push = next(weights) @ negative[:classes]  # (classes, rows, D)
                part.addcmul_(push, factor[:classes, first:last])
        return result, *(None for _ in range(len(negatives) + 3))


def class_balanced_mean(
    value: Tensor, is_local: Tensor, queries: Queries, has_negative: Tensor, progress: Progress
) -> Tensor:
    """Compute this rank's share of the mean over each class's queries, then over classes.

    The mean of all ranks' shares is the mean over the global batch. Classes without queries or
    negatives do not count.

    Args:
        value: (P, M), of every query.
        is_local: (P, M) bool, this rank's queries.
        queries: The queries of all ranks.
        has_negative: (P,) bool, classes with negatives.
        progress: The step.

    Returns:
        Scalar; exactly 0, attached to the graph, if no class has negatives.
    """
    kept = torch.where(is_local & has_negative[:, None], value, torch.zeros_like(value))
    return class_mean(kept.sum(dim=1) / queries.count.clamp(min=1), queries, has_negative, progress)


def class_mean(value: Tensor, queries: Queries, has_negative: Tensor, progress: Progress) -> Tensor:
    """Compute this rank's share of the mean of `value` over classes with negatives and queries.

    Args:
        value: (P,), this rank's part of each class's value.
        queries: The queries of all ranks.
        has_negative: (P,) bool, classes with negatives.
        progress: The step.

    Returns:
        Scalar; 0 when no class counts.
    """
    counted = has_negative & (queries.count > 0)
    return (value * (counted / counted.sum().clamp(min=1))).sum() * progress.world_size


@torch.no_grad()
def mean_query(query: Tensor, is_local: Tensor, queries: Queries) -> Tensor:
    """Compute this rank's part of the mean of each class's queries.

    The mean cosine of a class's queries to a unit vector is the product of that vector with the
    mean, summed over all ranks.

    Args:
        query: (P, M, D), unit vectors.
        is_local: (P, M) bool, this rank's queries.
        queries: The queries of all ranks.

    Returns:
        (P, D).
    """
    share = is_local / queries.count[:, None].clamp(min=1)
    return (share[:, None] @ query)[:, 0]
