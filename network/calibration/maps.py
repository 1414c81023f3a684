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

from network.maps import over_maximum
from tool.parallel.dist import global_mean

_EPS = 1e-5


def aligned(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (N, C, H, W) to (N, C, *size), bilinearly, with `align_corners` True."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def distribution_coefficient(counts: Tensor, *, offset: float) -> Tensor:
    """Compute how much each class needs calibration, from how far its count is from the others'.

    The coefficient of class c is sum_j |n_c - n_j| / (n_c + offset), scaled to a mean of 1. Only
    classes with images count in the sum and in the mean. A class without images has no CAM to
    calibrate. Its coefficient would be the largest, and lower all others through the mean.

    Args:
        counts: (K,), the number n of training images of each class.
        offset: Number of images that the bank adds to each class.

    Returns:
        (K,) float32; 1 for all classes if the counts are equal, and for a class without images.

    Source: SFC, the distribution coefficient.
    """
    counts = counts.float()
    occurs = (counts > 0).float()  # (K,)
    distance = ((counts[:, None] - counts).abs() * occurs).sum(dim=1)  # (K,)
    coefficient = distance / (counts + offset).clamp(min=1)
    mean = (coefficient * occurs).sum() / occurs.sum().clamp(min=1)
    scaled = coefficient / mean.clamp(min=1e-12)
    return torch.where((mean > 0) & (occurs > 0), scaled, torch.ones_like(scaled))


def normal_cam(score: Tensor, present: Tensor | None) -> Tensor:
    """Normalise raw scores, and prepend the background.

    Args:
        score: (N, K, h, w), raw.
        present: Where it is 0, the map of a class is set to 0. None for no such masking.

    Returns:
        (N, K+1, h, w) in [0, 1]: each class divided by its maximum, and as background 1 minus the
        best class.
    """
    foreground = over_maximum(score)
    if present is not None:
        foreground = foreground * present[:, 1:]
    return torch.cat([1 - foreground.amax(dim=1, keepdim=True), foreground], dim=1)


def unit_features(feature: Tensor) -> Tensor:
    """Divide the vector of each cell of a map (N, D, h, w) by its norm plus 1e-5."""
    return feature / (feature.norm(dim=1, keepdim=True) + _EPS)


@torch.no_grad()
def seed_cells(cam: Tensor, present: Tensor, *, bg_factor: float) -> Tensor:
    """Find the seeds of each channel: the cells of which its prototype is made.

    They are the cells where its map is the largest of all.

    Args:
        cam: (N, K+1, h, w), not negative, background first.
        present: (N, K+1, h, w) or (N, K+1, 1, 1) in {0, 1}. A cell whose winner has 0 is no seed.
        bg_factor: Factor on the background's map.

    Returns:
        (N, K+1, h, w) in {0, 1}.
    """
    scaled = torch.cat([cam[:, :1] * bg_factor, cam[:, 1:]], dim=1)
    winner = scaled.argmax(dim=1, keepdim=True)
    return torch.zeros_like(cam).scatter_(1, winner, 1.0) * present


def with_peaks(seed: Tensor, cam: Tensor, present: Tensor) -> Tensor:
    """Give each present channel without a seed the cells of its map's maximum as seeds.

    Args:
        seed: (N, K+1, h, w) in {0, 1}.
        cam: (N, K+1, h, w), not negative; a map of zeros gives no seed.
        present: (N, K+1, h, w) or (N, K+1, 1, 1) in {0, 1}. No seed is added where it is 0.

    Returns:
        (N, K+1, h, w) in {0, 1}.
    """
    peak = (cam == cam.amax(dim=(-2, -1), keepdim=True)) & (cam > 0)
    missing = seed.sum(dim=(-2, -1), keepdim=True) == 0
    return torch.where(missing, peak.to(seed.dtype) * present, seed)


def prototype_cam(feature: Tensor, seed: Tensor) -> Tensor:
    """Compute the positive cosine of each cell with the prototype of each channel in its image.

    Args:
        feature: (N, D, h, w); receives the gradient, also through the prototypes.
        seed: (N, K+1, h, w) in {0, 1}.

    Returns:
        (N, K+1, h, w) in [0, 1], but for rounding; 0 for a channel without seeds.

    Source: SIPE, image-specific prototypes.
    """
    cells = feature.flatten(2)  # (N, D, h w)
    # A prototype is the sum of its seeds over the number of all cells. Its length does not matter.
    prototype = seed.flatten(2) @ cells.transpose(1, 2) / cells.shape[2]  # (N, K+1, D)
    cosine = F.normalize(prototype, dim=2, eps=1e-8) @ F.normalize(cells, dim=1, eps=1e-8)
    return F.relu(cosine).unflatten(2, feature.shape[-2:])


def over_shifted_background(maps: Tensor, *, bg_shift: float) -> Tensor:
    """Divide each map by its maximum, and shift the background against the classes.

    The background b becomes (b + bg_shift) / 2. The release returns twice these maps. Halved, they
    are in [0, 1], and the largest channel of each pixel is the same.

    Args:
        maps: (P+1, H, W), not negative, background first.
        bg_shift: Shift of the background, in [0, 1].

    Returns:
        (P+1, H, W) in [0, 1].
    """
    normal = over_maximum(maps)
    return torch.cat([(normal[:1] + bg_shift) / 2, normal[1:]])


@torch.no_grad()
def contrast_kept(refined: Tensor, cam: Tensor) -> Tensor:
    """Compute the standard deviation of refined CAMs over that of the CAMs, averaged over maps.

    Args:
        refined: (N, C, h, w).
        cam: (N, C, h, w). A constant map, such as that of an absent class, does not count.

    Returns:
        Scalar: this rank's share of the mean over the maps of the global batch; 0 if no map counts.
    """
    before, after = (maps.flatten(2).std(dim=2, correction=0) for maps in (cam, refined))
    varies = before > 1e-6
    share = torch.where(varies, after / before.clamp(min=1e-6), 0.0)
    return global_mean(share.sum(), varies.sum())


def weighted_distance(cam: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean absolute difference of two sets of maps.

    Args:
        cam: (N, C, h, w); receives the gradient.
        target: (N, C, h, w); receives the gradient, too.
        weight: (C,), the factor of each channel.

    Returns:
        Scalar: the mean over all elements of weight * |cam - target|.
    """
    return ((cam - target).abs() * weight[:, None, None]).mean()
