"""Negative regions of interest (NROIs): k-means of background embeddings, and the bank of NROIs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tool.parallel.machine import reading_is_free
from tool.progress import Progress


@torch.no_grad()
def kmeans(
    feature: Tensor, member: Tensor, priority: Tensor, *, clusters: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Cluster the member cells of each image by k-means, all images at once.

    A cluster that becomes empty restarts at the member that is farthest from its nearest centroid.
    A second empty cluster of the image restarts at the second farthest, and so on.

    Args:
        feature: (N, T, D); in this function T is the number of cells of one image.
        member: (N, T) bool, the cells to cluster.
        priority: (N, T) in [0, 1); the members with the highest values are the first centroids.
        clusters: k, the number of clusters per image; lowered to T if it is larger.
        iterations: Number of iterations. It is fixed: k-means does not stop when it converges.

    Returns:
        (N, k, D) centroids, and (N, k) bool: which of them stand for members. The centroids of an
        image with k or fewer members are these members.
    """
    clusters = min(clusters, feature.shape[1])
    feature = feature.contiguous()
    square = feature.square().sum(dim=2)[:, None]  # (N, 1, T)
    # The first centroids are the members with the highest priorities. Cells that are no members
    # have the value 0; they fill up the centroids of an image with fewer than k members.
    value, first = torch.where(member, priority + 1, 0.0).topk(clusters, dim=1)  # (N, k)
    seed = feature.gather(1, first[:, :, None].expand(-1, -1, feature.shape[2]))  # (N, k, D)
    few = (member.sum(dim=1) <= clusters)[:, None, None]  # (N, 1, 1)
    centroid = seed
    for _ in range(iterations):
        # 1. Assign each cell to its nearest centroid, by |c - f|^2 = |c|^2 + |f|^2 - 2 c . f. The
        # axis of clusters comes before that of cells, which is twice as fast.
        length = centroid.square().sum(dim=2, keepdim=True)  # (N, k, 1)
        distance = torch.baddbmm(square + length, centroid, feature.transpose(1, 2), alpha=-2)
        nearest, owner = distance.min(dim=1)  # (N, k, T) -> (N, T)
        # 2. Move each centroid to the mean of its members, which is a product with the matrix that
        # has a 1 where a cluster owns a member.
        assigned = torch.zeros_like(distance)  # (N, k, T)
        assigned = assigned.scatter_(1, owner[:, None], member.to(feature.dtype)[:, None])
        size = assigned.sum(dim=2, keepdim=True)  # (N, k, 1)
        mean = assigned @ feature / size.clamp(min=1)  # (N, k, D)
        empty = size[:, :, 0] == 0  # (N, k)
        if reading_is_free(empty) and not empty.any():
            centroid = mean
            continue
        # 3. Restart the i-th empty cluster of an image at its i-th farthest member.
        farthest = nearest.masked_fill(~member, -torch.inf).topk(clusters, dim=1).indices  # (N, k)
        choice = farthest.gather(1, (empty.cumsum(1) - 1).clamp(min=0))  # (N, k)
        stray = feature.gather(1, choice[:, :, None].expand(-1, -1, feature.shape[2]))  # (N, k, D)
        centroid = torch.where(empty[:, :, None], stray, mean)
    return torch.where(few, seed, centroid), value > 0


@torch.no_grad()
def region_means(
    feature: Tensor, member: Tensor, centroid: Tensor, found: Tensor, embedding: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the mean embedding of each cluster, in another space than that of the clusters.

    Args:
        feature: (N, T, D), the vectors that were clustered; T is the number of cells of one image.
        member: (N, T) bool, the cells that were clustered.
        centroid: (N, k, D), from `kmeans`.
        found: (N, k) bool, which centroids stand for cells, from `kmeans`.
        embedding: (N, T, E), the vectors to average.

    Returns:
        (N, k, E) means, and (N, k) bool: which clusters have a cell. The mean of the others is 0.
    """
    # Assign each cell to the nearest centroid that stands for cells; count only the members.
    # Assign each cell to the nearest centroid that stands for cells. Only members count.
    distance = torch.cdist(centroid, feature).masked_fill(~found[:, :, None], torch.inf)
    owner = distance.argmin(dim=1)  # (N, k, T) -> (N, T)
    assigned = torch.zeros_like(distance).scatter_(1, owner[:, None], 1.0)  # (N, k, T)
    assigned = assigned * (member[:, None] & found[:, :, None])
    size = assigned.sum(dim=2, keepdim=True)  # (N, k, 1)
    return assigned @ embedding / size.clamp(min=1), size[:, :, 0] > 0


class NROIBank(nn.Module):
    """A first-in-first-out ring of embeddings, saved and moved with the model.

    Args:
        size: Q, the number of rows, at least 1.
        width: D.

    Attributes:
        limit: Number of rows that may be used, at most Q. It must not change within a run.

    Raises:
        ValueError: `size` is below 1.
    """

    is_state = True  # state of a run, not weights: exports and `--init` leave it out
    storage: Tensor
    written: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a bank of {size} rows: it needs at least 1")
        self.size = self.limit = size
        # The last row takes the writes of invalid entries. So `enqueue` needs no boolean index,
        # whose size an accelerator would have to report to the host.
        self.register_buffer("storage", torch.zeros(size + 1, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @property
    def filled(self) -> Tensor:
        """Number of rows that hold an embedding, a scalar int64 in 0..limit."""
        return self.written.clamp(max=self.limit)

    @torch.no_grad()
    def enqueue(self, vector: Tensor, valid: Tensor) -> None:
        """Append embeddings; the oldest ones in the bank are overwritten first.

        Args:
            vector: (R, D).
            valid: (R,) bool, which rows to append. If more than `limit` rows are valid, the last
                ones stay.
        """
        # The i-th valid row goes i places behind those written so far, around the ring.
        count, total = valid.cumsum(0), valid.sum()  # (R,), scalar
        # Two rows must not share a place, because which one stays would be undefined. So only the
        # last `limit` rows are written.
        stays = valid & (count > total - self.limit)
        position = torch.where(stays, (self.written + count - 1) % self.limit, self.size)  # (R,)
        self.storage.index_copy_(0, position, vector.to(self.storage.dtype))
        # All other rows went to the spare last row. Clear it, so that the saved state is the same
        # whatever they were.
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
        """Sample embeddings of the bank, uniformly and with replacement.

        Args:
            shape: Shape of the draw.
            progress: The step, which keys the draw.
            name: Name of the draw.
            rows: Indices into the first axis of `shape`. The draw is made for the whole shape, but
                only these embeddings are read.

        Returns:
            (*shape, D) embeddings, of whose first axis only `rows` remain. Zeros while the bank is
            empty.
        """
        draw = progress.uniform(name, shape, self.storage.device)[rows]
        row = (draw * self.filled).long().clamp(max=(self.filled - 1).clamp(min=0))
        return self.storage.index_select(0, row.flatten()).unflatten(0, row.shape)
