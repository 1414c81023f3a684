"""Cars and trains of the embedded dataset, in several builds and views.

Every public function paints one vehicle on a canvas of its own, heading to the right or to the
viewer.
"""

from __future__ import annotations

import itertools

import numpy as np

from data.toy.drawing.paint import Canvas, Point, Rng, colour, glass, outline, skin

DARK = np.array([28, 28, 30], np.float32)
STEEL = np.array([150, 152, 156], np.float32)
LAMP = np.array([252, 246, 215], np.float32)


def car(canvas: Canvas, rng: Rng) -> None:
    """Paint a saloon, hatchback, van or pick-up from the side, or a car from the front."""
    paint = skin(rng, canvas.alpha.shape)
    if rng.random() < 0.68:
        _car_side(canvas, rng, paint)
    else:
        _car_front(canvas, rng, paint)


def _car_side(canvas: Canvas, rng: Rng, paint: np.ndarray) -> None:
    belt, sill = rng.uniform(0.47, 0.52), rng.uniform(0.66, 0.7)
    front = _car_cabin(canvas, rng, paint, belt)
    x = (0.03, 0.1, front, 0.9, 0.96, 0.97, 0.03)
    y = (belt + 0.03, belt, belt, belt + 0.03, belt + 0.08, sill, sill)
    canvas.polygon(outline(x, y), paint, volume=0.7)
    canvas.box((0.03, sill - 0.02), (0.97, sill + 0.015), DARK + 25)
    for x in (rng.uniform(0.45, 0.55), rng.uniform(0.1, 0.35), front - 0.05):
        canvas.limb([(x, belt + 0.01), (x - 0.005, sill - 0.02)], (0.008, 0.008), paint * 0.45)
    canvas.box((0.56, belt + 0.04), (0.61, belt + 0.055), DARK)
    canvas.ellipse((0.94, belt + 0.09), (0.03, 0.022), LAMP)
    canvas.box((0.03, belt + 0.05), (0.055, belt + 0.11), np.array([190, 30, 25], np.float32))
    wheel, hub = rng.uniform(0.082, 0.1), STEEL * rng.uniform(0.7, 1.3)
    for x in (rng.uniform(0.19, 0.23), rng.uniform(0.76, 0.8)):
        canvas.ellipse((x, sill + 0.01), (wheel * 1.15, wheel * 1.15), paint * 0.3)
        canvas.ellipse((x, sill + 0.025), (wheel, wheel), DARK, volume=0.3)
        canvas.ellipse((x, sill + 0.025), (wheel * 0.58, wheel * 0.58), hub, volume=0.6)
        canvas.ellipse((x, sill + 0.025), (wheel * 0.18, wheel * 0.18), DARK)


def _car_cabin(canvas: Canvas, rng: Rng, paint: np.ndarray, belt: float) -> float:
    """Paint the roof and windows above the belt line, and return the x where the bonnet begins."""
    roof, pane = rng.uniform(0.28, 0.38), glass(rng)
    rear, screen = rng.uniform(0.06, 0.32), rng.uniform(0.52, 0.64)
    back, front = rear + rng.uniform(0.02, 0.16), screen + rng.uniform(0.08, 0.2)
    shell = [(rear, belt), (back, roof), (screen, roof), (front, belt)]
    canvas.polygon(shell, paint * 0.95, volume=0.4)
    middle, top = (back + screen) / 2 + 0.02, roof + 0.035
    behind, ahead = middle - 0.015, middle + 0.015
    window = [(rear + 0.05, belt), (back + 0.03, top), (behind, top), (behind, belt)]
    canvas.polygon(window, pane)
    window = [(ahead, belt), (ahead, top), (screen - 0.015, top), (front - 0.045, belt)]
    canvas.polygon(window, pane * 1.1)
    return front


def _car_front(canvas: Canvas, rng: Rng, paint: np.ndarray) -> None:
    roof, belt, sill = rng.uniform(0.2, 0.3), rng.uniform(0.42, 0.47), rng.uniform(0.7, 0.74)
    for x in (0.2, 0.8):
        canvas.box((x - 0.06, sill - 0.06), (x + 0.06, sill + 0.1), DARK, volume=0.3)
    taper = rng.uniform(0.08, 0.13)
    cabin = [(0.16, belt), (0.18 + taper, roof), (0.82 - taper, roof), (0.84, belt)]
    canvas.polygon(cabin, paint * 0.9, volume=0.4)
    top = roof + 0.04
    screen = [(0.21, belt), (0.21 + taper, top), (0.79 - taper, top), (0.79, belt)]
    canvas.polygon(screen, glass(rng), volume=0.4)
    shoulder, skirt = belt + 0.1, sill + 0.03
    x = (0.15, 0.85, 0.91, 0.91, 0.87, 0.13, 0.09, 0.09)
    y = (belt, belt, shoulder, sill, skirt, skirt, sill, shoulder)
    canvas.polygon(outline(x, y), paint, volume=0.6)
    for x in (0.08, 0.92):
        canvas.ellipse((x, belt), (0.05, 0.03), paint * 0.8)
    grille = rng.uniform(0.1, 0.18)
    canvas.box((0.5 - grille, belt + 0.1), (0.5 + grille, belt + 0.18), DARK + 20)
    for y in (belt + 0.125, belt + 0.155):
        canvas.box((0.5 - grille, y), (0.5 + grille, y + 0.01), STEEL)
    for x in (0.2, 0.8):
        canvas.ellipse((x, belt + 0.13), (0.07, 0.042), STEEL, volume=0.4)
        canvas.ellipse((x, belt + 0.13), (0.048, 0.03), LAMP)
    canvas.box((0.12, sill - 0.05), (0.88, sill), DARK + 45)
    canvas.box((0.41, sill - 0.055), (0.59, sill - 0.01), np.array([235, 232, 215], np.float32))


