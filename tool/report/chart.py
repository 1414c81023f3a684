"""Drawings for a page as SVG text: curves over a shared axis, without a library and without JS."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 340, 46, 10, 8, 20
POINTS = 300  # per curve, which is more than a curve has pixels to show


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        name: What it is, shown under the pointer.
        colour: A CSS colour.
        points: (x, y) with ascending x, all finite.
    """

    name: str
    colour: str
    points: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A dot on a drawing, with a text that is shown under the pointer."""

    text: str
    colour: str
    x: float
    y: float


def chart(
    curves: Sequence[Curve], *, marks: Sequence[Mark] = (), height: int = 150, label: str
) -> str:
    """Return a drawing of curves as an SVG element; empty if there is nothing to draw.

    Args:
        curves: The curves, over one pair of axes.
        marks: Dots that are named.
        height: In units of which the drawing is `WIDTH` wide.
        label: What a screen reader says of it.
    """
    thin = [(curve, thinned(curve.points)) for curve in curves if len(curve.points)]
    points = [point for _, some in thin for point in some] + [(mark.x, mark.y) for mark in marks]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    y_ticks, x_ticks = ticks(min(ys), max(ys)), ticks(min(xs), max(xs), most=5)
    low, high = min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])
    first, last = min(xs), max(max(xs), min(xs) + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, height - BOTTOM - (y - low) / (high - low) * (height - TOP - BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(label)}">',
        *(_horizontal(place(first, y)[1], y) for y in y_ticks),
        *(_below(place(x, low)[0], height, x) for x in x_ticks if first <= x <= last),
    ]
    for curve, some in thin:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in some))
        title = f"<title>{html.escape(curve.name)}</title>"
        style = f'style="stroke:{curve.colour}"'
        parts.append(f'<polyline class="curve" {style} points="{path}">{title}</polyline>')
    for mark in marks:
        x, y = place(mark.x, mark.y)
        title = f"<title>{html.escape(mark.text)}</title>"
        dot = f'cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="fill:{mark.colour}"'
        parts.append(f'<circle class="mark" {dot}>{title}</circle>')
    return "".join(parts) + "</svg>"


def _horizontal(y: float, value: float) -> str:
    """Return a line of the grid and its number."""
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _below(x: float, height: int, value: float) -> str:
    """Return a number below the x axis."""
    return f'<text x="{x:.1f}" y="{height - 5}" text-anchor="middle">{value:g}</text>'


def ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `most` steps apart."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `POINTS` points: means over neighbours; the last point stays as it is."""
    size = -(-len(points) // POINTS)
    if size <= 1:
        return list(points)
    groups = [points[first : first + size] for first in range(0, len(points), size)]
    means = [tuple(sum(axis) / len(axis) for axis in zip(*group, strict=True)) for group in groups]
    return [*((x, y) for x, y in means[:-1]), points[-1]]
