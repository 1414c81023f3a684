"""Heads on a backbone's taps: classifiers, projections, segmentation and boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import Tap
from network.dropout import SeededDropout
from network.maps import enlarge, resize

_EPS = 1e-5


def classifier(channels: int, num_maps: int) -> nn.Conv2d:
    """Build a 1x1 convolution without bias that computes score maps, with Xavier's initialisation.

    Args:
        channels: Number of channels of the feature map.
        num_maps: Number of score maps.
    """
    layer = nn.Conv2d(channels, num_maps, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def thresholded_average_pool(feature: Tensor, *, threshold: float) -> Tensor:
    """Average each channel over the cells above a share of its maximum (TAP).

    Args:
        feature: (N, D, h, w), non-negative.
        threshold: Share of the channel's maximum, in [0, 1).

    Returns:
        (N, D, 1, 1); 0 for a channel that is 0 everywhere.

    Source: FBR (TCSVT 2024), framework figure.
    """
    keep = (feature > threshold * feature.amax(dim=(-2, -1), keepdim=True)).to(feature.dtype)
    total = (feature * keep).sum(dim=(-2, -1), keepdim=True)
    return total / keep.sum(dim=(-2, -1), keepdim=True).clamp(min=1)


def attention_pool(feature: Tensor, *, sharpness: float) -> Tensor:
    """Average each channel over its cells, weighted by the softmax of its own values.

    The weights are constants in the backward pass, so that every cell gets a gradient.

    Args:
        feature: (N, D, h, w).
        sharpness: Factor on the values before the softmax over the cells; 0 gives a plain average.

    Returns:
        (N, D, 1, 1) float32.

    Source: BES (L. Chen et al., ECCV 2020), attention pooling.
    """
    cells = feature.flatten(2).float()  # (N, D, h w)
    weight = (sharpness * cells.detach()).softmax(dim=2)  # (N, D, h w)
    return (weight * cells).sum(dim=2)[..., None, None]


def projection(channels: int, width: int) -> nn.Conv2d:
    """Build a 1x1 convolution without bias to the embedding, with Xavier's initialisation.

    The caller applies the ReLU.

    Args:
        channels: Number of channels of the feature map.
        width: Number of channels of the embedding.
    """
    layer = nn.Conv2d(channels, width, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class BackgroundSegmentation(nn.Module):
    """The head phi_seg: one background logit per cell, from phi_bg's output before its ReLU.

    Args:
        width: D, the number of channels of phi_bg's output.
        groups: Number of groups of the GroupNorm; must divide `width`.
        dropout: Probability of zeroing an element.

    Differs from the release: there the norm is a BatchNorm frozen at its initial identity, here it
    is a GroupNorm that trains.
    """

    def __init__(self, width: int, *, groups: int = 8, dropout: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.dropout = SeededDropout(dropout, channels=False)
        self.classifier = nn.Conv2d(width, 1, 1)

    def normalised(self, projected: Tensor) -> Tensor:
        """Return ReLU(GroupNorm(projected)), the embedding that `bg_sim` decorrelates.

        Args:
            projected: (N, D, h, w), phi_bg's output before its ReLU.

        Returns:
            (N, D, h, w), not negative.
        """
        return F.relu(self.norm(projected))

    def forward(self, normalised: Tensor) -> Tensor:
        """Compute logits (N, 1, h, w) from (N, D, h, w), the result of the method `normalised`."""
        return self.classifier(self.dropout(normalised))


class LabelConditioning(nn.Module):
    """A head that multiplies the channels of a feature map f by weights from the image's label.

    It computes f * Linear(label), with one weight per channel.

    Args:
        num_classes: K.
        channels: Number of channels of the feature map.

    Source: AMN (M. Lee et al., CVPR 2022), section 3.3.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_classes, channels)

    def forward(self, feature: Tensor, label: Tensor) -> Tensor:
        """Return `feature` (N, D, h, w), its channels weighted by `label` (N, K) in {0, 1}."""
        return feature * self.embed(label)[:, :, None, None].to(feature.dtype)


