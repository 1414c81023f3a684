"""Heads on a backbone's taps: classifiers, projections, segmentation, boundaries and PCM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.backbones import Tap
from network.dropout import SeededDropout
from network.losses import enlarge, over_maximum, resize

_EPS = 1e-5


def classifier(channels: int, num_maps: int) -> nn.Conv2d:
    """Build the 1x1 convolution that gives the score map, without bias, by Xavier's rule."""
    layer = nn.Conv2d(channels, num_maps, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def thresholded_average_pool(feature: Tensor, *, threshold: float) -> Tensor:
    """Average each channel over its cells above a share of its maximum (TAP).

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

    The weights are constants, so that every cell gets a gradient.

    Args:
        feature: (N, D, h, w).
        sharpness: Factor on the values before the softmax over the cells; 0 for a plain average.

    Returns:
        (N, D, 1, 1) float32.

    Source: BES (L. Chen et al., ECCV 2020), attention pooling.
    """
    cells = feature.flatten(2).float()  # (N, D, h w)
    weight = (sharpness * cells.detach()).softmax(dim=2)
    return (weight * cells).sum(dim=2)[..., None, None]


def projection(channels: int, width: int) -> nn.Conv2d:
    """Build a 1x1 projection to the embedding, without bias, by Xavier's rule.

    The caller applies the ReLU.
    """
    layer = nn.Conv2d(channels, width, 1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class BackgroundSegmentation(nn.Module):
    """The head phi_seg: one background logit per cell, from phi_bg's output before its ReLU.

    Args:
        width: D, channels of phi_bg's output.
        groups: Of the GroupNorm; divides `width`.
        dropout: Probability of zeroing an element.

    Differs from the release: it has a BatchNorm frozen at its initial identity, here it is a
    GroupNorm.
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
        """
        return F.relu(self.norm(projected))

    def forward(self, normalised: Tensor) -> Tensor:
        """Compute logits (N, 1, h, w) from (N, D, h, w), the result of the method `normalised`."""
        return self.classifier(self.dropout(normalised))


class LabelConditioning(nn.Module):
    """A weighting of a feature map's channels by the image's label: f * Linear(label).

    Args:
        num_classes: K.
        channels: Of the feature map.

    Source: AMN (M. Lee et al., CVPR 2022), section 3.3.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.embed = nn.Linear(num_classes, channels)

    def forward(self, feature: Tensor, label: Tensor) -> Tensor:
        """Weight the channels of `feature` (N, D, h, w) by `label` (N, K)."""
        return feature * self.embed(label)[:, :, None, None].to(feature.dtype)


class Aspp(nn.Module):
    """An atrous spatial pyramid: the sum of dilated 3x3 convolutions of one map.

    Args:
        channels: Of the map.
        num_maps: Channels of the result.
        dilations: One convolution is made for each.

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
    """A head for the boundaries of classes, in cells of 4 pixels, from all taps of a backbone.

    Args:
        taps: Channels and stride of each.
        width: Channels of each branch.

    Source: IRN (J. Ahn et al., CVPR 2019), the boundary branch.
    """

    def __init__(self, taps: Sequence[Tap], *, width: int = 32) -> None:
        super().__init__()
        self.strides = [tap.stride for tap in taps]
        self.branches = nn.ModuleList(_normed(tap.channels, width, groups=4) for tap in taps)
        self.fuse = nn.Conv2d(width * len(taps), 1, 1)

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int] | torch.Size) -> Tensor:
        """Compute logits (N, 1, *size) from the taps.

        Args:
            taps: (N, D, h, w) each, of different D, h and w.
            size: Height and width in cells of 4 pixels.
        """
        parts = zip(self.branches, taps, self.strides, strict=True)
        maps = [F.relu(on_grid(branch(tap), stride, 4, size)) for branch, tap, stride in parts]
        return self.fuse(torch.cat(maps, dim=1))


