"""The canvas of the embedded dataset, on which an object is assembled from shaded parts.

Lengths are fractions of the canvas's side; x points right and y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from data.toy.drawing import Layer, Paint, Rng, Shape
from data.toy.drawing.paint import blend, skin

Point = tuple[float, float]
Edge = tuple[float, float, float]  # a horizontal line: x of one end, x of the other end, y
SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
STEP = np.linspace(0, 1, 6, endpoint=False)[:, None]
BASIS = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
SPLINE = (STEP ** np.arange(4) @ BASIS).astype(np.float32)  # Catmull-Rom weights, (6, 4)
RING = np.stack([np.cos(TURN), np.sin(TURN)], 1).astype(np.float32)  # (28, 2), the unit circle


class Canvas:
    """A square picture on which an object is assembled from shaded parts.

    Args:
        size: Side in pixels.
        light: Direction (x, y) towards the light, of about unit length.
    """

    def __init__(self, size: int, light: Point) -> None:
        self.size = size
        self.shape = (size, size)
        self.light = light
        self.rgb = np.zeros((*self.shape, 3), np.float32)
        self.alpha = np.zeros(self.shape, np.float32)

    def skin(self, rng: Rng) -> np.ndarray:
        """Draw a random surface (size, size, 3) that suits any object."""
        return skin(rng, self.shape)

    def polygon(
        self, points: Sequence[Point], fill: Paint, *, smooth: bool = False, volume: float = 0.0
    ) -> None:
        """Paint a polygon.

        Args:
            points: The corners (x, y), as fractions of the canvas's side.
            fill: A colour (3,), or a surface (size, size, 3), with which the polygon is filled.
            smooth: Whether to paint the closed spline through the corners instead.
            volume: Strength of the shading, which makes the part look round. 0 for a flat part.
        """
        corners = np.asarray(points, np.float32)
        if smooth:
            corners = closed_spline(corners)
        # OpenCV takes fixed-point pixels, here with `SHIFT` fractional bits.
        mask = np.zeros(self.shape, np.uint8)
        fixed = np.round(corners * (self.size * 2**SHIFT)).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, SHIFT)
        self._part(mask, fill, volume)

    def ellipse(
        self, centre: Point, radii: Point, fill: Paint, *, angle: float = 0.0, volume: float = 0.0
    ) -> None:
        """Paint an ellipse that is rotated clockwise by `angle` degrees; see `polygon`."""
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        # The two half axes as vectors; their combinations by the unit circle are the rim.
        axes = ((radii[0] * cosine, radii[0] * sine), (-radii[1] * sine, radii[1] * cosine))
        self.polygon(RING @ np.array(axes, np.float32) + np.array(centre), fill, volume=volume)

    def disc(self, centre: Point, radius: float, fill: Paint, *, volume: float = 0.0) -> None:
        """Paint a circle; see `polygon`."""
        self.ellipse(centre, (radius, radius), fill, volume=volume)

    def limb(
        self, points: Sequence[Point], widths: Point, fill: Paint, *, volume: float = 0.0
    ) -> None:
        """Paint a bent tube along a curve.

        Args:
            points: The curve is the spline through them.
            widths: The width at the first and at the last point; it changes linearly in between.
            fill: A colour (3,), or a surface (size, size, 3).
            volume: Strength of the shading.
        """
        path = open_spline(np.asarray(points, np.float32))  # (n, 2)
        # Find unit vectors along and across the path, and half the width at each point of it.
        along = np.gradient(path, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
        across = np.stack([-along[:, 1], along[:, 0]], 1)
        half = np.linspace(widths[0] / 2, widths[1] / 2, len(path))[:, None]
        # Each end is rounded by four points, at these multiples of `half` across and along.
        cap = np.array([0.8, 0.5, -0.5, -0.8])[:, None]
        bulge = np.array([0.6, 0.87, 0.87, 0.6])[:, None]
        end = path[-1] + half[-1] * (across[-1] * cap + along[-1] * bulge)
        start = path[0] - half[0] * (across[0] * cap + along[0] * bulge)
        # The outline is one side, the end, the other side backwards, and the start.
        sides = path + across * half, (path - across * half)[::-1]
        self.polygon(np.concatenate([sides[0], end, sides[1], start]), fill, volume=volume)

    def box(self, corner: Point, other: Point, fill: Paint, *, volume: float = 0.0) -> None:
        """Paint an axis-parallel rectangle between two opposite corners; see `polygon`."""
        (x0, y0), (x1, y1) = corner, other
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, volume=volume)

    def trapezoid(self, base: Edge, top: Edge, fill: Paint, *, volume: float = 0.0) -> None:
        """Paint the area between two horizontal edges; see `polygon`.

        The first ends of both edges are connected, and so are the last ends.
        """
        (left, right, foot), (top_left, top_right, head) = base, top
        corners = [(left, foot), (top_left, head), (top_right, head), (right, foot)]
        self.polygon(corners, fill, volume=volume)

    def warped(self, matrix: np.ndarray, shape: Shape) -> Layer:
        """Return the canvas as a layer of a picture of `shape`, moved by an affine matrix.

        Args:
            matrix: (2, 3), from pixels of the canvas to pixels of the picture, x first.
            shape: (H, W) of the picture.
        """
        parts = (self.rgb, self.alpha)
        return Layer(*(cv2.warpAffine(part, matrix, shape[::-1]) for part in parts))

    def cropped(self, shape: Shape) -> Layer:
        """Return the upper left part of the canvas as a layer of a picture of `shape`."""
        return Layer(self.rgb[: shape[0], : shape[1]], self.alpha[: shape[0], : shape[1]])

    def _part(self, mask: np.ndarray, fill: Paint, volume: float) -> None:
        """Paint a part of the object, with light and shade.

        Args:
            mask: (size, size) uint8, 255 for opaque.
            fill: A colour (3,), or a surface (size, size, 3).
            volume: Strength of the shading.
        """
        # Work inside the box of the part only.
        x, y, w, h = cv2.boundingRect(mask)
        if w == 0 or h == 0:
            return
        at = (slice(y, y + h), slice(x, x + w))
        weight = mask[at].astype(np.float32) / 255
        surface = fill if fill.ndim == 1 else fill[at]
        # Shade it: brighter towards the light, darker at the rim.
        if volume:
            ramp_x = np.arange(-w, w, 2, dtype=np.float32)[None, :] * (self.light[0] / w)
            ramp_y = np.arange(-h, h, 2, dtype=np.float32)[:, None] * (self.light[1] / h)
            span = max(3, self.size // 9)
            rim = cv2.blur(weight, (span, span), borderType=cv2.BORDER_CONSTANT) - 0.8
            surface = surface * (1 + volume * (0.5 * (ramp_x + ramp_y) + rim))[..., None]
        self.rgb[at] = blend(self.rgb[at], surface, weight)
        self.alpha[at] = np.maximum(self.alpha[at], weight)


def shifted(x: float, y: float) -> np.ndarray:
    """Return the affine matrix (2, 3) of a shift by `x` and `y` pixels."""
    return np.array([[1, 0, x], [0, 1, y]], np.float32)


def outline(x: Sequence[float], y: Sequence[float]) -> list[Point]:
    """Return the n points of a polygon with the coordinates `x` and `y`, each of length n."""
    return list(zip(x, y, strict=True))


def closed_spline(corners: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve (n * 6, 2) through `corners` (n, 2) and back to the first."""
    return _curve(np.concatenate([corners[-1:], corners, corners[:2]]))


def open_spline(points: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve ((n - 1) * 6 + 1, 2) through `points` (n, 2)."""
    # Mirror a neighbour at each end, because a segment needs a point before and one after it.
    before, after = 2 * points[:1] - points[1:2], 2 * points[-1:] - points[-2:-1]
    return np.concatenate([_curve(np.concatenate([before, points, after])), points[-1:]])


def _curve(points: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve ((n - 3) * 6, 2) of `points` (n, 2).

    It begins at the second point, and ends just before the last but one.
    """
    # Each window of four points gives six points of the curve between its middle two.
    windows = np.stack([points[:-3], points[1:-2], points[2:-1], points[3:]], 1)  # (n-3, 4, 2)
    return (SPLINE @ windows).reshape(-1, 2)
