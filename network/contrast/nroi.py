"""Negative regions of interest: k-means of background embeddings, and their bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tool.parallel.machine import reading_is_free
from tool.progress import Progress


@torch.no_grad()
def kmeans(
    feature: Tensor, member: Tensor, priority: Tensor, *, clusters: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """k-means of each image's members, all images at once, a fixed number of iterations.

    Args:
        feature: (N, T, D). member: (N, T) bool. priority: (N, T) in [0, 1): the members with the
            highest ones are the first centroids.
        clusters: k.

    Returns:
        (N, k, D) centroids and (N, k) bool, which of them stand for something. An image of k
        members or fewer gives the members themselves. A cluster that empties takes the member that
        is farthest from its centroid.
    """
    clusters = min(clusters, feature.shape[1])
    feature = feature.contiguous()
    square = feature.square().sum(dim=2)[:, None]
    value, first = torch.where(member, priority + 1, 0.0).topk(clusters, dim=1)
    seed = feature.gather(1, first[:, :, None].expand(-1, -1, feature.shape[2]))
    few = (member.sum(dim=1) <= clusters)[:, None, None]
    centroid = seed
    for _ in range(iterations):
        length = centroid.square().sum(dim=2, keepdim=True)
        distance = torch.baddbmm(square + length, centroid, feature.transpose(1, 2), alpha=-2)
        nearest, owner = distance.min(dim=1)  # (N, k, T): clusters outside, twice as fast
        assigned = torch.zeros_like(distance)
        assigned = assigned.scatter_(1, owner[:, None], member.to(feature.dtype)[:, None])
        size = assigned.sum(dim=2, keepdim=True)
        mean = assigned @ feature / size.clamp(min=1)
        empty = size[:, :, 0] == 0
        if reading_is_free(empty) and not empty.any():
            centroid = mean
            continue
        farthest = nearest.masked_fill(~member, -torch.inf).topk(clusters, dim=1).indices
        choice = farthest.gather(1, (empty.cumsum(1) - 1).clamp(min=0))
        stray = feature.gather(1, choice[:, :, None].expand(-1, -1, feature.shape[2]))
        centroid = torch.where(empty[:, :, None], stray, mean)
    return torch.where(few, seed, centroid), value > 0


class NROIBank(nn.Module):
    """A first-in-first-out ring of embeddings, saved and moved with the model.

    Args:
        size: Q, rows, at least 1. width: D.
    """

    is_state = True  # not weights: exports and `--init` leave it out

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a bank of {size} rows: it needs at least 1")
        self.size = size
        # the last row takes the writes of invalid entries, so that writing needs no boolean index
        self.register_buffer("storage", torch.zeros(size + 1, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """Scalar int64: rows that hold something."""
        return self.written.clamp(max=self.size)

    @torch.no_grad()
    def enqueue(self, vector: Tensor, valid: Tensor) -> None:
        """Append the valid rows of (R, D), oldest out first; of more than Q the last Q stay."""
        count, total = valid.cumsum(0), valid.sum()
        stays = valid & (count > total - self.size)
        position = torch.where(stays, (self.written + count - 1) % self.size, self.size)
        self.storage.index_copy_(0, position, vector.to(self.storage.dtype))
        self.storage[-1].zero_()
        self.written += total

    @torch.no_grad()
    def sample(
        self,
        shape: tuple[int, ...],
        progress: Progress,
        name: str,
        *,
        rows: Tensor | slice = slice(None),
    ) -> Tensor:
        """(*shape, D) rows of the filled part, uniformly, with replacement; zeros while empty.

        `rows` selects along `shape`'s first axis, before anything is read.
        """
        draw = progress.uniform(name, shape, self.storage.device)[rows]
        row = (draw * self.filled).long().clamp(max=(self.filled - 1).clamp(min=0))
        return self.storage.index_select(0, row.flatten()).unflatten(0, row.shape)
