"""Vehicles of the embedded dataset: aeroplane, boat, car and train, in several builds and views.

Every public function paints one vehicle on a canvas of its own, heading to the right or to the
viewer.
"""

from __future__ import annotations

import itertools

import numpy as np

from data.toy.drawing import Paint, Rng
from data.toy.drawing.canvas import Canvas, Point, outline
from data.toy.drawing.paint import colour, glass

DARK = np.array([28, 28, 30], np.float32)
STEEL = np.array([150, 152, 156], np.float32)
LAMP = np.array([252, 246, 215], np.float32)
TAIL_LAMP = np.array([190, 30, 25], np.float32)
PLATE = np.array([235, 232, 215], np.float32)


def aeroplane(canvas: Canvas, rng: Rng) -> None:
    """Paint an airliner or a light aircraft from the side, or any aeroplane from above."""
    paint, trim = canvas.skin(rng), colour(rng)
    view = _aeroplane_side if rng.random() < 0.55 else _aeroplane_above
    view(canvas, rng, paint, trim)


def _aeroplane_side(canvas: Canvas, rng: Rng, paint: Paint, trim: Paint) -> None:
    thick, sweep, y = rng.uniform(0.055, 0.085), rng.uniform(0.1, 0.2), 0.5
    tip = 0.5 - sweep * 0.6
    canvas.trapezoid((0.6, 0.44, y), (tip, tip - 0.07, y - 0.2), paint * 0.7)
    _fuselage(canvas, rng, paint, trim, thick)
    tail = [(0.2, y - 0.01), (0.06, y + 0.07), (0.01, y + 0.07), (0.09, y - 0.02)]
    canvas.polygon(tail, paint * 0.85)
    drop, tip = rng.uniform(0.16, 0.27), 0.47 - sweep
    wing = [(0.63, y + 0.02), (tip, y + drop), (tip - 0.09, y + drop), (0.42, y + 0.03)]
    canvas.polygon(wing, paint * 0.95, volume=0.6)
    if rng.random() < 0.75:
        canvas.ellipse((0.53, y + drop * 0.6), (0.075, 0.036), trim * 0.9, volume=0.8)
        canvas.ellipse((0.6, y + drop * 0.6), (0.014, 0.032), DARK)
    else:
        canvas.ellipse((0.95, y + 0.01), (0.012, 0.15), DARK + 40)


def _fuselage(canvas: Canvas, rng: Rng, paint: Paint, trim: Paint, thick: float) -> None:
    """Paint the body, fin and windows of an aeroplane from the side, centred at y = 0.5."""
    pane, fin = glass(rng), rng.uniform(0.17, 0.26)
    rise = (0.5 - thick * 0.6, 0.5 - fin, 0.5 - fin, 0.5 - thick * 0.3)
    canvas.polygon(outline((0.25, 0.12, 0.05, 0.08), rise), trim, volume=0.4)
    x = (0.04, 0.3, 0.75, 0.88, 0.94, 0.86, 0.6, 0.3, 0.12)
    bulge = np.array([-0.7, -1, -1, -0.5, 0.3, 0.9, 1, 1, 0])
    canvas.polygon(outline(x, 0.5 + thick * bulge), paint, smooth=True, volume=0.8)
    pilot = 0.5 - thick * np.array([0.75, 0.2, 0.15])
    canvas.polygon(outline((0.83, 0.9, 0.83), pilot), pane)
    for x in np.arange(0.3, 0.8, rng.uniform(0.035, 0.055)):
        canvas.ellipse((x, 0.5 - thick * 0.3), (0.011, 0.015), pane * 0.7)
    if rng.random() < 0.5:
        canvas.box((0.14, 0.5 + thick * 0.15), (0.92, 0.5 + thick * 0.35), trim)


