"""Paint for the embedded dataset: noise, colours and textures.

Colours are float32 RGB in 0..255, weights float32 in [0, 1].
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from data.toy.drawing import Paint, Range, Rng, Shape


def noise(rng: Rng, shape: Shape, cell: float | Range) -> np.ndarray:
    """Draw smooth noise (H, W) float32 in [0, 1].

    Args:
        rng: The generator.
        shape: (H, W).
        cell: Size of the features in pixels, about: one number, or height and width.
    """
    # Enlarge a small grid of random numbers.
    cell_y, cell_x = cell if isinstance(cell, tuple) else (cell, cell)
    grid = (max(2, round(shape[0] / cell_y) + 1), max(2, round(shape[1] / cell_x) + 1))
    small = rng.random(grid, dtype=np.float32)
    return cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)


def fractal(rng: Rng, shape: Shape, cell: float, octaves: int = 3) -> np.ndarray:
    """Draw noise (H, W) in [0, 1] as a sum of octaves.

    Args:
        rng: The generator.
        shape: (H, W).
        cell: Size of the largest features in pixels.
        octaves: Number of octaves; each has half the cell and half the amplitude of the one before.
    """
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        total += noise(rng, shape, max(cell / 2**octave, 1.5)) / 2**octave
    return total / (2 - 2.0 ** (1 - octaves))


def grid(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers (H, 1) and the column numbers (1, W), float32."""
    rows, columns = (np.arange(size, dtype=np.float32) for size in shape)
    return rows[:, None], columns[None, :]


def ramp(shape: Shape) -> np.ndarray:
    """Return a weight (H, W) that grows from 0 in the top row to 1 in the bottom row."""
    column = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    return column.repeat(shape[1], axis=1)


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Return the colour (3,) of a hue, saturation and value in [0, 1]."""
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255


def colour(rng: Rng) -> np.ndarray:
    """Sample a colour (3,): earthy or grey in two of three cases, else of any hue."""
    if rng.random() < 0.65:
        return hsv(rng.uniform(0.02, 0.14), rng.uniform(0.0, 0.6), rng.uniform(0.12, 0.97))
    return hsv(rng.random(), rng.uniform(0.15, 0.85), rng.uniform(0.25, 0.95))


def near(rng: Rng, hue: float, spread: float, saturation: Range, value: Range) -> np.ndarray:
    """Sample a colour (3,) close to a hue.

    Args:
        rng: The generator.
        hue: In [0, 1].
        spread: Largest difference of the sampled hue to `hue`.
        saturation: Range of the saturation, within [0, 1].
        value: Range of the value, within [0, 1].
    """
    turned = (hue + rng.uniform(-spread, spread)) % 1
    return hsv(turned, rng.uniform(*saturation), rng.uniform(*value))


def glass(rng: Rng) -> np.ndarray:
    """Sample the colour (3,) of a window pane."""
    return near(rng, 0.57, 0.06, (0.05, 0.45), (0.2, 0.75))


def blend(first: Paint, second: Paint, weight: float | np.ndarray) -> np.ndarray:
    """Blend two paints.

    Args:
        first: The paint at weight 0.
        second: The paint at weight 1.
        weight: (H, W) bool or in [0, 1], or one number for all pixels.

    Returns:
        (H, W, 3), or (3,) if two colours are blended by one number.
    """
    return first + (second - first) * np.asarray(weight, np.float32)[..., None]


def relief(texture: np.ndarray, strength: float) -> np.ndarray:
    """Return the summand (H, W, 1) that gives a paint a relief.

    Args:
        texture: (H, W) in [0, 1].
        strength: Difference of the brightness between texture 0 and 1.
    """
    return (texture - 0.5)[..., None] * strength


def stripes(rng: Rng, shape: Shape, period: float) -> np.ndarray:
    """Draw wavy stripes (H, W) in [0, 1], in a random direction, about one per `period` pixels."""
    y, x = grid(shape)
    angle = rng.uniform(0, math.pi)
    wave = noise(rng, shape, 4 * period) * rng.uniform(0, 6)  # bends the stripes
    phase = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + wave
    return (0.5 + 2 * np.sin(phase)).clip(0, 1)


def skin(rng: Rng, shape: Shape) -> np.ndarray:
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
        weight = ramp(shape)
    else:
        weight = (noise(rng, shape, 2.5) > 0.62).astype(np.float32) * 0.6
    return blend(first, second, weight) + relief(fractal(rng, shape, 6), rng.uniform(10, 50))