class Aspp(nn.Module):
    """An atrous spatial pyramid: the sum of several dilated 3x3 convolutions of one map.

    Args:
        channels: Number of channels of the map.
        num_maps: Number of channels of the result.
        dilations: The dilation of each convolution.

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
        """Compute maps (N, num_maps, h, w) from a feature map (N, D, h, w)."""
        return sum(branch(feature) for branch in self.branches)


class BoundaryHead(nn.Module):
    """A head that finds the boundaries of classes from all taps of a backbone.

    Its cells have 4 pixels per side.

    Args:
        taps: The channels and stride of each tap.
        width: Number of channels of each branch; 4 must divide it.

    Source: IRN (J. Ahn et al., CVPR 2019), the boundary branch.
    """

    def __init__(self, taps: Sequence[Tap], *, width: int = 32) -> None:
        super().__init__()
        self.strides = [tap.stride for tap in taps]
        self.branches = nn.ModuleList(_normed(tap.channels, width, groups=4) for tap in taps)
        self.fuse = nn.Conv2d(width * len(taps), 1, 1)

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
        """Compute the boundary logits from the taps.

        Args:
            taps: (N, D, h, w) each; D, h and w differ between taps.
            size: Height and width of the result, in cells of 4 pixels.

        Returns:
            (N, 1, *size).
        """
        parts = zip(self.branches, taps, self.strides, strict=True)
        maps = [F.relu(on_grid(branch(tap), stride, 4, size)) for branch, tap, stride in parts]
        return self.fuse(torch.cat(maps, dim=1))


class DisplacementHead(nn.Module):
    """A head that finds the vector from each cell to the centre of its object.

    Its cells have 4 pixels per side.

    Args:
        taps: The channels and stride of all five taps, shallow first.
        widths: Number of channels of each branch; 16 must divide them.

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
        """Compute the vectors from the taps.

        Args:
            taps: (N, D, h, w) each, shallow first; D, h and w differ between taps.
            size: Height and width of the result, in cells of 4 pixels.

        Returns:
            (N, 2, *size), the vectors (y, x) in cells.
        """
        # Fuse the three deep branches on the grid of the third tap.
        maps = [branch(tap) for branch, tap in zip(self.branches, taps, strict=True)]
        middle, grid = self.strides[2], maps[2].shape[-2:]
        deep = [
            on_grid(m, s, middle, grid) for m, s in zip(maps[2:], self.strides[2:], strict=True)
        ]
        deep = F.relu(self.deep(F.relu(torch.cat(deep, dim=1))))  # (N, 256, *grid)
        # Fuse the result with the two shallow branches, on cells of 4 pixels.
        shallow = [
            F.relu(on_grid(m, s, 4, size)) for m, s in zip(maps[:2], self.strides[:2], strict=True)
        ]
        both = torch.cat([*shallow, on_grid(deep, middle, 4, size)], dim=1)
        return self.vector(F.relu(self.all(both)))


def on_grid(maps: Tensor, stride: int, target: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize maps from cells of `stride` pixels to cells of `target` pixels.

    Args:
        maps: (N, D, h, w), on cells of `stride` pixels.
        stride: Pixels per cell and side of the maps.
        target: Pixels per cell and side of the result; divides `stride` or is above it.
        size: Height and width of the result, in cells.

    Returns:
        (N, D, *size).
    """
    if stride < target:  # `enlarge` makes maps larger only
        return resize(maps, size)
    return enlarge(maps, stride // target, size)


def _normed(channels: int, width: int, *, groups: int) -> nn.Sequential:
    """Build a 1x1 convolution without bias, followed by a GroupNorm.

    Args:
        channels: Number of channels of the map.
        width: Number of channels of the result; `groups` must divide it.
        groups: Number of groups of the norm.
    """
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))
