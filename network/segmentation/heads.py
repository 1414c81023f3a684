"""Heads of segmentation networks: K + 1 logits per cell from the deepest tap, background first.

The methods set dilations in pixels and convert them by `dilation_of`, so that a head sees the same
context at any output stride. DeepLab-v2's own head is `network.heads.Aspp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from network.dropout import SeededDropout

GROUPS = 32  # groups of every GroupNorm here; must divide the widths


def dilation_of(pixels: int, stride: int) -> int:
    """Return the number of cells of `stride` pixels that is nearest to `pixels`, at least 1."""
    return max(1, round(pixels / stride))


class ConcatAspp(nn.Module):
    """PPC's head: dilated convolutions and a global branch, concatenated and mixed.

    Args:
        channels: Number of channels of the feature map.
        num_maps: Number of channels of the result.
        dilations: Dilation of each 3x3 convolution, in cells.
        width: Number of channels of each branch; `GROUPS` must divide it.
        dropout: Probability of zeroing an element, in each of two dropouts.

    Source: DeepLab-v3 (L.-C. Chen et al., 2017), in the form that PPC (CVPR 2022) trains.
    Differs from the release: norms are GroupNorms. They train above frozen pretrained norms, and do
    not depend on the other images of the batch.
    """

    def __init__(
        self,
        channels: int,
        num_maps: int,
        *,
        dilations: Sequence[int],
        width: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            _normed(channels, width, kernel=3, dilation=one) for one in dilations
        )
        self.whole = _normed(channels, width)
        self.mix = _normed(width * (len(dilations) + 1), width)
        self.dropout = nn.Sequential(
            SeededDropout(dropout, channels=False), SeededDropout(dropout, channels=False)
        )
        self.classifier = nn.Conv2d(width, num_maps, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute maps (N, num_maps, h, w) from a feature map (N, D, h, w)."""
        parts = [branch(feature) for branch in self.branches]
        whole = self.whole(feature.mean(dim=(-2, -1), keepdim=True))  # (N, width, 1, 1)
        parts.append(whole.expand_as(parts[0]))
        return self.classifier(self.dropout(self.mix(torch.cat(parts, dim=1))))


class LargeFov(nn.Module):
    """DeepLab-v1's head with a large field of view: a dilated convolution, then two 1x1 ones.

    Args:
        channels: Number of channels of the feature map.
        num_maps: Number of channels of the result.
        dilation: Dilation of the 3x3 convolution, in cells.
        width: Number of channels in between; `GROUPS` must divide it.
        dropout: Probability of zeroing an element.

    Source: DeepLab-v1 (L.-C. Chen et al., ICLR 2015), in the form of seamv1, which SEAM trains.
    Differs from the release: norms are GroupNorms, where the release has BatchNorms with a constant
    affine map.
    """

    def __init__(
        self, channels: int, num_maps: int, *, dilation: int, width: int = 512, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.wide = _normed(channels, width, kernel=3, dilation=dilation)
        self.mix = _normed(width, width)
        self.dropout = SeededDropout(dropout, channels=False)
        self.classifier = nn.Conv2d(width, num_maps, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute maps (N, num_maps, h, w) from a feature map (N, D, h, w)."""
        return self.classifier(self.dropout(self.mix(self.wide(feature))))


class TwoDilated(nn.Module):
    """MCTformer's head: two dilated 3x3 convolutions with a ReLU in between, without a norm.

    Args:
        channels: Number of channels of the feature map.
        num_maps: Number of channels of the result.
        dilation: Dilation of both convolutions, in cells.
        width: Number of channels in between.

    Source: MCTformer (L. Xu et al., CVPR 2022), its segmentation network, which BAO uses, too.
    """

    def __init__(self, channels: int, num_maps: int, *, dilation: int, width: int = 512) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
        self.classifier = nn.Conv2d(width, num_maps, 3, padding=dilation, dilation=dilation)
        for layer in (self.wide, self.classifier):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """Compute maps (N, num_maps, h, w) from a feature map (N, D, h, w)."""
        return self.classifier(F.relu(self.wide(feature)))


def _normed(channels: int, width: int, *, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Build a convolution without bias, a GroupNorm and a ReLU.

    They keep the height and width of a map. The weights have Kaiming's initialisation, scaled by
    the fan-out.

    Args:
        channels: Number of channels of the map.
        width: Number of channels of the result; `GROUPS` must divide it.
        kernel: Side of the convolution, odd.
        dilation: Dilation of the convolution, in cells.
    """
    conv = nn.Conv2d(
        channels,
        width,
        kernel,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        bias=False,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, width), nn.ReLU())