def train(canvas: Canvas, rng: Rng) -> None:
    """Paint an engine with one to three wagons from the side, or one from the front."""
    if rng.random() < 0.65:
        _train_side(canvas, rng)
    else:
        _train_front(canvas, rng)


def _train_side(canvas: Canvas, rng: Rng) -> None:
    engine = skin(rng, canvas.alpha.shape)
    wagon = skin(rng, canvas.alpha.shape) if rng.random() < 0.5 else engine
    high = rng.uniform(0.13, 0.18)
    low = high * rng.uniform(0.55, 1.0)
    trim, pane, step = colour(rng), glass(rng), rng.uniform(0.045, 0.07)

    def at(x: float, share: float) -> Point:
        """Return the point at `x` and at a share of the train's height there, 0 at its foot."""
        return x, 0.6 - share * 2 * (low + (high - low) * x)

    def panel(left: float, right: float, foot: float, top: float) -> list[Point]:
        return [at(left, foot), at(left, top), at(right, top), at(right, foot)]

    edges = np.linspace(0.03, 0.97, int(rng.integers(3, 6)))
    for start, end in itertools.pairwise(edges):
        left, right, leads = start + 0.008, end - 0.008, end == edges[-1]
        for x in (left + 0.04, left + 0.09, right - 0.09, right - 0.04):
            canvas.ellipse((x, 0.612), (0.026, 0.026), DARK)
        canvas.polygon(panel(left, right, 0, 0.15), DARK + 30)
        if not leads:
            canvas.polygon(panel(right - 0.02, right + 0.03, 0.1, 0.9), DARK + 10)
        nose = rng.uniform(0.02, 0.09) if leads else 0.0
        roof = [at(left, 0.93), at(left + 0.012, 1), at(right - 0.012 - nose, 1)]
        face = [at(right - nose * 0.6, 0.85), at(right, 0.4), at(right, 0.1)]
        canvas.polygon([at(left, 0.1), *roof, *face], engine if leads else wagon, volume=0.6)
        canvas.polygon(panel(left, right, 0.3, 0.4), trim)
        for x in np.arange(left + 0.022, right - step - nose, step):
            canvas.polygon(panel(x, x + step * 0.65, 0.52, 0.82), pane)
    if rng.random() < 0.5:
        x, y = at(0.6, 1.0)
        canvas.limb([(x, y), (x + 0.03, y - 0.04), (x, y - 0.08)], (0.012, 0.012), DARK + 30)


def _train_front(canvas: Canvas, rng: Rng) -> None:
    paint, pane = skin(rng, canvas.alpha.shape), glass(rng)
    left, roof, base = rng.uniform(0.42, 0.5), rng.uniform(0.14, 0.22), 0.86
    end, far = rng.uniform(0.02, 0.1), rng.uniform(0.4, 0.52)
    low = base - rng.uniform(0.15, 0.25)

    def at(depth: float, share: float) -> Point:
        """Return a point of the receding side: from front and foot, 0, to far end and top, 1."""
        foot, top = base + (low - base) * depth, roof + (far - roof) * depth
        return left + 0.03 + (end - left) * depth, foot + (top - foot) * share

    def panel(near: float, away: float, foot: float, top: float) -> list[Point]:
        return [at(near, foot), at(away, foot), at(away, top), at(near, top)]

    canvas.polygon(panel(0, 1, 0, 1), paint * 0.72, volume=0.4)
    canvas.polygon(panel(0, 1, 0, 0.1), DARK)
    for depth in np.arange(0.08, 0.95, 0.14):
        canvas.polygon(panel(depth, depth + 0.09, 0.5, 0.8), pane * 0.8)
    _train_face(canvas, rng, (paint, pane, colour(rng)), (left, roof, 0.93, base))


def _train_face(
    canvas: Canvas,
    rng: Rng,
    fills: tuple[np.ndarray, np.ndarray, np.ndarray],
    box: tuple[float, float, float, float],
) -> None:
    """Paint the front of an engine in `box`, with the fills of body, windows and trim."""
    (paint, pane, trim), (left, roof, right, base) = fills, box
    x = (left, left, left + 0.08, right - 0.08, right, right)
    y = (base, roof + 0.08, roof, roof, roof + 0.08, base)
    canvas.polygon(outline(x, y), paint, volume=0.6)
    belt, middle = roof + rng.uniform(0.24, 0.3), (left + right) / 2
    canvas.box((left + 0.04, roof + 0.09), (middle - 0.015, belt), pane, volume=0.4)
    canvas.box((middle + 0.015, roof + 0.09), (right - 0.04, belt), pane, volume=0.4)
    y = (belt + 0.05, belt + 0.05, belt + 0.15, belt + 0.2, belt + 0.15)
    canvas.polygon(outline((left, right, right, middle, left), y), trim)
    for x in (left + 0.08, right - 0.08):
        canvas.ellipse((x, base - 0.12), (0.035, 0.035), LAMP, volume=0.3)
    top, foot = base - 0.05, base + 0.05
    buffer = [(left, top), (right, top), (right - 0.06, foot), (left + 0.06, foot)]
    canvas.polygon(buffer, DARK + 15)
