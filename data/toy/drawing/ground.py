"""Grounds of the embedded dataset: cluttered backgrounds, and distractors of no class."""

from __future__ import annotations

import numpy as np

from data.toy.drawing import Layer, Paint, Rng, Shape
from data.toy.drawing.canvas import Canvas, outline, shifted
from data.toy.drawing.paint import blend, colour, fractal, grid, noise, ramp, relief, skin


def background(rng: Rng, shape: Shape) -> np.ndarray:
    """Draw a ground (H, W, 3) without objects.

    It is graded, divided by a horizon, tiled or blotchy, and has a relief.
    """
    kind = rng.integers(4)
    first, second = colour(rng), colour(rng)
    if kind == 0:
        paint = blend(first, second, ramp(shape))
    elif kind == 1:
        row, _ = grid(shape)
        bend = (noise(rng, shape, shape[1] / 4)[:1] - 0.5) * shape[0] * 0.25
        edge = row - shape[0] * rng.uniform(0.25, 0.65) + bend
        paint = blend(skin(rng, shape), skin(rng, shape), (edge / 2).clip(0, 1))
    elif kind == 2:
        paint = _tiles(rng, shape, first, second)
    else:
        paint = blend(first, second, fractal(rng, shape, max(shape) / rng.uniform(2, 6)))
    return paint + relief(fractal(rng, shape, rng.uniform(4, 30), 4), rng.uniform(30, 110))


def _tiles(rng: Rng, shape: Shape, first: Paint, second: Paint) -> np.ndarray:
    """Draw bricks or paving (H, W, 3) of the first colour with mortar of the second colour."""
    height, width = rng.uniform(9, 24), rng.uniform(12, 40)
    y, x = grid(shape)
    # Every other row is shifted by half a brick.
    shifted = x + (y // height % 2) * width / 2
    mortar = (y % height < 1.6) | (shifted % width < 1.6)
    # Each brick has a brightness of its own.
    bricks = rng.uniform(-25, 25, (64, 64)).astype(np.float32)
    tint = bricks[(y // height).astype(int) % 64, (shifted // width).astype(int) % 64]
    return blend(first, second, mortar) + tint[..., None]


def distractor(rng: Rng, shape: Shape) -> Layer:
    """Draw one thing of no class at a random place, which may be partly outside the picture."""
    size = int(min(shape) * rng.uniform(0.25, 0.62))
    canvas = Canvas(size, (rng.uniform(-0.6, 0.6), -0.7))
    surface = canvas.skin(rng)
    thing = (_stone, _house, _tree, _sign, _ball, _crate)[rng.integers(6)]
    thing(canvas, rng, surface)
    place = shifted(rng.uniform(-0.3, 0.8) * shape[1], rng.uniform(-0.2, 0.75) * shape[0])
    return canvas.warped(place, shape)


def _stone(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
    reach = rng.uniform(0.2, 0.48, 9)
    corners = outline(0.5 + reach * np.cos(turn), 0.5 + reach * np.sin(turn))
    canvas.polygon(corners, surface, smooth=rng.random() < 0.6, volume=0.7)


def _house(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    top = rng.uniform(0.05, 0.4)
    canvas.box((0.15, top), (0.85, 0.97), surface, volume=0.3)
    if rng.random() < 0.6:
        canvas.polygon([(0.08, top), (0.5, top - 0.25), (0.92, top)], colour(rng), volume=0.3)
    pane = colour(rng) * 0.6
    step = rng.uniform(0.16, 0.24)
    for y in np.arange(top + 0.07, 0.85, step):
        for x in np.arange(0.22, 0.75, step):
            canvas.box((x, y), (x + step * 0.55, y + step * 0.6), pane)


def _tree(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    canvas.limb([(0.5, 0.98), (0.48, 0.7), (0.5, 0.4)], (0.12, 0.06), colour(rng) * 0.6, volume=0.5)
    for _ in range(12):
        at = (0.5 + rng.uniform(-0.26, 0.26), 0.36 + rng.uniform(-0.2, 0.22))
        canvas.disc(at, rng.uniform(0.09, 0.17), surface * rng.uniform(0.6, 1.0), volume=0.6)


def _sign(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    x = rng.uniform(0.3, 0.7)
    pole = [(x, 0.02), (x + rng.uniform(-0.1, 0.1), 0.98)]
    canvas.limb(pole, (0.05, 0.08), surface, volume=0.5)
    canvas.box((x - 0.2, 0.06), (x + 0.2, rng.uniform(0.2, 0.4)), colour(rng))


def _ball(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    canvas.ellipse((0.5, 0.5), (0.42, rng.uniform(0.2, 0.42)), surface, volume=0.9)


def _crate(canvas: Canvas, rng: Rng, surface: Paint) -> None:
    y = rng.uniform(0.2, 0.5)
    canvas.box((0.08, y), (0.92, 0.9), surface, volume=0.3)
    for x in np.arange(0.1, 0.9, rng.uniform(0.15, 0.3)):
        canvas.limb([(x, y), (x, 0.9)], (0.02, 0.02), surface * 0.5)
