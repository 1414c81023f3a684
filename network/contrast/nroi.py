"""Negative regions of interest (NROIs): the k-means of background embeddings, and their bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tool.parallel.machine import reading_is_free
from tool.progress import Progress


@torch.no_grad()
def kmeans(
    feature: Tensor, member: Tensor, priority: Tensor, *, clusters: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Cluster each image's members by k-means, all images at once.

    A cluster that empties takes the member that is farthest from its nearest centroid. A second
    empty cluster of the image takes the second farthest, and so on.

    Args:
        feature: (N, T, D); here T is the number of cells of one image.
        member: (N, T) bool, the cells to cluster.
        priority: (N, T) in [0, 1); the members with the highest values are the first centroids.
        clusters: k; at most T are made.
        iterations: Their number is fixed, whether or not the clusters still change.

    Returns:
        (N, k, D) centroids, and (N, k) bool: which of them stand for members. For an image of k
        members or fewer the centroids are the members themselves.
    """
    clusters = min(clusters, feature.shape[1])
    feature = feature.contiguous()
    square = feature.square().sum(dim=2)[:, None]  # (N, 1, T)
    # The first centroids; an entry with the value 0 is no member and not valid.
    value, first = torch.where(member, priority + 1, 0.0).topk(clusters, dim=1)  # (N, k)
    seed = feature.gather(1, first[:, :, None].expand(-1, -1, feature.shape[2]))  # (N, k, D)
    few = (member.sum(dim=1) <= clusters)[:, None, None]
    centroid = seed
    for _ in range(iterations):
        # Squared distances |c|^2 + |f|^2 - 2 c f. With the clusters' axis before that of the cells
        # this is twice as fast.
        length = centroid.square().sum(dim=2, keepdim=True)  # (N, k, 1)
        distance = torch.baddbmm(square + length, centroid, feature.transpose(1, 2), alpha=-2)
        nearest, owner = distance.min(dim=1)  # (N, k, T) -> (N, T)
        # The mean of the members that each centroid owns, as a product with 0 and 1.
        assigned = torch.zeros_like(distance)
        assigned = assigned.scatter_(1, owner[:, None], member.to(feature.dtype)[:, None])
        size = assigned.sum(dim=2, keepdim=True)  # (N, k, 1)
        mean = assigned @ feature / size.clamp(min=1)  # (N, k, D)
        empty = size[:, :, 0] == 0
        if reading_is_free(empty) and not empty.any():
            centroid = mean
            continue
        # The first empty cluster of an image takes its farthest member, the next one the next.
        farthest = nearest.masked_fill(~member, -torch.inf).topk(clusters, dim=1).indices  # (N, k)
        choice = farthest.gather(1, (empty.cumsum(1) - 1).clamp(min=0))
        stray = feature.gather(1, choice[:, :, None].expand(-1, -1, feature.shape[2]))
        centroid = torch.where(empty[:, :, None], stray, mean)
    return torch.where(few, seed, centroid), value > 0


@torch.no_grad()
def region_means(
    feature: Tensor, member: Tensor, centroid: Tensor, found: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the mean embedding of each cluster's cells, in another space than the clusters'.

    Args:
        feature: (N, T, D), in which the clusters were found.
        member: (N, T) bool, the cells that were clustered.
        centroid: (N, k, D).
        found: (N, k) bool, which centroids stand for cells.
        embedding: (N, T, E).

    Returns:
        (N, k, E) means, and (N, k) bool: which clusters have a cell.
    """
    distance = torch.cdist(centroid, feature).masked_fill(~found[:, :, None], torch.inf)
    owner = distance.argmin(dim=1)  # (N, k, T) -> (N, T)
    assigned = torch.zeros_like(distance).scatter_(1, owner[:, None], 1.0)
    assigned = assigned * (member[:, None] & found[:, :, None])
    size = assigned.sum(dim=2, keepdim=True)  # (N, k, 1)
    return assigned @ embedding / size.clamp(min=1), size[:, :, 0] > 0


class NROIBank(nn.Module):
    """A first-in-first-out ring of embeddings, saved and moved with the model.

    Args:
        size: Q, the number of rows, at least 1.
        width: D.

    Attributes:
        limit: The rows that are used, at most Q. It must not change within a run.

    Raises:
        ValueError: `size` is below 1.
    """

    is_state = True  # state of a run, not weights: exports and `--init` leave it out

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a bank of {size} rows: it needs at least 1")
        self.size = self.limit = size
        # The last row takes the writes of invalid entries, so that writing needs no boolean index.
        self.register_buffer("storage", torch.zeros(size + 1, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """Number of rows in use, a scalar int64."""
        return self.written.clamp(max=self.limit)

    @torch.no_grad()
    def enqueue(self, vector: Tensor, valid: Tensor) -> None:
        """Append embeddings; the oldest ones in the bank are overwritten first.

        Args:
            vector: (R, D).
            valid: (R,) bool, which rows to append. Of more than `limit` valid rows the last ones
                stay.
        """
        count, total = valid.cumsum(0), valid.sum()  # (R,), scalar
        # No two valid rows may share a place: which one stays would be undefined.
        stays = valid & (count > total - self.limit)
        position = torch.where(stays, (self.written + count - 1) % self.limit, self.size)
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
        """Sample rows in use, uniformly and with replacement.

        Args:
            shape: Of the draw.
            progress: The step, which keys the draw.
            name: Of the draw.
            rows: Selects along the first axis of `shape`, after the draw and before any row is
                read.

        Returns:
            (*shape, D) embeddings, the first axis as `rows` selects; zeros while the bank is empty.
        """
        draw = progress.uniform(name, shape, self.storage.device)[rows]
        row = (draw * self.filled).long().clamp(max=(self.filled - 1).clamp(min=0))
        return self.storage.index_select(0, row.flatten()).unflatten(0, row.shape)
