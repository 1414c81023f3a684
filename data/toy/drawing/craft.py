"""Aeroplanes and boats of the embedded dataset, in several builds and views.

Every public function paints one craft that heads to the right, on a canvas of its own.
"""

from __future__ import annotations

import numpy as np

from data.toy.drawing.paint import Canvas, Rng, colour, glass, outline, skin

DARK = np.array([28, 28, 30], np.float32)
STEEL = np.array([150, 152, 156], np.float32)


def aeroplane(canvas: Canvas, rng: Rng) -> None:
    """Paint an airliner or a light aircraft from the side, or any aeroplane from above."""
    paint, trim = skin(rng, canvas.alpha.shape), colour(rng)
    if rng.random() < 0.55:
        _aeroplane_side(canvas, rng, paint, trim)
    else:
        _aeroplane_above(canvas, rng, paint, trim)


def _aeroplane_side(canvas: Canvas, rng: Rng, paint: np.ndarray, trim: np.ndarray) -> None:
    thick, sweep, y = rng.uniform(0.055, 0.085), rng.uniform(0.1, 0.2), 0.5
    tip = 0.5 - sweep * 0.6
    canvas.polygon([(0.6, y), (tip, y - 0.2), (tip - 0.07, y - 0.2), (0.44, y)], paint * 0.7)
    _fuselage(canvas, rng, (paint, trim, glass(rng)), thick)
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


def _fuselage(
    canvas: Canvas, rng: Rng, fills: tuple[np.ndarray, np.ndarray, np.ndarray], thick: float
) -> None:
    """Paint the body, fin and windows of an aeroplane from the side, around the height 0.5."""
    paint, trim, pane = fills
    fin = rng.uniform(0.17, 0.26)
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


def _aeroplane_above(canvas: Canvas, rng: Rng, paint: np.ndarray, trim: np.ndarray) -> None:
    thick, sweep, span = rng.uniform(0.05, 0.075), rng.uniform(0.02, 0.25), rng.uniform(0.32, 0.44)
    root, chord, engines = rng.uniform(0.58, 0.66), rng.uniform(0.14, 0.2), rng.integers(3)
    for side, shade in ((-1, 0.95), (1, 0.8)):
        tip = 0.5 + side * span
        x = (root, root - sweep, root - sweep - chord * 0.45, root - chord * 1.2)
        canvas.polygon(outline(x, (0.5, tip, tip, 0.5)), paint * shade, volume=0.4)
        tip = 0.5 + side * span * 0.4
        canvas.polygon(outline((0.2, 0.12, 0.06, 0.09), (0.5, tip, tip, 0.5)), trim)
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
    paint, trim = skin(rng, canvas.alpha.shape), colour(rng)
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


def _load(canvas: Canvas, rng: Rng, deck: float) -> None:
    """Paint the sacks and the oar of a rowing boat."""
    for x in (0.3, 0.48, 0.66)[: rng.integers(1, 4)]:
        sack, top = skin(rng, canvas.alpha.shape), deck - rng.uniform(0.08, 0.16)
        canvas.limb([(x, deck + 0.02), (x + 0.02, top)], (0.12, 0.08), sack, volume=0.5)
    canvas.limb([(0.6, deck - 0.1), (0.28, deck + 0.22)], (0.022, 0.03), colour(rng))


def _sails(canvas: Canvas, rng: Rng, deck: float) -> None:
    mast, top = rng.uniform(0.46, 0.56), rng.uniform(0.04, 0.14)
    sail, jib = skin(rng, canvas.alpha.shape), skin(rng, canvas.alpha.shape)
    canvas.limb([(mast, deck), (mast, top)], (0.03, 0.018), STEEL * 0.8)
    back, front = rng.uniform(0.1, 0.2), rng.uniform(0.82, 0.94)
    x = (mast - 0.02, mast - 0.02, back, back + 0.12)
    y = (top + 0.03, deck - 0.07, deck - 0.05, (top + deck) / 2)
    canvas.polygon(outline(x, y), sail, volume=0.6)
    corners = [(mast + 0.02, top + 0.06), (front, deck - 0.06), (mast + 0.03, deck - 0.05)]
    canvas.polygon(corners, jib, volume=0.6)


def _cabin(canvas: Canvas, rng: Rng, deck: float) -> None:
    wall, pane, trim = skin(rng, canvas.alpha.shape), glass(rng), colour(rng)
    left, right = rng.uniform(0.15, 0.3), rng.uniform(0.62, 0.76)
    roof = deck - rng.uniform(0.15, 0.22)
    if rng.random() < 0.6:
        at = rng.uniform(left + 0.1, right - 0.15)
        canvas.box((at, roof - 0.28), (at + 0.1, roof), trim, volume=0.6)
        canvas.box((at, roof - 0.28), (at + 0.1, roof - 0.22), DARK)
    if rng.random() < 0.6:
        x = (right - 0.26, right - 0.24, right - 0.06, right - 0.02)
        y = (roof, roof - 0.15, roof - 0.15, roof)
        canvas.polygon(outline(x, y), wall * 0.9, volume=0.4)
        canvas.box((right - 0.21, roof - 0.12), (right - 0.08, roof - 0.05), pane)
    canvas.limb([(left + 0.03, roof), (left + 0.03, roof - 0.3)], (0.018, 0.012), STEEL)
    block = [(left, deck + 0.03), (left, roof), (right, roof), (right + 0.06, deck + 0.03)]
    canvas.polygon(block, wall, volume=0.5)
    for x in np.arange(left + 0.05, right - 0.05, rng.uniform(0.09, 0.13)):
        canvas.box((x, roof + 0.04), (x + 0.06, roof + 0.1), pane)
