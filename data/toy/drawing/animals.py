"""Animals of the embedded dataset: bird, cat, cow and sheep, in random poses and colours.

Every public function paints one animal that looks to the right, on a canvas of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.toy.drawing import Paint, Rng
from data.toy.drawing.canvas import Canvas, Point, outline
from data.toy.drawing.paint import blend, colour, near

BLACK = np.array([22, 20, 20], np.float32)
WHITE = np.array([238, 236, 230], np.float32)
EAR = np.array([200, 140, 135], np.float32)
MUZZLE = np.array([205, 160, 150], np.float32)
UDDER = np.array([215, 160, 150], np.float32)


def bird(canvas: Canvas, rng: Rng) -> None:
    """Paint a perched or a flying bird."""
    plumage = canvas.skin(rng)
    wing = canvas.skin(rng) if rng.random() < 0.5 else plumage * rng.uniform(0.6, 0.85)
    beak = near(rng, 0.1, 0.06, (0.3, 0.9), (0.35, 0.95))
    pose = _perched_bird if rng.random() < 0.6 else _flying_bird
    pose(canvas, rng, plumage, wing, beak)


def _perched_bird(canvas: Canvas, rng: Rng, plumage: Paint, wing: Paint, beak: Paint) -> None:
    fat, tail, tilt = rng.uniform(0.13, 0.19), rng.uniform(0.12, 0.3), rng.uniform(-55, -20)
    for x in (0.46, 0.53):
        canvas.limb([(x, 0.62), (x + 0.01, 0.72), (x + 0.03, 0.8)], (0.025, 0.018), beak * 0.7)
    x = (0.38, 0.24 - tail * 0.6, 0.32 - tail * 0.5, 0.46)
    canvas.polygon(outline(x, (0.58, 0.66 + tail, 0.7 + tail, 0.64)), wing * 0.8)
    canvas.ellipse((0.48, 0.52), (0.24, fat), plumage, angle=tilt, volume=0.6)
    neck, head = rng.uniform(0.0, 0.1), rng.uniform(0.09, 0.125)
    x, y = 0.64 + neck * 0.4, 0.32 - neck
    canvas.limb([(0.56, 0.44), (x, y)], (0.2, head * 1.5), plumage, volume=0.3)
    tip = (x + head + rng.uniform(0.06, 0.18), y + rng.uniform(0, 0.06))
    canvas.polygon([(x + head * 0.7, y - 0.04), tip, (x + head * 0.6, y + 0.05)], beak)
    canvas.ellipse((x, y), (head, head * 0.95), plumage, volume=0.5)
    breast = blend(plumage, colour(rng), 0.6)
    canvas.ellipse((0.56, 0.54), (0.07, fat * 0.9), breast, angle=tilt + 90, volume=0.3)
    along = (0.56, 0.5, 0.3, 0.2 - tail * 0.2, 0.36, 0.46)
    folded = outline(along, (0.42, 0.58, 0.72, 0.78, 0.5, 0.4))
    canvas.polygon(folded, wing, smooth=True, volume=0.5)
    for step in range(3):
        start = (0.47 - 0.04 * step, 0.5 + 0.04 * step)
        canvas.limb([start, (start[0] - 0.14, start[1] + 0.12)], (0.012, 0.008), wing * 0.55)
    _eye(canvas, (x + head * 0.35, y - 0.02), 0.024)


def _flying_bird(canvas: Canvas, rng: Rng, plumage: Paint, wing: Paint, beak: Paint) -> None:
    beat = rng.uniform(-0.35, 0.15)
    canvas.polygon(outline((0.36, 0.1, 0.06, 0.1, 0.36), (0.55, 0.5, 0.58, 0.66, 0.62)), wing * 0.8)
    _spread_wing(canvas, wing * 0.7, (0.5, 0.55 - rng.uniform(0.3, 0.42)))
    canvas.ellipse((0.5, 0.58), (0.24, rng.uniform(0.075, 0.11)), plumage, angle=-8, volume=0.6)
    _spread_wing(canvas, wing, (0.3, 0.58 + beat))
    head = rng.uniform(0.065, 0.085)
    canvas.polygon([(0.8, 0.49), (0.8 + rng.uniform(0.09, 0.17), 0.54), (0.79, 0.56)], beak)
    canvas.ellipse((0.75, 0.52), (head * 1.2, head), plumage, angle=-10, volume=0.5)
    _eye(canvas, (0.78, 0.5), 0.018)


def _spread_wing(canvas: Canvas, wing: Paint, tip: Point) -> None:
    """Paint a wing from the back of a flying bird to `tip`, with feathers at its trailing edge."""
    # Two points per feather, at shares of the way from the tip to the body, make a notched edge.
    feathers = []
    for share in (0.12, 0.3, 0.48, 0.66):
        x, y = tip[0] + (0.4 - tip[0]) * share - 0.08, tip[1] + (0.62 - tip[1]) * share
        feathers += [(x - 0.03, y), (x + 0.03, y + 0.01)]
    canvas.polygon([(0.62, 0.55), tip, *feathers, (0.38, 0.6)], wing, volume=0.4)


def cat(canvas: Canvas, rng: Rng) -> None:
    """Paint a sitting, lying or standing cat."""
    coat = canvas.skin(rng)
    pose = (_sitting_cat, _lying_cat, _standing_cat)[rng.integers(3)]
    pose(canvas, rng, coat)


def _sitting_cat(canvas: Canvas, rng: Rng, coat: Paint) -> None:
    swing, wide = rng.uniform(-0.08, 0.12), rng.uniform(0.17, 0.23)
    tail = [(0.36, 0.84), (0.2, 0.86), (0.13, 0.72 - swing), (0.17, 0.58 - swing)]
    canvas.limb(tail, (0.08, 0.05), coat * 0.85)
    x = (0.5 - wide, 0.46 - wide * 0.8, 0.42, 0.58, 0.62, 0.48 + wide)
    y = (0.88, 0.66, 0.42, 0.42, 0.66, 0.88)
    canvas.polygon(outline(x, y), coat, smooth=True, volume=0.6)
    for x in (0.46, 0.56):
        leg = [(x, 0.6), (x + 0.005, 0.76), (x + 0.01, 0.88)]
        canvas.limb(leg, (0.085, 0.075), coat * 0.95, volume=0.5)
        canvas.ellipse((x + 0.015, 0.89), (0.05, 0.03), coat if rng.random() < 0.6 else WHITE)
    _cat_head(canvas, rng, coat, (0.52 + rng.uniform(-0.05, 0.05), 0.3), rng.uniform(0.14, 0.18))


def _lying_cat(canvas: Canvas, rng: Rng, coat: Paint) -> None:
    flat = rng.uniform(0.12, 0.18)
    canvas.limb([(0.16, 0.66), (0.06, 0.72), (0.12, 0.8), (0.3, 0.81)], (0.08, 0.05), coat * 0.85)
    canvas.ellipse((0.42, 0.64), (0.32, flat), coat, angle=rng.uniform(-6, 6), volume=0.7)
    canvas.disc((0.24, 0.67), 0.13, coat * 0.95, volume=0.6)
    for shift in (0.0, 0.06):
        leg = [(0.6, 0.72), (0.74, 0.79 + shift * 0.3), (0.86 - shift, 0.8)]
        canvas.limb(leg, (0.08, 0.06), coat * 0.95)
    _cat_head(canvas, rng, coat, (0.74, 0.5 + rng.uniform(-0.03, 0.1)), rng.uniform(0.13, 0.16))


def _standing_cat(canvas: Canvas, rng: Rng, coat: Paint) -> None:
    raised = rng.uniform(0.0, 0.3)
    tail = [(0.2, 0.5), (0.1, 0.42), (0.1, 0.5 - raised), (0.05, 0.42 - raised)]
    canvas.limb(tail, (0.07, 0.04), coat * 0.9)
    _legs(canvas, rng, coat, (0.34, 0.69, 0.24, 0.6), (0.58, 0.85), 0.075)
    x = (0.16, 0.3, 0.5, 0.7, 0.76, 0.66, 0.4, 0.2)
    y = (0.5, 0.42, 0.45, 0.42, 0.54, 0.66, 0.64, 0.66)
    canvas.polygon(outline(x, y), coat, smooth=True, volume=0.7)
    _cat_head(canvas, rng, coat, (0.78, 0.37 + rng.uniform(-0.05, 0.08)), rng.uniform(0.12, 0.15))


def _cat_head(canvas: Canvas, rng: Rng, coat: Paint, at: Point, size: float) -> None:
    x, y = at
    look = rng.uniform(-0.15, 0.25) * size
    for side in (-1, 1):
        base = x + side * size * 0.62
        tip = (base + side * size * 0.2, y - size * rng.uniform(1.35, 1.6))
        ear = [(base - size * 0.4, y - size * 0.5), tip, (base + size * 0.4, y - size * 0.3)]
        canvas.polygon(ear, coat)
        ear = [(base - size * 0.2, y - size * 0.6), tip, (base + size * 0.2, y - size * 0.5)]
        canvas.polygon(ear, EAR * 0.8)
    canvas.ellipse(at, (size * 1.05, size * 0.9), coat, volume=0.6)
    muzzle = WHITE * 0.92 if rng.random() < 0.5 else coat * 1.1
    canvas.ellipse((x + look, y + size * 0.42), (size * 0.45, size * 0.32), muzzle)
    iris = near(rng, 0.2, 0.12, (0.4, 0.9), (0.6, 0.95))
    for side in (-1, 1):
        eye = (x + look + side * size * 0.4, y - size * 0.05)
        canvas.ellipse(eye, (size * 0.2, size * 0.16), iris)
        canvas.ellipse(eye, (size * 0.07, size * 0.15), BLACK)
        for slope in (-0.12, 0.1):
            start = (x + look + side * size * 0.25, y + size * 0.4)
            end = (x + look + side * size * 1.15, y + size * (0.4 + slope * 2))
            canvas.limb([start, end], (0.008, 0.006), WHITE)
    canvas.ellipse((x + look, y + size * 0.28), (size * 0.11, size * 0.08), EAR * 0.75)


def cow(canvas: Canvas, rng: Rng) -> None:
    """Paint a standing, grazing or lying cow."""
    coat = canvas.skin(rng)
    lying, grazing = rng.random() < 0.2, rng.random() < 0.4
    deep = rng.uniform(0.6, 0.66)
    canvas.limb([(0.17, 0.36), (0.11, 0.46), (0.11, 0.64)], (0.03, 0.02), coat * 0.8)
    canvas.ellipse((0.11, 0.66), (0.025, 0.045), BLACK)
    if lying:
        for x in (0.28, 0.62):
            canvas.limb([(x, 0.58), (x + 0.12, 0.67), (x - 0.02, 0.69)], (0.1, 0.06), coat * 0.8)
    else:
        canvas.ellipse((0.34, deep), (0.06, 0.05), UDDER)
        _legs(canvas, rng, coat, (0.31, 0.65, 0.22, 0.57), (0.55, rng.uniform(0.84, 0.92)), 0.085)
    x = (0.15, 0.3, 0.5, 0.66, 0.73, 0.68, 0.44, 0.2, 0.13)
    y = (0.37, 0.33, 0.35, 0.3, 0.42, 0.6, deep + 0.02, 0.6, 0.48)
    canvas.polygon(outline(x, y), coat, smooth=True, volume=0.7)
    low = grazing and not lying
    x, y = 0.86, rng.uniform(0.66, 0.74) if low else rng.uniform(0.2, 0.34)
    neck = [(0.62, 0.31), (x - 0.06, y - 0.06), (x + 0.01, y + 0.06), (0.7, 0.53)]
    canvas.polygon(neck, coat * 0.95, volume=0.4)
    _cow_head(canvas, rng, coat, (x, y), rng.uniform(45, 75) if low else rng.uniform(15, 45))


def _cow_head(canvas: Canvas, rng: Rng, coat: Paint, at: Point, angle: float) -> None:
    (x, y), turn = at, np.radians(angle)
    horn = near(rng, 0.11, 0.03, (0.1, 0.4), (0.6, 0.9))
    if rng.random() < 0.7:
        rise = rng.uniform(0.06, 0.13)
        for bend in (-0.05, 0.05):
            tip = (x - 0.02 + bend, y - 0.08 - rise)
            canvas.limb([(x - 0.04, y - 0.06), tip], (0.03, 0.012), horn)
    canvas.ellipse((x - 0.1, y - 0.03), (0.065, 0.028), coat * 0.75, angle=-15)
    canvas.ellipse((x, y), (0.12, 0.075), coat, angle=angle, volume=0.5)
    nose = (x + 0.09 * np.cos(turn), y + 0.09 * np.sin(turn))
    muzzle = MUZZLE if rng.random() < 0.6 else BLACK + 30
    canvas.ellipse(nose, (0.05, 0.06), muzzle, angle=angle, volume=0.4)
    canvas.disc((nose[0] + 0.02, nose[1]), 0.012, BLACK)
    _eye(canvas, (x - 0.005, y - 0.03), 0.017)


def sheep(canvas: Canvas, rng: Rng) -> None:
    """Paint a woolly sheep: a cloud of tufts, thin legs and a bare face."""
    wool = canvas.skin(rng)
    face = BLACK + 25 if rng.random() < 0.5 else colour(rng)
    _legs(canvas, rng, face, (0.36, 0.65, 0.28, 0.58), (0.6, rng.uniform(0.82, 0.9)), 0.05)
    long, deep = rng.uniform(0.22, 0.27), rng.uniform(0.13, 0.17)
    tufts = rng.integers(11, 17)
    for i in range(tufts):
        turn = 2 * np.pi * i / tufts + rng.uniform(-0.1, 0.1)
        at = (0.46 + long * np.cos(turn), 0.5 + deep * np.sin(turn))
        canvas.disc(at, rng.uniform(0.07, 0.1), wool * rng.uniform(0.82, 1.0), volume=0.8)
    canvas.ellipse((0.46, 0.5), (long, deep), wool, volume=0.3)
    for _ in range(14):
        at = (0.46 + long * rng.uniform(-0.8, 0.8), 0.5 + deep * rng.uniform(-0.8, 0.8))
        canvas.ellipse(at, (0.05, 0.045), wool * rng.uniform(0.85, 1.1), volume=0.9)
    y = rng.uniform(0.36, 0.46) if rng.random() < 0.65 else rng.uniform(0.6, 0.7)
    canvas.disc((0.73, (y + 0.45) / 2), 0.1, wool, volume=0.5)
    for side in (-1, 1):
        canvas.ellipse((0.75 + 0.06 * side, y - 0.05), (0.055, 0.024), face * 0.85, angle=20 * side)
    canvas.ellipse((0.79, y + 0.02), (0.1, 0.065), face, angle=rng.uniform(25, 60), volume=0.5)
    canvas.ellipse((0.73, y - 0.06), (0.055, 0.045), wool, volume=0.6)
    canvas.disc((0.79, y), 0.014, WHITE if face.mean() < 90 else BLACK)


def _legs(
    canvas: Canvas, rng: Rng, coat: Paint, hips: Sequence[float], reach: Point, width: float
) -> None:
    """Paint four legs, the far ones darker.

    Args:
        canvas: The canvas to paint on.
        rng: The generator, which draws the strides.
        coat: The paint of the legs.
        hips: The x of each leg's upper end; the two far legs come first.
        reach: The y of the upper ends and of the feet.
        width: The approximate width of a leg.
    """
    top, foot = reach
    for hip, shade in zip(hips, (0.65, 0.65, 0.95, 0.95), strict=True):
        stride = rng.uniform(-0.05, 0.05)
        leg = [(hip, top), (hip + stride * 0.2 + 0.01, (top + foot) / 2), (hip + stride, foot)]
        canvas.limb(leg, (width * 1.25, width * 0.7), coat * shade, volume=0.4)
        canvas.ellipse((hip + stride + 0.01, foot), (width * 0.5, width * 0.3), BLACK + 15)


def _eye(canvas: Canvas, at: Point, size: float) -> None:
    canvas.disc(at, size, BLACK)
    canvas.disc((at[0] + size * 0.3, at[1] - size * 0.3), size * 0.35, WHITE)
