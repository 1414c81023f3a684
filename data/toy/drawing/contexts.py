"""Contexts of the embedded dataset: things that are often near a class without being part of it.

Each function draws one context for the objects in `box`. It returns paint for the whole picture,
and an alpha that is 1 where the context lies. The left and right sides of `box` bound the context;
its top and bottom are those of the objects.
"""

from __future__ import annotations

import cv2
import numpy as np

from data.toy.drawing import Box, Layer, Rng, Shape
from data.toy.drawing.canvas import SHIFT, Canvas
from data.toy.drawing.paint import blend, colour, fractal, grid, near, noise, ramp, relief, stripes

SHADE = np.array([35, 35, 35], np.float32)
GLINT = np.array([235, 243, 246], np.float32)
LINE = np.array([235, 230, 205], np.float32)
KERB = np.array([190, 188, 182], np.float32)


def region(rng: Rng, shape: Shape, box: Box, rough: float = 12.0) -> np.ndarray:
    """Return the alpha (H, W) of a box with an uneven rim.

    Args:
        rng: The picture's generator.
        shape: (H, W).
        box: The box, which may extend beyond the picture.
        rough: How far the rim deviates from the box, about, in pixels.
    """
    # The distance of each pixel to the nearest side, positive inside, is disturbed by noise.
    y, x = grid(shape)
    across = np.minimum(x - box.left, box.right - x)
    inside = np.minimum(across, np.minimum(y - box.top, box.bottom - y))
    inside += (fractal(rng, shape, 30) - 0.5) * 2 * rough
    return (inside / 3 + 0.5).clip(0, 1)