def _aeroplane_above(canvas: Canvas, rng: Rng, paint: Paint, trim: Paint) -> None:
    thick, sweep, span = rng.uniform(0.05, 0.075), rng.uniform(0.02, 0.25), rng.uniform(0.32, 0.44)
    root, chord, engines = rng.uniform(0.58, 0.66), rng.uniform(0.14, 0.2), rng.integers(3)
    for side, shade in ((-1, 0.95), (1, 0.8)):
        wing_tip = (root - sweep, root - sweep - chord * 0.45, 0.5 + side * span)
        canvas.trapezoid((root, root - chord * 1.2, 0.5), wing_tip, paint * shade, volume=0.4)
        canvas.trapezoid((0.2, 0.09, 0.5), (0.12, 0.06, 0.5 + side * span * 0.4), trim)
        for share in (0.35, 0.62)[:engines]:
            at = (root - sweep * share + 0.01, 0.5 + side * span * share)
            canvas.ellipse(at, (0.065, 0.028), trim * 0.85, volume=0.8)
    x = (0.05, 0.2, 0.7, 0.88, 0.95, 0.88, 0.7, 0.2)
    bulge = np.array([0, -0.7, -1, -0.7, 0, 0.7, 1, 0.7])
    canvas.polygon(outline(x, 0.5 + thick * bulge), paint, smooth=True, volume=0.8)
    canvas.ellipse((0.86, 0.5), (0.025, thick * 0.6), glass(rng))
    canvas.limb([(0.06, 0.5), (0.2, 0.5)], (0.03, 0.015), trim * 0.8)


def boat(canvas: Canvas, rng: Rng) -> None:
    """Paint a sailing, motor or rowing boat."""
    paint, trim = canvas.skin(rng), colour(rng)
    keel = rng.uniform(0.82, 0.88)
    deck = keel - rng.uniform(0.13, 0.2)
    above = (_sails, _cabin, _load)[rng.integers(3)]
    above(canvas, rng, deck)
    tip = deck - rng.uniform(0.03, 0.1)
    x = (0.06, 0.5, 0.8, 0.97, 0.88, 0.78, 0.2, 0.11)
    y = (deck, deck + 0.02, deck, tip, keel - 0.04, keel, keel, keel - 0.05)
    canvas.polygon(outline(x, y), paint, volume=0.7)
    x = (0.06, 0.5, 0.8, 0.97, 0.95, 0.8, 0.5, 0.07)
    rim = (deck, deck + 0.02, deck, tip, tip + 0.04, deck + 0.04, deck + 0.055, deck + 0.035)
    canvas.polygon(outline(x, rim), trim)
    if rng.random() < 0.5:
        line = [(0.14, keel - 0.035), (0.86, keel - 0.035), (0.78, keel), (0.2, keel)]
        canvas.polygon(line, trim * 0.6)


def _sails(canvas: Canvas, rng: Rng, deck: float) -> None:
    mast, top = rng.uniform(0.46, 0.56), rng.uniform(0.04, 0.14)
    sail, jib = canvas.skin(rng), canvas.skin(rng)
    canvas.limb([(mast, deck), (mast, top)], (0.03, 0.018), STEEL * 0.8)
    back, front = rng.uniform(0.1, 0.2), rng.uniform(0.82, 0.94)
    x = (mast - 0.02, mast - 0.02, back, back + 0.12)
    y = (top + 0.03, deck - 0.07, deck - 0.05, (top + deck) / 2)
    canvas.polygon(outline(x, y), sail, volume=0.6)
    corners = [(mast + 0.02, top + 0.06), (front, deck - 0.06), (mast + 0.03, deck - 0.05)]
    canvas.polygon(corners, jib, volume=0.6)


