"""Heads on a backbone's taps: TAP, projections, background segmentation, PCM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import Tap
from network.dropout import KeyedDropout
from network.losses import enlarge, over_maximum, resize

_EPS = 1e-5


def classifier(channels: int, num_maps: int) -> nn.Conv2d:
    """The 1x1 convolution that gives the score map; Xavier, no bias."""
    layer = nn.Conv2d(channels, num_maps, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def thresholded_average_pool(feature: Tensor, *, threshold: float) -> Tensor:
    """TAP: per channel the mean over the cells above `threshold` times that channel's maximum.

    Args:
        feature: (N, D, h, w), non-negative.
        threshold: share of the maximum, in [0, 1).

    Returns:
        (N, D, 1, 1); 0 for a channel that is 0 everywhere.

    Source: FBR (TCSVT 2024), framework figure.
    """
    keep = (feature > threshold * feature.amax(dim=(-2, -1), keepdim=True)).to(feature.dtype)
    total = (feature * keep).sum(dim=(-2, -1), keepdim=True)
    return total / keep.sum(dim=(-2, -1), keepdim=True).clamp(min=1)


def projection(channels: int, width: int) -> nn.Conv2d:
    """A 1x1 projection to the embedding, without bias; its ReLU is the caller's."""
    return nn.Conv2d(channels, width, 1, bias=False)