def rails(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw gravel, sleepers and two rails below the box, across the whole picture."""
    # The bed of gravel, `bed` pixels high; `depth` is 0 at its upper edge and 1 at its lower one.
    bed = max(14.0, 0.13 * shape[0]) * rng.uniform(0.9, 1.5)
    top = min(box.bottom - 0.35 * bed, shape[0] - bed)
    gravel = near(rng, 0.08, 0.08, (0.03, 0.25), (0.35, 0.65))
    paint = gravel + relief(fractal(rng, shape, 3, 2), 130)
    y, x = grid(shape)
    depth = (y - top) / bed
    # Sleepers at a regular period, which lean as if seen in perspective.
    lean = (x - (box.left + box.right) / 2) * (1 + 0.25 * depth) + depth * rng.uniform(-6, 6)
    period = rng.uniform(7, 11)
    sleepers = (lean % period < period * 0.45) & (depth > 0.15) & (depth < 0.92)
    paint = blend(paint, near(rng, 0.07, 0.04, (0.2, 0.5), (0.15, 0.4)), sleepers)
    # Two rails, each with its shadow.
    for at in (0.3, 0.74):
        line = np.abs(depth - at) * bed < 1.3
        paint = blend(paint, near(rng, 0.6, 0.1, (0.0, 0.1), (0.6, 0.9)), line)
        shade = np.abs((depth - at) * bed - 2.2) < 0.8
        paint = blend(paint, SHADE, shade * 0.7)
    return Layer(paint, region(rng, shape, Box(-99, top, 999, top + bed), 3.0))


def water(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw rippled water that begins above the bottom of the box."""
    base = near(rng, 0.54, 0.08, (0.2, 0.75), (0.3, 0.75))
    ripples = noise(rng, shape, (2.5, rng.uniform(9, 18))) + 0.6 * noise(rng, shape, (5, 30)) - 0.8
    paint = base + ripples[..., None] * rng.uniform(50, 110)
    paint = blend(paint, GLINT, (noise(rng, shape, (1.8, 7)) > 0.86) * 0.6)
    top = box.bottom - (box.bottom - box.top) * rng.uniform(0.1, 0.4)
    bottom = box.bottom + shape[0] * rng.uniform(0.1, 0.3)
    return Layer(paint, region(rng, shape, box._replace(top=top, bottom=bottom), 5))


def road(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw asphalt with a dashed line and a kerb below the box."""
    grey = near(rng, 0.6, 0.1, (0.0, 0.1), (0.22, 0.5))
    paint = grey + relief(noise(rng, shape, 1.8), 45)
    # The road is `wide` pixels high; `depth` is 0 at its far edge and 1 at its near one.
    wide = shape[0] * rng.uniform(0.22, 0.34)
    top = min(box.bottom - wide * rng.uniform(0.3, 0.55), shape[0] - wide * 0.6)
    y, x = grid(shape)
    slope = (x - (box.left + box.right) / 2) * rng.uniform(-0.1, 0.1)
    depth = (y - top - slope) / wide
    # The dashes and the kerb.
    dash = rng.uniform(22, 34)
    lines = (np.abs(depth - 0.72) < 0.04) & ((x + rng.uniform(0, dash)) % dash < dash * 0.6)
    kerb = (depth > -0.02) & (depth < 0.07)
    paint = blend(paint, LINE, lines * 0.9)
    paint = blend(paint, KERB, kerb * 0.9)
    across = region(rng, shape, box._replace(top=-99, bottom=999), 6)
    return Layer(paint, across * ((0.5 - np.abs(depth - 0.5)) * wide / 1.5).clip(0, 1))


def grass(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw a meadow of blades and a few flowers around and below the box."""
    base = near(rng, 0.25, 0.06, (0.35, 0.75), (0.3, 0.65))
    paint = base + relief(fractal(rng, shape, 20), 70)
    # One blade per 16 pixels, each a short line from foot to tip in one of three shades.
    count = shape[0] * shape[1] // 16
    foot = np.stack([rng.uniform(0, shape[1], count), rng.uniform(0, shape[0], count)], 1)
    tip = foot + np.stack([rng.uniform(-3, 3, count), -rng.uniform(3, 9, count)], 1)
    blades = np.round(np.stack([foot, tip], 1) * 2**SHIFT).astype(np.int32)
    for start, shade in ((0, 0.55), (1, 1.45), (2, 1.0)):
        lines, tint = list(blades[start::3]), (base * shade).tolist()
        cv2.polylines(paint, lines, False, tint, 1, cv2.LINE_8, SHIFT)
    # Flowers of one colour.
    flower = near(rng, rng.random(), 0.1, (0.1, 0.9), (0.8, 1.0))
    for x, y in rng.uniform(0, 1, (int(rng.integers(0, 25)), 2)):
        cv2.circle(paint, (int(x * shape[1]), int(y * shape[0])), 1, flower.tolist(), -1)
    top = box.bottom - (box.bottom - box.top) * rng.uniform(0.25, 0.7)
    bottom = box.bottom + shape[0] * rng.uniform(0.08, 0.25)
    return Layer(paint, region(rng, shape, box._replace(top=top, bottom=bottom), 7))


def sky(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw a blue or evening sky with clouds, from the picture's top or the box's to below it."""
    high = near(rng, 0.58, 0.04, (0.3, 0.8), (0.5, 0.95))
    low = near(rng, 0.58 if rng.random() < 0.7 else 0.07, 0.04, (0.05, 0.45), (0.8, 1.0))
    heaps = fractal(rng, shape, max(shape) / 3, 4) * 0.7 + noise(rng, shape, (14, 40)) * 0.3
    clouds = ((heaps - rng.uniform(0.42, 0.55)) * 7).clip(0, 1) * rng.uniform(0.6, 1.0)
    white = near(rng, 0.6, 0.1, (0, 0.06), (0.82, 1.0))
    paint = blend(blend(high, low, ramp(shape)), white, clouds)
    top = 0 if rng.random() < 0.6 else box.top - shape[0] * 0.12
    bottom = box.bottom + shape[0] * rng.uniform(0.03, 0.12)
    return Layer(paint, region(rng, shape, box._replace(top=top - 20, bottom=bottom), 7))


def branch(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw a leafy branch that passes under the feet of the animals in the box."""
    side = max(shape)
    canvas = Canvas(side, (-0.4, -0.7))
    bark = near(rng, 0.07, 0.03, (0.2, 0.6), (0.25, 0.5))
    y, left, right = box.bottom / side - 0.03, box.left / side, box.right / side
    middle = (left + right) / 2
    # The stem, from side to side.
    stem = [(left, y + rng.uniform(-0.05, 0.12)), (middle, y), (right, y + rng.uniform(-0.12, 0.1))]
    grain = bark + relief(noise(rng, canvas.shape, (2, 12)), 60)
    canvas.limb(stem, (rng.uniform(0.05, 0.08), rng.uniform(0.025, 0.05)), grain, volume=0.8)
    # Twigs, each with five leaves at its tip.
    leaf = near(rng, 0.27, 0.08, (0.4, 0.85), (0.3, 0.75))
    for _ in range(int(rng.integers(6, 11))):
        x = rng.uniform(left, right)
        tip = (x + rng.uniform(-0.12, 0.12), y + rng.uniform(-0.22, 0.2))
        canvas.limb([(x, y), tip], (0.016, 0.01), bark * 0.9)
        for _ in range(5):
            at = (tip[0] + rng.uniform(-0.06, 0.06), tip[1] + rng.uniform(-0.05, 0.05))
            tint, turn = leaf * rng.uniform(0.6, 1.2), rng.uniform(0, 180)
            canvas.ellipse(at, (0.042, 0.018), tint, angle=turn, volume=0.4)
    return canvas.cropped(shape)


def sofa(rng: Rng, shape: Shape, box: Box) -> Layer:
    """Draw a sofa with a back, a seat, arms and cushions, behind and below the box."""
    side = max(shape)
    canvas = Canvas(side, (-0.3, -0.8))
    cloth, thread = colour(rng), colour(rng)
    pattern = stripes(rng, canvas.shape, rng.uniform(5, 14)) * rng.uniform(0.0, 0.6)
    weave = blend(cloth, thread, pattern) + relief(noise(rng, canvas.shape, 1.8), 30)
    left, right = box.left / side, box.right / side
    seat, foot = box.bottom / side - 0.05, min(box.bottom / side + 0.12, shape[0] / side)
    top = seat - rng.uniform(0.22, 0.34)
    # The back, in three parts.
    third = (right - left) / 3
    for i in range(3):
        x = left + third * i
        canvas.trapezoid((x, x + third, seat), (x, x + third, top), weave * 0.9, volume=0.8)
        canvas.limb([(x, top), (x, seat)], (0.008, 0.008), cloth * 0.5)
    # The seat with a seam, the arms and the cushions.
    canvas.box((left, seat - 0.02), (right, foot), weave, volume=0.5)
    canvas.limb([(left, seat + 0.055), (right, seat + 0.055)], (0.01, 0.01), cloth * 0.45)
    for x in (left, right):
        canvas.limb([(x, seat - 0.1), (x, foot)], (0.1, 0.1), weave * 0.8, volume=0.8)
    pillow = canvas.skin(rng)
    for x in (left + 0.09, right - 0.09)[: rng.integers(3)]:
        corners = [(-0.08, 0), (-0.06, -0.15), (0.08, -0.14), (0.09, 0)]
        canvas.polygon(np.add(corners, (x, seat)), pillow, smooth=True, volume=0.8)
    return canvas.cropped(shape)