def _cabin(canvas: Canvas, rng: Rng, deck: float) -> None:
    wall, pane, trim = canvas.skin(rng), glass(rng), colour(rng)
    left, right = rng.uniform(0.15, 0.3), rng.uniform(0.62, 0.76)
    roof = deck - rng.uniform(0.15, 0.22)
    if rng.random() < 0.6:
        at = rng.uniform(left + 0.1, right - 0.15)
        canvas.box((at, roof - 0.28), (at + 0.1, roof), trim, volume=0.6)
        canvas.box((at, roof - 0.28), (at + 0.1, roof - 0.22), DARK)
    if rng.random() < 0.6:
        bridge = (right - 0.26, right - 0.02, roof), (right - 0.24, right - 0.06, roof - 0.15)
        canvas.trapezoid(*bridge, wall * 0.9, volume=0.4)
        canvas.box((right - 0.21, roof - 0.12), (right - 0.08, roof - 0.05), pane)
    canvas.limb([(left + 0.03, roof), (left + 0.03, roof - 0.3)], (0.018, 0.012), STEEL)
    canvas.trapezoid((left, right + 0.06, deck + 0.03), (left, right, roof), wall, volume=0.5)
    for x in np.arange(left + 0.05, right - 0.05, rng.uniform(0.09, 0.13)):
        canvas.box((x, roof + 0.04), (x + 0.06, roof + 0.1), pane)


def _load(canvas: Canvas, rng: Rng, deck: float) -> None:
    """Paint the sacks and the oar of a rowing boat."""
    for x in (0.3, 0.48, 0.66)[: rng.integers(1, 4)]:
        sack, top = canvas.skin(rng), deck - rng.uniform(0.08, 0.16)
        canvas.limb([(x, deck + 0.02), (x + 0.02, top)], (0.12, 0.08), sack, volume=0.5)
    canvas.limb([(0.6, deck - 0.1), (0.28, deck + 0.22)], (0.022, 0.03), colour(rng))


def car(canvas: Canvas, rng: Rng) -> None:
    """Paint a saloon, hatchback, van or pick-up from the side, or a car from the front."""
    paint = canvas.skin(rng)
    view = _car_side if rng.random() < 0.68 else _car_front
    view(canvas, rng, paint)


def _car_side(canvas: Canvas, rng: Rng, paint: Paint) -> None:
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
    canvas.box((0.03, belt + 0.05), (0.055, belt + 0.11), TAIL_LAMP)
    wheel, hub = rng.uniform(0.082, 0.1), STEEL * rng.uniform(0.7, 1.3)
    for x in (rng.uniform(0.19, 0.23), rng.uniform(0.76, 0.8)):
        canvas.disc((x, sill + 0.01), wheel * 1.15, paint * 0.3)
        canvas.disc((x, sill + 0.025), wheel, DARK, volume=0.3)
        canvas.disc((x, sill + 0.025), wheel * 0.58, hub, volume=0.6)
        canvas.disc((x, sill + 0.025), wheel * 0.18, DARK)


def _car_cabin(canvas: Canvas, rng: Rng, paint: Paint, belt: float) -> float:
    """Paint the roof and windows above the y `belt`, and return the x where the bonnet begins."""
    roof, pane = rng.uniform(0.28, 0.38), glass(rng)
    rear, screen = rng.uniform(0.06, 0.32), rng.uniform(0.52, 0.64)
    back, front = rear + rng.uniform(0.02, 0.16), screen + rng.uniform(0.08, 0.2)
    canvas.trapezoid((rear, front, belt), (back, screen, roof), paint * 0.95, volume=0.4)
    middle, top = (back + screen) / 2 + 0.02, roof + 0.035
    behind, ahead = middle - 0.015, middle + 0.015
    canvas.trapezoid((rear + 0.05, behind, belt), (back + 0.03, behind, top), pane)
    canvas.trapezoid((ahead, front - 0.045, belt), (ahead, screen - 0.015, top), pane * 1.1)
    return front


def _car_front(canvas: Canvas, rng: Rng, paint: Paint) -> None:
    roof, belt, sill = rng.uniform(0.2, 0.3), rng.uniform(0.42, 0.47), rng.uniform(0.7, 0.74)
    for x in (0.2, 0.8):
        canvas.box((x - 0.06, sill - 0.06), (x + 0.06, sill + 0.1), DARK, volume=0.3)
    taper = rng.uniform(0.08, 0.13)
    top = (0.18 + taper, 0.82 - taper, roof)
    canvas.trapezoid((0.16, 0.84, belt), top, paint * 0.9, volume=0.4)
    top = (0.21 + taper, 0.79 - taper, roof + 0.04)
    canvas.trapezoid((0.21, 0.79, belt), top, glass(rng), volume=0.4)
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
    canvas.box((0.41, sill - 0.055), (0.59, sill - 0.01), PLATE)


