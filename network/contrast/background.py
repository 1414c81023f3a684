"""The background of a view: its losses `bg_seg` and `bg_sim`, and the NROIs among its cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.cells import Cells
from network.contrast.nroi import kmeans, region_means
from network.contrast.nroi_config import NroiConfig
from network.maps import image_cells, over_maximum
from tool.parallel.dist import global_mean
from tool.progress import Progress


@dataclasses.dataclass(frozen=True)
class RegionView:
    """The cells of one view in which NROIs are found, without gradient.

    Attributes:
        feature: (N, C, h, w), the vectors to cluster: Z_bg, or the normalised features.
        background: (N, h, w) bool, the cells to cluster.
        embedding: (N, D, h, w), Z_fg.
    """

    feature: Tensor
    background: Tensor
    embedding: Tensor


def background_cells(cells: Cells, progress: Progress) -> Tensor:
    """Return which of this rank's cells are background and not padding.

    Args:
        cells: One view of the global batch.
        progress: The step, which holds the rank.

    Returns:
        (N g g,) bool.
    """
    return cells.local((cells.pseudo == 0) & cells.inside, progress)


def segmentation_loss(
    logit: Tensor, activation: Tensor, label: Tensor, valid: Tensor, *, threshold: float
) -> Tensor:
    """Compute `bg_seg`: phi_seg finds the cells where hardly any class of the image is active.

    Args:
        logit: (N, 1, h, w), the output of `BackgroundSegmentation`.
        activation: (N, K, h, w), score maps of the classes; gets no gradient.
        label: (N, K), image-level {0, 1}.
        valid: (N, 1, H, W) bool, False on padding.
        threshold: A cell is background if the CAMs of the image's classes sum to less than this.

    Returns:
        Scalar: this rank's share of the mean binary cross entropy over the cells that are not
        padding.

    Source: FBR (TCSVT 2024), background segmentation.
    """
    cam = over_maximum(activation.detach()) * label[:, :, None, None]  # (N, K, h, w)
    target = (cam.sum(dim=1, keepdim=True) < threshold).float()
    logit = logit.float()  # (N, 1, h, w)
    loss = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    inside = image_cells(valid, logit.shape[-2:])  # (N, 1, h, w)
    return global_mean((loss * inside).sum(), inside.sum())


def similarity_loss(embedding: Tensor, normalised: Tensor, valid: Tensor) -> Tensor:
    """Compute `bg_sim`: the mean over cells of the cosine between Z_fg and the normalised Z_bg.

    Args:
        embedding: (N, D, h, w), Z_fg.
        normalised: (N, D, h, w), the result of `BackgroundSegmentation.normalised`.
        valid: (N, 1, H, W) bool, False on padding.

    Returns:
        Scalar: this rank's share of the mean over the cells that are not padding.

    Source: the released code; the paper's figure does not have it.
    """
    similarity = F.cosine_similarity(embedding, normalised.float(), dim=1, eps=1e-4)
    inside = image_cells(valid, similarity.shape[-2:])[:, 0]  # (N, h, w)
    return global_mean((similarity * inside).sum(), inside.sum())


def image_nrois(
    views: Sequence[RegionView], config: NroiConfig, progress: Progress
) -> list[tuple[Tensor, Tensor]]:
    """Compute the NROIs of each view and image: the clusters of its background cells.

    Args:
        views: The V views, all on grids of one size (h, w).
        config: The number of clusters, the iterations, and the space of the NROIs.
        progress: The step, which keys the draws.

    Returns:
        Per view, (N, k, D) NROIs and (N, k) bool: which of them stand for cells.
    """
    # Flatten the cells of each view: the vectors to cluster (N, h w, C), which cells are
    # background (N, h w), and random priorities (N, h w), which choose the first centroids.
    images = len(views[0].background)
    feature, member, priority = [], [], []
    for index, view in enumerate(views):
        feature.append(view.feature.flatten(2).transpose(1, 2))
        member.append(view.background.flatten(1))
        priority.append(
            progress.uniform_per_image(
                f"kmeans.view{index}", images, member[-1].shape[1:], member[-1].device
            )
        )
    # Cluster all views at once, as if they were V N images.
    every, cells = torch.cat(feature), torch.cat(member)  # (V N, h w, C), (V N, h w)
    vector, found = kmeans(
        every,
        cells,
        torch.cat(priority),
        clusters=config.num_clusters,
        iterations=config.kmeans_iterations,
    )
    # In Z_bg the NROIs are the centroids. Otherwise they are the mean Z_fg of each cluster.
    if config.nroi_space != "bg":
        embedding = torch.cat([view.embedding.flatten(2) for view in views])  # (V N, D, h w)
        vector, found = region_means(every, cells, vector, found, embedding.transpose(1, 2))
    return list(zip(vector.split(images), found.split(images), strict=True))
