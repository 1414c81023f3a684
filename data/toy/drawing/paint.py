"""Paint for the embedded dataset: noise, colours, textures and a canvas with shaded parts.

Colours are float32 RGB in 0..255, masks and alpha float32 in [0, 1]. Lengths on a `Canvas` are
fractions of its side, with x to the right and y down.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import cv2
import numpy as np

Rng = np.random.Generator
Point = tuple[float, float]
SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
STEP = np.linspace(0, 1, 6, endpoint=False)[:, None]
BASIS = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
SPLINE = (STEP ** np.arange(4) @ BASIS).astype(np.float32)  # Catmull-Rom weights, (6, 4)
RING = np.stack([np.cos(TURN), np.sin(TURN)], 1).astype(np.float32)  # (28, 2), the unit circle


def noise(rng: Rng, shape: tuple[int, int], cell: float | tuple[float, float]) -> np.ndarray:
    """Draw smooth noise (H, W) in [0, 1] with features about `cell` pixels wide.

    `cell` may be a pair: height and width of the features.
    """
    cell_y, cell_x = cell if isinstance(cell, tuple) else (cell, cell)
    grid = (max(2, round(shape[0] / cell_y) + 1), max(2, round(shape[1] / cell_x) + 1))
    small = rng.random(grid, dtype=np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def fractal(rng: Rng, shape: tuple[int, int], cell: float, octaves: int = 3) -> np.ndarray:
    """Draw noise (H, W) in [0, 1] in octaves; each halves the cell and the amplitude."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += noise(rng, shape, max(cell / 2**octave, 1.5)) / 2**octave
    return total / (2 - 2.0 ** (1 - octaves))