def train(canvas: Canvas, rng: Rng) -> None:
    """Paint an engine with one to three wagons from the side, or one from the front."""
    view = _train_side if rng.random() < 0.65 else _train_front
    view(canvas, rng)


def _train_side(canvas: Canvas, rng: Rng) -> None:
    engine = canvas.skin(rng)
    wagon = canvas.skin(rng) if rng.random() < 0.5 else engine
    high = rng.uniform(0.13, 0.18)
    low = high * rng.uniform(0.55, 1.0)
    trim, pane, step = colour(rng), glass(rng), rng.uniform(0.045, 0.07)

    def at(x: float, share: float) -> Point:
        """Return the point at `x`, at a share of the train's height there: 0 at its foot."""
        return x, 0.6 - share * 2 * (low + (high - low) * x)

    def panel(left: float, right: float, foot: float, top: float) -> list[Point]:
        return [at(left, foot), at(left, top), at(right, top), at(right, foot)]

    # The carriages from left to right; the last one leads.
    edges = np.linspace(0.03, 0.97, int(rng.integers(3, 6)))
    for start, end in itertools.pairwise(edges):
        left, right, leads = start + 0.008, end - 0.008, end == edges[-1]
        for x in (left + 0.04, left + 0.09, right - 0.09, right - 0.04):
            canvas.disc((x, 0.612), 0.026, DARK)
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
    paint, pane = canvas.skin(rng), glass(rng)
    left, roof, base = rng.uniform(0.42, 0.5), rng.uniform(0.14, 0.22), 0.86
    end, far = rng.uniform(0.02, 0.1), rng.uniform(0.4, 0.52)
    low = base - rng.uniform(0.15, 0.25)

    def at(depth: float, share: float) -> Point:
        """Return a point of the side, which recedes from the viewer.

        Args:
            depth: 0 at the front, 1 at the far end.
            share: 0 at the foot, 1 at the top.
        """
        foot, top = base + (low - base) * depth, roof + (far - roof) * depth
        return left + 0.03 + (end - left) * depth, foot + (top - foot) * share

    def panel(near: float, away: float, foot: float, top: float) -> list[Point]:
        return [at(near, foot), at(away, foot), at(away, top), at(near, top)]

    canvas.polygon(panel(0, 1, 0, 1), paint * 0.72, volume=0.4)
    canvas.polygon(panel(0, 1, 0, 0.1), DARK)
    for depth in np.arange(0.08, 0.95, 0.14):
        canvas.polygon(panel(depth, depth + 0.09, 0.5, 0.8), pane * 0.8)
    _train_face(canvas, rng, paint, pane, (left, roof), (0.93, base))


def _train_face(
    canvas: Canvas, rng: Rng, paint: Paint, pane: Paint, corner: Point, other: Point
) -> None:
    """Paint the front of an engine between its upper left and its lower right corner."""
    trim, (left, roof), (right, base) = colour(rng), corner, other
    x = (left, left, left + 0.08, right - 0.08, right, right)
    y = (base, roof + 0.08, roof, roof, roof + 0.08, base)
    canvas.polygon(outline(x, y), paint, volume=0.6)
    belt, middle = roof + rng.uniform(0.24, 0.3), (left + right) / 2
    canvas.box((left + 0.04, roof + 0.09), (middle - 0.015, belt), pane, volume=0.4)
    canvas.box((middle + 0.015, roof + 0.09), (right - 0.04, belt), pane, volume=0.4)
    y = (belt + 0.05, belt + 0.05, belt + 0.15, belt + 0.2, belt + 0.15)
    canvas.polygon(outline((left, right, right, middle, left), y), trim)
    for x in (left + 0.08, right - 0.08):
        canvas.disc((x, base - 0.12), 0.035, LAMP, volume=0.3)
    top, foot = base - 0.05, base + 0.05
    buffer = [(left, top), (right, top), (right - 0.06, foot), (left + 0.06, foot)]
    canvas.polygon(buffer, DARK + 15)
