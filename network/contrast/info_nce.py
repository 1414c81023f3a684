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
    """Compute the InfoNCE loss of each query, once per set of negatives.

    A query is compared with the positive and the negatives of its own class:

        loss = -log(exp(q . p / T) / (exp(q . p / T) + sum_r exp(q . n_r / T))).

    Args:
        query: (P, M, D), unit vectors, as `query_embedding` returns them; receives the gradient.
        positive: (P, D), unit vectors; gets no gradient.
        negatives: The sets, each (P, n, D), unit vectors; get no gradient.
        temperature: T, which divides the cosines; at least 0.03, so that no exponential overflows.
        blocks: The rows to compute, as `Queries.blocks` returns them; None computes all.

    Returns:
        One (P, M) per set, the losses. Outside the blocks their values mean nothing.

    Source: FBR (TCSVT 2024), pixel-to-NROI and intra-foreground contrast.
    Differs from the release: there the cosine runs over the wrong axis and the queries are
    detached.
    """
    if blocks is None:
        blocks = [(0, query.shape[1], len(query))]
    constants = [tensor.detach() for tensor in (positive, *negatives)]
    return _InfoNCE.apply(query, *constants, temperature, blocks).unbind()


class _InfoNCE(torch.autograd.Function):
    """InfoNCE as softplus(log sum_r exp(query . negative_r / T) - query . positive / T).

    This equals the loss of `info_nce`. Cosines over T are within +-1/0.03, so the exponentials
    cannot overflow and no maximum is subtracted. The softmax over the negatives, which autograd
    would store beside the exponentials, is never formed. Instead, `backward` multiplies the
    exponentials with the negatives and scales the rows of the product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, positive: Tensor, *others: Any) -> Tensor:
        """Compute the losses.

        Args:
            ctx: Keeps the tensors for `backward`.
            query: (P, M, D).
            positive: (P, D).
            others: S sets of negatives (P, n, D), the temperature T, and the blocks.

        Returns:
            (S, P, M).
        """
        *negatives, temperature, blocks = others
        scaled = query / temperature
        # Sum the exponentials over the negatives of each set, block by block. The initial ones
        # remain outside the blocks and keep the logarithm finite.
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
        """Compute the gradient of the queries from that of the losses.

        Args:
            ctx: Holds the tensors that `forward` kept.
            gradient: (S, P, M), of the losses.

        Returns:
            (P, M, D) for the queries, and None for every other input: they are constants.
        """
        positive, total, loss, *rest = ctx.saved_tensors
        negatives, weights = rest[: len(total)], iter(rest[len(total) :])
        # With s = log(total) - q . p / T, d loss / d s = sigmoid(s) = 1 - exp(-loss). It is the
        # softmax share of all negatives together.
        share = -gradient * torch.expm1(-loss) / ctx.temperature  # (S, P, M)
        # d s / d q = (sum_r exp(q . n_r / T) n_r / total - p) / T: descent pulls a query to its
        # positive and pushes it from the weighted mean of its negatives.
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
    """Average a value over each class's queries, then over the classes.

    Classes without queries or without negatives do not count.

    Args:
        value: (P, M), one value per query.
        is_local: (P, M) bool, True for the queries of this rank.
        queries: The queries of all ranks.
        has_negative: (P,) bool, which classes have negatives.
        progress: The step, which holds the number of ranks.

    Returns:
        Scalar: this rank's share. The mean of the shares over the ranks is the mean over the global
        batch. It is exactly 0, attached to the graph, if no class counts.
    """
    kept = torch.where(is_local & has_negative[:, None], value, torch.zeros_like(value))
    return class_mean(kept.sum(dim=1) / queries.count.clamp(min=1), queries, has_negative, progress)


def class_mean(value: Tensor, queries: Queries, has_negative: Tensor, progress: Progress) -> Tensor:
    """Average a value over the classes with queries and negatives.

    Args:
        value: (P,), this rank's part of each class's value.
        queries: The queries of all ranks.
        has_negative: (P,) bool, which classes have negatives.
        progress: The step, which holds the number of ranks.

    Returns:
        Scalar: this rank's share of the mean, as for `class_balanced_mean`; 0 if no class counts.
    """
    counted = has_negative & (queries.count > 0)
    return (value * (counted / counted.sum().clamp(min=1))).sum() * progress.world_size


@torch.no_grad()
def mean_query(query: Tensor, is_local: Tensor, queries: Queries) -> Tensor:
    """Compute this rank's part of the mean of each class's queries.

    The parts of all ranks sum to the mean. The product of the mean with a unit vector is the mean
    cosine of the queries with that vector.

    Args:
        query: (P, M, D), unit vectors.
        is_local: (P, M) bool, True for the queries of this rank.
        queries: The queries of all ranks.

    Returns:
        (P, D); 0 for a class without queries of this rank.
    """
    share = is_local / queries.count[:, None].clamp(min=1)
    return (share[:, None] @ query)[:, 0]
