"""The pixel correlation module (PCM): a CAM is spread over cells that look alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.maps import over_maximum, resize

_EPS = 1e-5


class PixelCorrelation(nn.Module):
    """A pixel correlation module (PCM), which spreads a CAM over cells that look alike.

    The affinity of cells is learned from the image and two shallow taps.

    Args:
        low: Number of channels of the tap `low`.
        mid: Number of channels of the tap `mid`.
        low_width: Number of channels to which `low` is projected.
        mid_width: Number of channels to which `mid` is projected.
        centred: Whether to subtract the mean of the image's cells from each cell before cells are
            compared. The features are not negative, so all cells have a large part in common. If it
            is not subtracted, an untrained module finds any two cells alike, and averages a CAM
            over the image.

    Source: SEAM (Y. Wang et al., CVPR 2020), section 3.3.
    """

    def __init__(
        self,
        low: int,
        mid: int,
        *,
        low_width: int = 64,
        mid_width: int = 128,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.centred = centred
        self.low = nn.Conv2d(low, low_width, 1, bias=False)
        self.mid = nn.Conv2d(mid, mid_width, 1, bias=False)
        for reduction in (self.low, self.mid):
            nn.init.kaiming_normal_(reduction.weight)
        width = low_width + mid_width
        self.embed = nn.Conv2d(width + 3, width, 1, bias=False)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(
        self,
        cam: Tensor,
        label: Tensor,
        image: Tensor,
        low: Tensor,
        mid: Tensor,
        inside: Tensor | None = None,
    ) -> Tensor:
        """Refine a CAM.

        Args:
            cam: (N, K+1, h, w), raw scores, background first; gets no gradient.
            label: (N, K), image-level {0, 1}.
            image: (N, 3, H, W), normalised.
            low: (N, D, h', w'), the tap `low`; gets no gradient.
            mid: (N, D, h', w'), the tap `mid`; gets no gradient.
            inside: (N, 1, h, w) in {0, 1}, 0 on padding, which does not count in the mean that
                `centred` subtracts. None if there is no padding.

        Returns:
            (N, K+1, h, w) in [0, 1), background first; 0 for absent classes. The gradient reaches
            the three convolutions only.

        Differs from the release: absent classes are masked before the winner of each cell is found,
        so that they win none.
        """
        # Embed each cell by the image and the two taps, reduced to the CAM's grid.
        size = cam.shape[-2:]
        parts = [
            resize(image, size),
            resize(F.relu(self.low(low.detach())), size),
            resize(F.relu(self.mid(mid.detach())), size),
        ]
        embedding = self.embed(torch.cat(parts, dim=1))  # (N, D, h, w)
        if self.centred:
            embedding = embedding - mean_of_cells(embedding, inside)
        affinity = pixel_affinity(embedding)  # (N, h w, h w)
        # Each cell gets the mean of the normalised CAM over all cells, weighted by affinity.
        return (normal_cam(cam.detach(), label).flatten(2) @ affinity).unflatten(2, size)


def mean_of_cells(feature: Tensor, inside: Tensor | None) -> Tensor:
    """Return the mean over each image's cells.

    Args:
        feature: (N, D, h, w).
        inside: (N, 1, h, w) in {0, 1}, 1 for the cells that count; None for all.

    Returns:
        (N, D, 1, 1).
    """
    if inside is None:
        return feature.mean(dim=(-2, -1), keepdim=True)
    count = inside.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    return (feature * inside).sum(dim=(-2, -1), keepdim=True) / count


def pixel_affinity(embedding: Tensor) -> Tensor:
    """Compute the weights by which a PCM spreads maps: the positive cosines of all pairs of cells.

    Args:
        embedding: (N, D, h, w), need not be normalised.

    Returns:
        (N, h w, h w), not negative. Column j holds the weights of all cells for the new value of
        cell j, which sum to almost 1.

    Source: SEAM (Y. Wang et al., CVPR 2020), section 3.3.
    """
    embedding = embedding.flatten(2)  # (N, D, h w)
    embedding = embedding / (embedding.norm(dim=1, keepdim=True) + _EPS)
    affinity = F.relu(embedding.transpose(1, 2) @ embedding)  # (N, h w, h w)
    return affinity / (affinity.sum(dim=1, keepdim=True) + _EPS)


def normal_cam(cam: Tensor, label: Tensor) -> Tensor:
    """Normalise raw scores, and keep the winning class of each cell only.

    Args:
        cam: (N, K+1, h, w), raw scores, background first, which is not read.
        label: (N, K), image-level {0, 1}.

    Returns:
        (N, K+1, h, w) in [0, 1]: each present class divided by its maximum, 0 where it does not
        win, and as background 1 minus the winner.
    """
    foreground = over_maximum(cam[:, 1:] * label[:, :, None, None])  # (N, K, h, w)
    best = foreground.amax(dim=1, keepdim=True)  # (N, 1, h, w)
    return torch.cat([1 - best, foreground * (foreground == best)], dim=1)