def grid(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers (H, 1) and column numbers (1, W), float32."""
    rows, columns = (np.arange(size, dtype=np.float32) for size in shape)
    return rows[:, None], columns[None, :]


def colour(rng: Rng) -> np.ndarray:
    """Sample a colour (3,): earthy or grey in two of three cases, else of any hue."""
    if rng.random() < 0.65:
        hue, saturation, value = (
            rng.uniform(0.02, 0.14),
            rng.uniform(0.0, 0.6),
            rng.uniform(0.12, 0.97),
        )
    else:
        hue, saturation, value = rng.random(), rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.95)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def near(rng: Rng, hue: float, spread: float, saturation: Point, value: Point) -> np.ndarray:
    """Sample a colour (3,): hue within `spread` of `hue`, saturation and value from ranges."""
    parts = (
        (hue + rng.uniform(-spread, spread)) % 1,
        rng.uniform(*saturation),
        rng.uniform(*value),
    )
    return np.array(colorsys.hsv_to_rgb(*parts), np.float32) * 255


def blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Blend two paints.

    Args:
        first: (3,) or (H, W, 3), the result at weight 0.
        second: (3,) or (H, W, 3), the result at weight 1.
        weight: (H, W) in [0, 1].

    Returns:
        (H, W, 3).
    """
    return first + (second - first) * np.asarray(weight, np.float32)[..., None]


def stripes(rng: Rng, shape: tuple[int, int], period: float) -> np.ndarray:
    """Draw wavy stripes (H, W) in [0, 1], in a random direction, about one per `period` pixels."""
    y, x = grid(shape)
    angle = rng.uniform(0, math.pi)
    wave = noise(rng, shape, 4 * period) * rng.uniform(0, 6)
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + wave
    return (0.5 + 2 * np.sin(phase)).clip(0, 1)


def skin(rng: Rng, shape: tuple[int, int]) -> np.ndarray:
    """Draw a surface (H, W, 3) for any object: plain, striped, patched, graded or speckled."""
    side = max(shape)
    first, second = colour(rng), colour(rng)
    kind = rng.choice(5, p=[0.3, 0.15, 0.25, 0.15, 0.15])
    if kind == 0:
        weight = np.zeros(shape, np.float32)
    elif kind == 1:
        weight = stripes(rng, shape, side * rng.uniform(0.05, 0.14)) * rng.uniform(0.4, 0.9)
    elif kind == 2:
        blotches = fractal(rng, shape, side * rng.uniform(0.12, 0.3), 2)
        weight = ((blotches - rng.uniform(0.45, 0.6)) * 14).clip(0, 1)
    elif kind == 3:
        ramp = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
        weight = np.repeat(ramp, shape[1], axis=1)
    else:
        weight = (noise(rng, shape, 2.5) > 0.62).astype(np.float32) * 0.6
    grain = (fractal(rng, shape, 6) - 0.5) * rng.uniform(10, 50)
    return blend(first, second, weight) + grain[..., None]


class Canvas:
    """A square sheet on which an object is put together from shaded parts.

    Args:
        size: Side in pixels.
        light: Direction (x, y) of the light's source, of about unit length.
    """

    def __init__(self, size: int, light: Point) -> None:
        self.size = size
        self.light = light
        self.rgb = np.zeros((size, size, 3), np.float32)
        self.alpha = np.zeros((size, size), np.float32)

    def polygon(
        self,
        points: Sequence[Point],
        fill: np.ndarray,
        *,
        smooth: bool = False,
        volume: float = 0.0,
    ) -> None:
        """Paint a polygon.

        Args:
            points: Its corners.
            fill: (3,) or (size, size, 3).
            smooth: Paint the closed spline through the corners instead.
            volume: Strength of the shading.
        """
        corners = np.asarray(points, np.float32)
        if smooth:
            corners = closed_spline(corners)
        mask = np.zeros((self.size, self.size), np.uint8)
        cv2.fillPoly(mask, [self._fixed(corners)], 255, cv2.LINE_AA, SHIFT)
        self._part(mask, fill, volume)

    def ellipse(
        self,
        centre: Point,
        radii: Point,
        fill: np.ndarray,
        *,
        angle: float = 0.0,
        volume: float = 0.0,
    ) -> None:
        """Paint an ellipse turned clockwise by `angle` degrees."""
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        axes = ((radii[0] * cosine, radii[0] * sine), (-radii[1] * sine, radii[1] * cosine))
        self.polygon(RING @ np.array(axes, np.float32) + np.array(centre), fill, volume=volume)

    def limb(
        self, points: Sequence[Point], widths: Point, fill: np.ndarray, *, volume: float = 0.0
    ) -> None:
        """Paint a bent tube along `points` whose width goes from `widths[0]` to `widths[1]`."""
        path = open_spline(np.asarray(points, np.float32))
        # Unit vectors along and across the path, and half the width at each of its points.
        along = np.gradient(path, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
        across = np.stack([-along[:, 1], along[:, 0]], 1)
        half = np.linspace(widths[0] / 2, widths[1] / 2, len(path))[:, None]
        cap = np.array([0.8, 0.5, -0.5, -0.8])[:, None]  # across and along, of the rounded ends
        bulge = np.array([0.6, 0.87, 0.87, 0.6])[:, None]
        end = path[-1] + half[-1] * (across[-1] * cap + along[-1] * bulge)
        start = path[0] - half[0] * (across[0] * cap + along[0] * bulge)
        sides = path + across * half, (path - across * half)[::-1]
        self.polygon(np.concatenate([sides[0], end, sides[1], start]), fill, volume=volume)

    def box(self, corner: Point, other: Point, fill: np.ndarray, *, volume: float = 0.0) -> None:
        """Paint an upright rectangle between two opposite corners."""
        (x0, y0), (x1, y1) = corner, other
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, volume=volume)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.round(points * (self.size * 2**SHIFT)).astype(np.int32)

    def _part(self, mask: np.ndarray, fill: np.ndarray, volume: float) -> None:
        """Lay `fill` over the canvas in `mask` (size, size) uint8, with light and shade."""
        x, y, w, h = cv2.boundingRect(mask)
        if w == 0 or h == 0:
            return
        at = (slice(y, y + h), slice(x, x + w))
        weight = mask[at].astype(np.float32) / 255
        surface = fill if fill.ndim == 1 else fill[at]
        # Brighter towards the light, darker at the rim.
        if volume:
            ramp_x = np.arange(-w, w, 2, dtype=np.float32)[None, :] * (self.light[0] / w)
            ramp_y = np.arange(-h, h, 2, dtype=np.float32)[:, None] * (self.light[1] / h)
            span = max(3, self.size // 9)
            rim = cv2.blur(weight, (span, span), borderType=cv2.BORDER_CONSTANT) - 0.8
            surface = surface * (1 + volume * (0.5 * (ramp_x + ramp_y) + rim))[..., None]
        self.rgb[at] = blend(self.rgb[at], surface, weight)
        self.alpha[at] = np.maximum(self.alpha[at], weight)


def outline(x: Sequence[float], y: Sequence[float]) -> list[Point]:
    """Return the points of a polygon from their n coordinates `x` and `y`."""
    return list(zip(x, y, strict=True))


def glass(rng: Rng) -> np.ndarray:
    """Sample the colour (3,) of a window pane."""
    return near(rng, 0.57, 0.06, (0.05, 0.45), (0.2, 0.75))


def closed_spline(corners: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve (n * 6, 2) through `corners` (n, 2) and back to the first."""
    around = np.arange(-1, len(corners) + 2) % len(corners)
    return _curve(corners[around])


def open_spline(points: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve ((n - 1) * 6 + 1, 2) from the first of `points` to the last."""
    ends = (2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1])
    return np.concatenate([_curve(np.concatenate(ends)), points[-1:]])


def _curve(points: np.ndarray) -> np.ndarray:
    """Return the Catmull-Rom curve from the second of `points` to just before the last but one."""
    windows = np.stack([points[:-3], points[1:-2], points[2:-1], points[3:]], 1)
    return (SPLINE @ windows).reshape(-1, 2)
