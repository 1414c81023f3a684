"""CAMs by class prototypes, and the weights by which classes are calibrated.

Source: SFC (X. Zhao et al., AAAI 2024); the prototypes are those of SIPE (Q. Chen et al., CVPR
2022).

Letters: N batch, K classes, D channels, h w cells. Maps with K+1 channels have the background
first. `present` is (N, K+1, h, w) or (N, K+1, 1, 1) in {0, 1}: the label, and 0 on padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.losses import over_maximum
from tool.parallel.dist import global_mean

_EPS = 1e-5


def aligned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, C, H, W) to (N, C, *size), bilinearly, with `align_corners` True."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def distribution_coefficient(counts: Tensor, *, offset: float) -> Tensor:
    """Compute how much a class needs calibration: how far its count is from those of the others.

    Only classes that have images are compared and averaged. A class without images has no CAM to
    calibrate, and would have the largest coefficient, which takes from those of all others.

    Args:
        counts: (K,) number of training images of each class.
        offset: Added to each count in the denominator: the images that the bank adds.

    Returns:
        (K,) sum_j |n_c - n_j| / (n_c + offset), scaled to a mean of 1; all 1 if the counts are
        equal, and 1 for a class without images.

    Source: SFC, the distribution coefficient.
    """
    counts = counts.float()
    occurs = (counts > 0).float()
    distance = ((counts[:, None] - counts).abs() * occurs).sum(dim=1)
    coefficient = distance / (counts + offset).clamp(min=1)
    mean = (coefficient * occurs).sum() / occurs.sum().clamp(min=1)
    scaled = coefficient / mean.clamp(min=1e-12)
    return torch.where((mean > 0) & (occurs > 0), scaled, torch.ones_like(scaled))


def normal_cam(score: Tensor, present: Tensor | None) -> Tensor:
    """Normalise raw scores, and put the background before them.

    Args:
        score: (N, K, h, w).
        present: Leaves classes out; None for none.

    Returns:
        (N, K+1, h, w) in [0, 1]: each class over its maximum, and as background 1 - the largest.
    """
    foreground = over_maximum(score)
    if present is not None:
        foreground = foreground * present[:, 1:]
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)


def unit_features(feature: Tensor) -> Tensor:
    """Divide each cell of (N, D, h, w) by its norm + 1e-5."""
    return feature / (feature.norm(dim=1, keepdim=True) + _EPS)


@torch.no_grad()
def seed_cells(cam: Tensor, present: Tensor, *, bg_factor: float) -> Tensor:
    """Return the cells that make each prototype: those where its map is the largest.

    Args:
        cam: (N, K+1, h, w), not negative.
        present: A cell that another channel wins is no seed.
        bg_factor: On the background's map.

    Returns:
        (N, K+1, h, w) in {0, 1}.
    """
    scaled = torch.cat([cam[:, :1] * bg_factor, cam[:, 1:]], dim=1)
    winner = scaled.argmax(dim=1, keepdim=True)
    return torch.zeros_like(cam).scatter_(1, winner, 1.0) * present


def with_peaks(seed: Tensor, cam: Tensor, present: Tensor) -> Tensor:
    """Return the seeds, and for a present class without any, the cells of its map's maximum.

    Args:
        seed: (N, K+1, h, w) in {0, 1}.
        cam: (N, K+1, h, w), not negative; a map of zeros gives no seed.
        present: Other channels get no seed.
    """
    peak = (cam == cam.amax(dim=(-2, -1), keepdim=True)) & (cam > 0)
    missing = seed.sum(dim=(-2, -1), keepdim=True) == 0
    return torch.where(missing, peak.to(seed.dtype) * present, seed)


def prototype_cam(feature: Tensor, seed: Tensor) -> Tensor:
    """Compute the positive cosine of each cell to the prototype of each class in its image.

    Args:
        feature: (N, D, h, w); receives the gradient, through the prototypes too.
        seed: (N, K+1, h, w) in {0, 1}.

    Returns:
        (N, K+1, h, w) in [0, 1], but for rounding; 0 for a class without seeds.

    Source: SIPE, image-specific prototypes.
    """
    cells = feature.flatten(2)  # (N, D, h w)
    prototype = seed.flatten(2) @ cells.transpose(1, 2) / cells.shape[2]  # (N, K+1, D)
    cosine = F.normalize(prototype, dim=2, eps=1e-8) @ F.normalize(cells, dim=1, eps=1e-8)
    return F.relu(cosine).unflatten(2, feature.shape[-2:])


def over_shifted_background(maps: Tensor, *, bg_shift: float) -> Tensor:
    """Divide each map by its maximum, and raise the background over the classes.

    The release doubles the classes and adds `bg_shift` to the background. Half of that is in [0, 1]
    and has the same largest channel everywhere.

    Args:
        maps: (P+1, H, W), not negative, background first.
        bg_shift: In [0, 1].

    Returns:
        (P+1, H, W) in [0, 1].
    """
    normal = over_maximum(maps)
    return torch.cat([(normal[:1] + bg_shift) / 2, normal[1:]])


@torch.no_grad()
def contrast_kept(refined: Tensor, cam: Tensor) -> Tensor:
    """Compute the mean over maps of the standard deviation of a refined CAM over that of the CAM.

    Args:
        refined: (N, C, h, w).
        cam: (N, C, h, w); a constant map, such as that of an absent class, does not count.

    Returns:
        Scalar, this rank's share of the mean; 0 if there is no map.
    """
    before, after = (maps.flatten(2).std(dim=2, correction=0) for maps in (cam, refined))
    varies = before > 1e-6
    share = torch.where(varies, after / before.clamp(min=1e-6), 0.0)
    return global_mean(share.sum(), varies.sum())


def weighted_distance(cam: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute the mean over all elements of weight |cam - target|.

    Args:
        cam: (N, C, h, w); receives the gradient.
        target: (N, C, h, w); receives the gradient, too.
        weight: (C,), of each channel.
    """
    return ((cam - target).abs() * weight[:, None, None]).mean()
