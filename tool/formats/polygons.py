"""Masks as polygons: outlines that, painted one after the other, give the mask again, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw


def outlines(mask: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the outlines of the connected regions of a mask, in the order in which to paint them.

    Each region is painted whole, and what lies within it after it. A region is connected by sides
    of pixels, so that no other region crosses its outline. A region of background is left out if it
    touches the border of the image: then nothing encloses it.

    Args:
        mask: (H, W) uint8, 0 background.

    Returns:
        For each region its value and its outline, (n, 2) int as x and y of pixels, at least three
        points. `paint` fills an outline with its own pixels.
    """
    found: list[tuple[float, int, np.ndarray]] = []
    for value in np.unique(mask):
        inside = (mask == value).astype(np.uint8)
        count, region, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
        for number in range(1, count):
            left, top, width, height, _ = stats[number].tolist()
            box = np.s_[top : top + height, left : left + width]
            if value == 0 and _touches_border(region, number):
                continue
            piece = (region[box] == number).astype(np.uint8)
            contours, _ = cv2.findContours(
                piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
            )
            points = contours[0][:, 0]  # (n, 2)
            # What encloses a region covers more pixels than it, holes included.
            filled = int(_filled(points - (left, top), (height, width)).sum())
            points = np.concatenate([points, np.repeat(points[-1:], max(3 - len(points), 0), 0)])
            found.append((filled, int(value), points))
    found.sort(key=lambda one: -one[0])
    return [(value, points) for _, value, points in found]


def paint(mask: np.ndarray, points: Sequence[Sequence[float]], value: int) -> np.ndarray:
    """Return a mask with a polygon filled, the pixels of its outline included.

    Args:
        mask: (H, W) uint8.
        points: At least three (x, y), in pixels.
        value: Of the pixels of the polygon.
    """
    region = _filled(np.asarray(points, float), mask.shape)
    return np.where(region, np.uint8(value), mask)


def _touches_border(region: np.ndarray, number: int) -> bool:
    edges = (region[0], region[-1], region[:, 0], region[:, -1])
    return any((edge == number).any() for edge in edges)


def _filled(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Return (H, W) bool: the pixels of a polygon and of its outline."""
    canvas = Image.new("1", (size[1], size[0]))
    flat = [(float(x), float(y)) for x, y in points]
    ImageDraw.Draw(canvas).polygon(flat * (1 if len(flat) > 1 else 2), outline=1, fill=1)
    return np.asarray(canvas)
