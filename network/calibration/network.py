"""SFC's layers beside its classifier: side features, and the pixel correlation on deep features.

Source: SIPE (Q. Chen et al., CVPR 2022) and SEAM (Y. Wang et al., CVPR 2020), as SFC uses them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from network.backbones import AFFINITY, Tap
from network.calibration.maps import unit_features
from network.losses import full_precision
from network.maps import image_cells, resize
from network.pixel_correlation import mean_of_cells, pixel_affinity

WIDTHS = (128, 128, 256, 256)  # channels to which the last four taps are projected, shallow first


class SideFeatures(nn.Module):
    """Projections of a backbone's last four taps, concatenated to one map.

    A backbone with fewer taps has all of them projected.

    Args:
        taps: All taps of a backbone, shallow first, `high` last. A tap of affinities is ignored.
        centred: Whether to subtract the mean of the image's cells from each cell of a projection.
            The taps are not negative, so all cells have a large part in common. If it is not
            subtracted, untrained projections find any two cells alike, and the CAM of every
            prototype covers the whole image.

    Attributes:
        names: The taps that are projected.
        width: Number of channels of the result.
    """

    def __init__(self, taps: Mapping[str, Tap], *, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.names = tuple(name for name in taps if name != AFFINITY)[-len(WIDTHS) :]
        widths = WIDTHS[-len(self.names) :]
        self.width = sum(widths)
        self.layers = nn.ModuleList(
            nn.Conv2d(taps[name].channels, width, 1, bias=False)
            for name, width in zip(self.names, widths, strict=True)
        )

    def forward(self, taps: Mapping[str, Tensor], valid: Tensor | None = None) -> Tensor:
        """Compute the side features of images.

        Args:
            taps: (N, D, h, w) each, of which at least `names`; get no gradient.
            valid: (N, 1, H, W) bool, False on padding, which does not count in the mean that
                `centred` subtracts. None if there is no padding.

        Returns:
            (N, width, h, w) on the cells of `high`. Each tap's projection is normalised per cell.
        """
        size = taps["high"].shape[-2:]
        parts = []
        for name, layer in zip(self.names, self.layers, strict=True):
            part = layer(taps[name].detach()).float()
            if self.centred:
                inside = None if valid is None else image_cells(valid, part.shape[-2:]).float()
                part = part - mean_of_cells(part, inside)
            parts.append(resize(unit_features(part), size))
        return torch.cat(parts, dim=1)


class DeepCorrelation(nn.Module):
    """A pixel correlation (PCM) on the deepest features.

    Unlike in `network.pixel_correlation.PixelCorrelation`, which works on shallow features, the
    gradient reaches the CAM and the features.

    Args:
        channels: D, the number of channels of the features.
        centred: Whether to subtract the mean of the image's cells from each cell before cells are
            compared. The features are not negative, so all cells have a large part in common. If it
            is not subtracted, an untrained layer finds any two cells alike, and two applications
            average a CAM over the whole image.
    """

    def __init__(self, channels: int, *, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.embed = nn.Conv2d(3 + channels, channels, 1, bias=False)

    def forward(
        self, cam: Tensor, high: Tensor, image: Tensor, inside: Tensor | None = None
    ) -> Tensor:
        """Spread a CAM over cells that look alike, twice.

        Each time the new value of a cell is the mean of the CAM over all cells, weighted by how
        alike they are to it. Padding takes part too: the caller masks the CAM there.

        Args:
            cam: (N, C, h, w) float32.
            high: (N, D, h, w), the tap `high`.
            image: (N, 3, h, w), the normalised image, resized to the cells.
            inside: (N, 1, h, w) in {0, 1}, 0 on padding, which does not count in the mean that
                `centred` subtracts. Not used otherwise. None if there is no padding.

        Returns:
            (N, C, h, w) float32.
        """
        affinity = self.affinity(high, image, inside)
        with full_precision(affinity):
            return (cam.flatten(2) @ affinity @ affinity).unflatten(2, cam.shape[-2:])

    def affinity(self, high: Tensor, image: Tensor, inside: Tensor | None = None) -> Tensor:
        """Compute the weights by which `forward` spreads a CAM.

        Args:
            high: As for `forward`.
            image: As for `forward`.
            inside: As for `forward`.

        Returns:
            (N, h w, h w) float32, not negative, as from `pixel_affinity`.
        """
        embedding = self.embed(torch.cat([image, high], dim=1)).float()
        with full_precision(embedding):
            if self.centred:
                embedding = embedding - mean_of_cells(embedding, inside)
            return pixel_affinity(embedding)