class DisplacementHead(nn.Module):
    """A head for the vector from each cell to the centre of its object, in cells of 4 pixels.

    Args:
        taps: Channels and stride of all five taps, shallow first.
        widths: Channels of each branch.

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
        """Compute vectors (N, 2, *size), (y, x), from the taps.

        Args:
            taps: (N, D, h, w) each, of different D, h and w, shallow first.
            size: Height and width in cells of 4 pixels.
        """
        # The three deep branches on the grid of the third tap, fused.
        maps = [branch(tap) for branch, tap in zip(self.branches, taps, strict=True)]
        middle, grid = self.strides[2], maps[2].shape[-2:]
        deep = [
            on_grid(m, s, middle, grid) for m, s in zip(maps[2:], self.strides[2:], strict=True)
        ]
        deep = F.relu(self.deep(F.relu(torch.cat(deep, dim=1))))
        # With them the two shallow branches, on cells of 4 pixels.
        shallow = [
            F.relu(on_grid(m, s, 4, size)) for m, s in zip(maps[:2], self.strides[:2], strict=True)
        ]
        both = torch.cat([*shallow, on_grid(deep, middle, 4, size)], dim=1)
        return self.vector(F.relu(self.all(both)))


def on_grid(maps: Tensor, stride: int, target: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize maps (N, D, h, w) of cells of `stride` pixels to cells of `target` pixels.

    Returns:
        (N, D, *size).
    """
    if stride < target:
        return resize(maps, size)
    return enlarge(maps, stride // target, size)


def _normed(channels: int, width: int, *, groups: int) -> nn.Sequential:
    """Build a 1x1 convolution without bias, and its GroupNorm."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width))


class PixelCorrelation(nn.Module):
    """A pixel correlation module (PCM): it spreads a CAM over cells that look alike.

    Their affinity is learned on shallow features.

    Args:
        low: Channels of the tap `low`.
        mid: Channels of the tap `mid`.
        low_width: Channels that `low` is projected to.
        mid_width: Channels that `mid` is projected to.

    Source: SEAM (Y. Wang et al., CVPR 2020), section 3.3.
    """

    def __init__(self, low: int, mid: int, *, low_width: int = 64, mid_width: int = 128) -> None:
        super().__init__()
        self.low = nn.Conv2d(low, low_width, 1, bias=False)
        self.mid = nn.Conv2d(mid, mid_width, 1, bias=False)
        for reduction in (self.low, self.mid):
            nn.init.kaiming_normal_(reduction.weight)
        width = low_width + mid_width
        self.embed = nn.Conv2d(width + 3, width, 1, bias=False)
        nn.init.xavier_uniform_(self.embed.weight, gain=4)

    def forward(
        self, cam: Tensor, label: Tensor, image: Tensor, low: Tensor, mid: Tensor
    ) -> Tensor:
        """Refine a CAM.

        Args:
            cam: (N, K+1, h, w), raw scores; a constant here.
            label: (N, K).
            image: (N, 3, H, W), normalised.
            low: The tap `low`, a constant here.
            mid: The tap `mid`, a constant here.

        Returns:
            (N, K+1, h, w) in [0, 1); 0 for absent classes. The gradient reaches the three
            convolutions only.

        Differs from the release: absent classes are masked before, so that they win no cell.
        """
        # An embedding of each cell, from the image and the two taps.
        size = cam.shape[-2:]
        parts = [
            resize(image, size),
            resize(F.relu(self.low(low.detach())), size),
            resize(F.relu(self.mid(mid.detach())), size),
        ]
        affinity = pixel_affinity(self.embed(torch.cat(parts, dim=1)))
        return (_normal_cam(cam.detach(), label).flatten(2) @ affinity).unflatten(2, size)


def pixel_affinity(embedding: Tensor) -> Tensor:
    """Compute the positive cosines of all pairs of cells, the weights by which a PCM spreads maps.

    Args:
        embedding: (N, D, h, w), need not be normalised.

    Returns:
        (N, h w, h w): column j holds the weights of all cells in cell j, which sum to almost 1.

    Source: SEAM (Y. Wang et al., CVPR 2020), section 3.3.
    """
    embedding = embedding.flatten(2)  # (N, D, h w)
    embedding = embedding / (embedding.norm(dim=1, keepdim=True) + _EPS)
    affinity = F.relu(embedding.transpose(1, 2) @ embedding)
    return affinity / (affinity.sum(dim=1, keepdim=True) + _EPS)


def _normal_cam(cam: Tensor, label: Tensor) -> Tensor:
    """Normalise raw scores (N, K+1, h, w).

    Returns:
        (N, K+1, h, w): present classes over their maximum, only the winner of each cell kept, and
        as background 1 - the winner.
    """
    foreground = over_maximum(cam[:, 1:] * label[:, :, None, None])
    best = foreground.amax(dim=1, keepdim=True)
    return torch.cat([1 - best, foreground * (foreground == best)], dim=1)
