"""Maps that the affinity of cells spreads, and the labels that are made of such maps.

Source: TransCAM (R. Li et al., JVCIR 2023) and BAO (JVCIR 2025).

Letters: N batch, K classes, D channels, h w cells, p = h w.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from network.backbones import cosine_affinity
from network.losses import full_precision
from network.maps import over_maximum

INITS = ("kaiming", "xavier")


def score_head(channels: int, num_maps: int, *, init: str) -> nn.Conv2d:
    """Build a 3x3 convolution, with bias, from features to score maps.

    Args:
        channels: Of the features.
        num_maps: Of the result.
        init: One of `INITS`. The weights of "kaiming" have the standard deviation
            sqrt(2 / (9 num_maps)), as published; those of "xavier" are smaller, as the channels
            count too.
    """
    layer = nn.Conv2d(channels, num_maps, 3, padding=1)
    if init == "kaiming":
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    else:
        nn.init.xavier_uniform_(layer.weight)
    return layer


def centred_affinity(feature: Tensor) -> Tensor:
    """Compute an affinity of cells by how they differ from the mean of their image.

    Features that are not negative have cosines of about .5 whatever they show. Maps that such an
    affinity spreads keep a seventh of their deviation, and cover the image.

    Args:
        feature: (N, D, h, w).

    Returns:
        (N, p, p), as `cosine_affinity`; 0 if all cells of an image are equal.
    """
    feature = feature.float()
    return cosine_affinity(feature - feature.mean(dim=(-2, -1), keepdim=True))


def spread(maps: Tensor, affinity: Tensor) -> Tensor:
    """Spread maps over cells: out_i = sum_j A_ij maps_j.

    Args:
        maps: (N, C, h, w).
        affinity: (N, p, p), of the same cells. Its rows need not sum to 1.

    Returns:
        (N, C, h, w) float32.
    """
    with full_precision(maps):
        flat = maps.float().flatten(2) @ affinity.float().transpose(1, 2)  # (N, C, p)
    return flat.unflatten(2, maps.shape[-2:])


@torch.no_grad()
def label_cells(maps: Tensor, label: Tensor, inside: Tensor) -> Tensor:
    """Label each cell with a class of its image, or as background, 0.

    A cell belongs to the class that is nearest to its own maximum, if it reaches more than half of
    it: the background is 1 - the best class, and wins a tie.

    Args:
        maps: (N, K, h, w), of any sign.
        label: (N, K).
        inside: (N, 1, h, w) bool, False on padding.

    Returns:
        (N, h, w) int64 in 0..K, 255 on padding.

    Source: BAO, the labels of the target network. They are made without a threshold.
    """
    cam = over_maximum(maps * label[:, :, None, None] * inside)
    best, winner = cam.max(dim=1)  # (N, h, w)
    found = torch.where(best > 1 - best, winner + 1, 0)
    return found.masked_fill(~inside[:, 0], 255)


def momentum_at(step: int, steps: int, *, first: float) -> float:
    """Return the momentum of a target network, which rises from `first` to 1 by a cosine.

    Args:
        step: In 0..steps.
        steps: In which it rises.
        first: At step 0, in [0, 1].
    """
    return 1 - (1 - first) * (1 + math.cos(math.pi * step / steps)) / 2
