"""Convert masks to polygons, which give exactly the same mask when they are painted in order."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw


def outlines(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the outlines of the connected regions of a mask, in the order of painting.

    Each region is painted without its holes, and the regions inside it are painted later. Pixels of
    a region are connected by their sides, so that no other region crosses its outline. A region of
    background is left out if it touches the border of the image, because then no other region
    encloses it.

    Args:
        mask: (H, W) uint8, 0 background.

    Returns:
        The value and the outline of each region. An outline is (n, 2) int, x and y of at least
        three pixels; `paint` fills it and includes these pixels.
    """
    found: list[tuple[float, int, np.ndarray]] = []
    for value in np.unique(mask):
        inside = (mask == value).astype(np.uint8)
        count, region, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
        for number in range(1, count):
            # Work inside the box of the region only.
            left, top, width, height, _ = stats[number].tolist()
            box = np.s_[top : top + height, left : left + width]
            if value == 0 and _touches_border(region, number):
                continue
            piece = (region[box] == number).astype(np.uint8)
            contours, _ = cv2.findContours(
                piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
            )
            points = contours[0][:, 0]  # (n, 2)
            # Count the pixels of the region and its holes, by which the regions are ordered.
            filled = int(_filled(points - (left, top), (height, width)).sum())
            # Repeat the last point of a very small region, because a polygon needs three.
            points = np.concatenate([points, np.repeat(points[-1:], max(3 - len(points), 0), 0)])
            found.append((filled, int(value), points))
    # A region that encloses another one covers more pixels, so it is painted first.
    found.sort(key=lambda one: -one[0])
    return [(value, points) for _, value, points in found]


def paint(mask: np.ndarray, points: Sequence[Sequence[float]], value: int) -> np.ndarray:
    """Return a mask with a polygon filled, including the pixels of its outline.

    Args:
        mask: (H, W) uint8.
        points: At least three (x, y), in pixels.
        value: The value that the pixels of the polygon get.
    """
    region = _filled(np.asarray(points, float), mask.shape)
    return np.where(region, np.uint8(value), mask)


def _touches_border(region: np.ndarray, number: int) -> bool:
    edges = (region[0], region[-1], region[:, 0], region[:, -1])
    return any((edge == number).any() for edge in edges)


def _filled(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return the pixels (H, W) bool of a polygon (n, 2) and of its outline; n is at least 1."""
    canvas = Image.new("1", (size[1], size[0]))
    # Pillow needs two points, so a single one is repeated.
    flat = [(float(x), float(y)) for x, y in points]
    ImageDraw.Draw(canvas).polygon(flat * (1 if len(flat) > 1 else 2), outline=1, fill=1)
    return np.asarray(canvas)
