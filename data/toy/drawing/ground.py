"""Grounds of the embedded dataset: cluttered backgrounds and distractors."""

from __future__ import annotations

import cv2
import numpy as np

from data.toy.drawing.paint import Canvas, Rng, blend, colour, fractal, grid, noise, skin

Shape = tuple[int, int]
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
Layer = tuple[np.ndarray, np.ndarray]  # paint (H, W, 3) in 0..255, alpha (H, W) in [0, 1]


def background(rng: Rng, shape: Shape) -> np.ndarray:
    """Draw a ground (H, W, 3) without objects: graded, split by a horizon, tiled or blotchy."""
    kind = rng.integers(4)
    first, second = colour(rng), colour(rng)
    if kind == 0:
        ramp = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None].repeat(shape[1], axis=1)
        paint = blend(first, second, ramp)
    elif kind == 1:
        row = np.arange(shape[0], dtype=np.float32)[:, None]
        bend = (noise(rng, shape, shape[1] / 4)[:1] - 0.5) * shape[0] * 0.25
        edge = row - shape[0] * rng.uniform(0.25, 0.65) + bend
        paint = blend(skin(rng, shape), skin(rng, shape), (edge / 2).clip(0, 1))
    elif kind == 2:
        paint = _tiles(rng, shape, first, second)
    else:
        paint = blend(first, second, fractal(rng, shape, max(shape) / rng.uniform(2, 6)))
    rough = (fractal(rng, shape, rng.uniform(4, 30), 4) - 0.5) * rng.uniform(30, 110)
    return paint + rough[..., None]


def _tiles(rng: Rng, shape: Shape, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Draw brickwork or paving with mortar of the second colour."""
    height, width = rng.uniform(9, 24), rng.uniform(12, 40)
    y, x = grid(shape)
    shifted = x + (y // height % 2) * width / 2
    mortar = ((y % height < 1.6) | (shifted % width < 1.6)).astype(np.float32)
    bricks = rng.uniform(-25, 25, (64, 64)).astype(np.float32)
    tint = bricks[(y // height).astype(int) % 64, (shifted // width).astype(int) % 64]
    return blend(first, second, mortar) + tint[..., None]


def distractor(rng: Rng, shape: Shape) -> Layer:
    """Draw one thing of no class: a stone, a house, a tree, a sign, a ball or a crate."""
    size = int(min(shape) * rng.uniform(0.25, 0.62))
    canvas = Canvas(size, (rng.uniform(-0.6, 0.6), -0.7))
    surface = skin(rng, canvas.alpha.shape)
    kind = rng.integers(6)
    if kind == 0:
        turn = np.sort(rng.uniform(0, 2 * np.pi, 9))
        reach = rng.uniform(0.2, 0.48, 9)
        corners = np.stack([0.5 + reach * np.cos(turn), 0.5 + reach * np.sin(turn)], 1)
        canvas.polygon(corners, surface, smooth=rng.random() < 0.6, volume=0.7)
    elif kind == 1:
        _house(canvas, rng, surface)
    elif kind == 2:
        _tree(canvas, rng, surface)
    elif kind == 3:
        x = rng.uniform(0.3, 0.7)
        canvas.limb(
            [(x, 0.02), (x + rng.uniform(-0.1, 0.1), 0.98)], (0.05, 0.08), surface, volume=0.5
        )
        canvas.box((x - 0.2, 0.06), (x + 0.2, rng.uniform(0.2, 0.4)), colour(rng))
    elif kind == 4:
        canvas.ellipse((0.5, 0.5), (0.42, rng.uniform(0.2, 0.42)), surface, volume=0.9)
    else:
        y = rng.uniform(0.2, 0.5)
        canvas.box((0.08, y), (0.92, 0.9), surface, volume=0.3)
        for x in np.arange(0.1, 0.9, rng.uniform(0.15, 0.3)):
            canvas.limb([(x, y), (x, 0.9)], (0.02, 0.02), surface * 0.5)
    return _laid(rng, canvas, shape)


def _house(canvas: Canvas, rng: Rng, surface: np.ndarray) -> None:
    top = rng.uniform(0.05, 0.4)
    canvas.box((0.15, top), (0.85, 0.97), surface, volume=0.3)
    if rng.random() < 0.6:
        canvas.polygon([(0.08, top), (0.5, top - 0.25), (0.92, top)], colour(rng), volume=0.3)
    pane = colour(rng) * 0.6
    step = rng.uniform(0.16, 0.24)
    for y in np.arange(top + 0.07, 0.85, step):
        for x in np.arange(0.22, 0.75, step):
            canvas.box((x, y), (x + step * 0.55, y + step * 0.6), pane)


def _tree(canvas: Canvas, rng: Rng, surface: np.ndarray) -> None:
    canvas.limb([(0.5, 0.98), (0.48, 0.7), (0.5, 0.4)], (0.12, 0.06), colour(rng) * 0.6, volume=0.5)
    for _ in range(12):
        at = (0.5 + rng.uniform(-0.26, 0.26), 0.36 + rng.uniform(-0.2, 0.22))
        radius = rng.uniform(0.09, 0.17)
        canvas.ellipse(at, (radius, radius), surface * rng.uniform(0.6, 1.0), volume=0.6)


def _laid(rng: Rng, canvas: Canvas, shape: Shape) -> Layer:
    """Place a canvas at random on a ground of `shape`, at times partly outside."""
    x = rng.uniform(-0.3, 0.8) * shape[1]
    y = rng.uniform(-0.2, 0.75) * shape[0]
    move = np.array([[1, 0, x], [0, 1, y]], np.float32)
    return cv2.warpAffine(canvas.rgb, move, shape[::-1]), cv2.warpAffine(
        canvas.alpha, move, shape[::-1]
    )