class BackgroundSegmentation(nn.Module):
    """phi_seg: one background logit per cell, from phi_bg's output before its ReLU.

    Differs from the release: GroupNorm, where it has a BatchNorm frozen at its initial identity.
    """

    def __init__(self, width: int, *, groups: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.dropout = KeyedDropout(dropout, channels=False)
        self.classifier = nn.Conv2d(width, 1, 1)

    def normalised(self, projected: Tensor) -> Tensor:
        """(N, D, h, w) -> ReLU(GroupNorm(.)), the embedding that `bg_sim` decorrelates."""
        return F.relu(self.norm(projected))

    def forward(self, normalised: Tensor) -> Tensor:
        """(N, D, h, w) of `normalised` -> (N, 1, h, w) logits."""
        return self.classifier(self.dropout(normalised))


class LabelConditioning(nn.Module):
    """Channels of a feature map weighed by what the image's label says: f * Linear(label).

    Args:
        num_classes: K. channels: of the feature map.

    Source: AMN (M. Lee et al., CVPR 2022), section 3.3.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_classes, channels)

    def forward(self, feature: Tensor, label: Tensor) -> Tensor:
        """(N, D, h, w), (N, K) -> (N, D, h, w)."""
        return feature * self.embed(label)[:, :, None, None].to(feature.dtype)


class Aspp(nn.Module):
    """Atrous spatial pyramid: dilated 3x3 convolutions of one map, summed.

    Source: DeepLab-v2 (L.-C. Chen et al., TPAMI 2018).
    """

    def __init__(
        self, channels: int, num_maps: int, *, dilations: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, num_maps, 3, padding=d, dilation=d) for d in dilations
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)
            nn.init.zeros_(branch.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, D, h, w) -> (N, num_maps, h, w)."""
        return sum(branch(feature) for branch in self.branches)


class BoundaryHead(nn.Module):
    """Boundaries of classes from all taps of a backbone, in cells of 4 pixels.

    Args:
        taps: channels and stride of each.

    Source: IRN (J. Ahn et al., CVPR 2019), the boundary branch.
    """

    def __init__(self, taps: Sequence[Tap], *, width: int = 32) -> None:
        super().__init__()
        self.strides = [tap.stride for tap in taps]
        self.branches = nn.ModuleList(_normed(tap.channels, width, groups=4) for tap in taps)
        self.fuse = nn.Conv2d(width * len(taps), 1, 1)

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
        """Taps (N, D, ., .) -> logits (N, 1, *size)."""
        parts = zip(self.branches, taps, self.strides, strict=True)
        maps = [F.relu(on_grid(branch(tap), stride, 4, size)) for branch, tap, stride in parts]
        return self.fuse(torch.cat(maps, dim=1))


class DisplacementHead(nn.Module):
    """For each cell a vector to the centre of its object, in cells of 4 pixels, from all taps.

    Args:
        taps: channels and stride of the five, shallow first.

    Source: IRN (J. Ahn et al., CVPR 2019), the displacement branch.
    """

    def __init__(
        self, taps: Sequence[Tap], *, widths: Sequence[int] = (64, 128, 256, 256, 256)
    ) -> None:
        super().__init__()
        self.strides = [tap.stride for tap in taps]
        self.branches = nn.ModuleList(
            _normed(tap.channels, width, groups=16) for tap, width in zip(taps, widths, strict=True)
        )
        self.deep = _normed(sum(widths[2:]), 256, groups=16)
        self.all = _normed(sum(widths[:2]) + 256, 256, groups=16)
        self.vector = nn.Conv2d(256, 2, 1, bias=False)

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
        """Taps (N, D, ., .) -> (N, 2, *size), (y, x)."""
        maps = [branch(tap) for branch, tap in zip(self.branches, taps, strict=True)]
        middle, grid = self.strides[2], maps[2].shape[-2:]
        deep = [
            on_grid(m, s, middle, grid) for m, s in zip(maps[2:], self.strides[2:], strict=True)
        ]
        deep = F.relu(self.deep(F.relu(torch.cat(deep, dim=1))))
        shallow = [
            F.relu(on_grid(m, s, 4, size)) for m, s in zip(maps[:2], self.strides[:2], strict=True)
        ]
        both = torch.cat([*shallow, on_grid(deep, middle, 4, size)], dim=1)
        return self.vector(F.relu(self.all(both)))


def on_grid(maps: Tensor, stride: int, target: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Cells of `stride` pixels -> (N, D, *size) cells of `target` pixels."""
    if stride < target:
        return resize(maps, size)
    return enlarge(maps, stride // target, size)


def _normed(channels: int, width: int, *, groups: int) -> nn.Sequential:
    """A 1x1 convolution without bias, and its GroupNorm."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


class PixelCorrelation(nn.Module):
    """PCM: spreads a CAM over cells that look alike, by an affinity learned on shallow features.

    Args:
        low, mid: channels of the two shallow taps.

    Source: SEAM (Y. Wang et al., CVPR 2020), section 3.3.
    """

    def __init__(self, low: int, mid: int, *, low_width: int = 64, mid_width: int = 128) -> None:
        super().__init__()
        self.low = nn.Conv2d(low, low_width, 1, bias=False)
        self.mid = nn.Conv2d(mid, mid_width, 1, bias=False)
        width = low_width + mid_width
        self.embed = nn.Conv2d(width + 3, width, 1, bias=False)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(
        self, cam: Tensor, label: Tensor, image: Tensor, low: Tensor, mid: Tensor
    ) -> Tensor:
        """Refine a CAM.

        Args:
            cam: (N, K+1, h, w) raw scores; a constant here.
            label: (N, K).
            image: (N, 3, H, W) normalised; low, mid: the taps, constants here.

        Returns:
            (N, K+1, h, w) in [0, 1); 0 for absent classes. The gradient reaches the three
            convolutions only.

        Differs from the release: absent classes are masked before, so that they win no cell.
        """
        size = cam.shape[-2:]
        parts = [
            resize(image, size),
            resize(F.relu(self.low(low.detach())), size),
            resize(F.relu(self.mid(mid.detach())), size),
        ]
        embedding = self.embed(torch.cat(parts, dim=1)).flatten(2)
        embedding = embedding / (embedding.norm(dim=1, keepdim=True) + _EPS)
        affinity = F.relu(embedding.transpose(1, 2) @ embedding)
        affinity = affinity / (affinity.sum(dim=1, keepdim=True) + _EPS)
        return (_normal_cam(cam.detach(), label).flatten(2) @ affinity).unflatten(2, size)


def _normal_cam(cam: Tensor, label: Tensor) -> Tensor:
    """(N, K+1, h, w) scores -> present classes over their maximum, winner only; 1 - that."""
    foreground = over_maximum(cam[:, 1:] * label[:, :, None, None])
    best = foreground.amax(dim=1, keepdim=True)
    return torch.cat([1 - best, foreground * (foreground == best)], dim=1)
