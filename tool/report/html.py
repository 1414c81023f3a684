"""The page of a report: one file without requests, made of plain data.

The look and the behaviour of the page are in `page/`. What is drawn there comes as JSON: a row per
image, and small pictures of some images.
"""

from __future__ import annotations

import dataclasses
import html
import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tool.files import atomic_path
from tool.formats.mask import palette
from tool.report.measure import Measures
from tool.report.picture import heat_colours

PARTS = Path(__file__).parent / "page"
LARGEST = 19_000_000  # bytes of a page, which is as much as one likes to send to somebody
# What is wrong with a pixel: colours that differ for the colour-blind too (Okabe and Ito).
ERRORS = {"extra": (230, 159, 0), "missed": (0, 114, 178), "confused": (204, 121, 167)}
ERROR_NAMES = {
    "extra": "foreground on background",
    "missed": "missed foreground",
    "confused": "another class",
}


@dataclasses.dataclass
class Row:
    """One image of the list.

    Attributes:
        id: Its id.
        classes: Mask values of its classes, ascending.
        measures: One per run; None where a run has no mask of it.
        differ: Per further run, the share of pixels in which its mask differs from the first
            run's; None if one of them is missing.
    """

    id: str
    classes: Sequence[int]
    measures: Sequence[Measures | None]
    differ: Sequence[float | None]

    def as_json(self, picture: int | None) -> dict[str, Any]:
        """Return the row as the page reads it, with the number of its picture."""
        of = self.measures

        def each(name: str) -> list[float | None]:
            return [None if one is None else _rounded(getattr(one, name)) for one in of]

        return {
            "id": self.id,
            "classes": list(self.classes),
            "picture": picture,
            "score": each("score"),
            "iou": [m and m.iou and {c: _rounded(v) for c, v in m.iou.items()} for m in of],
            "wrong": each("wrong"),
            "saliency": each("saliency"),
            "crf": each("crf"),
            "differ": [_rounded(share) for share in self.differ],
        }


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page is made of, beside its images.

    Attributes:
        title: The heading.
        lead: A sentence under it.
        parts: {"tiles", "runs", "facts", "classes", "sweep", "training"}: the HTML of each part.
        runs: Per run {"name", "gated"}.
        class_names: The K foreground names.
        choice: Which images have pictures.
        ramp: What the colours of CAMs are, for the legend.
    """

    title: str
    lead: str
    parts: dict[str, str]
    runs: Sequence[dict[str, Any]]
    class_names: Sequence[str]
    choice: str


def write_page(
    path: Path, page: Page, rows: Sequence[Row], pictures: Iterable[tuple[Row, dict[str, Any]]]
) -> int:
    """Write a page, whole or not at all; one picture is in memory at a time.

    Args:
        path: The file.
        page: What it is made of.
        rows: All images.
        pictures: Some of the rows, each with its pictures as `draw.js` reads them. Those that would
            make the page larger than `LARGEST` are left out.

    Returns:
        The number of images with pictures.
    """
    before, after = _template(page)
    numbers: dict[str, int] = {}
    fixed = len(before) + len(after) + len(_json(_report(page, rows, numbers)))
    left = LARGEST - fixed - 12 * len(rows)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(before)
        for row, picture in pictures:
            text = _json(picture)
            left -= len(text) + 80
            if left < 0:
                break
            _write_data(file, f"picture-{len(numbers)}", text)
            numbers[row.id] = len(numbers)
        _write_data(file, "report", _json(_report(page, rows, numbers)))
        file.write(after)
    return len(numbers)


def _template(page: Page) -> tuple[str, str]:
    """Return the text of the page before and after its data."""
    script = "\n".join(_part(name) for name in ("draw.js", "cards.js", "images.js"))
    text = string.Template(_part("page.html")).substitute(
        page.parts,
        title=html.escape(page.title),
        lead=html.escape(page.lead),
        style=_part("style.css"),
        script=script,
        legend=_legend(),
        data="\0",
    )
    before, _, after = text.partition("\0")
    return before, after


def _part(name: str) -> str:
    """Return a file of the page."""
    return (PARTS / name).read_text(encoding="utf-8")


def _report(page: Page, rows: Sequence[Row], numbers: dict[str, int]) -> dict[str, Any]:
    """Return what the script of the page reads."""
    return {
        "runs": list(page.runs),
        "classes": ["background", *page.class_names],
        "colours": palette()[: len(page.class_names) + 1].tolist(),
        "heat": heat_colours().tolist(),
        "errors": ERRORS,
        "choice": page.choice,
        "scored": any(m and m.iou is not None for row in rows for m in row.measures),
        "rows": [row.as_json(numbers.get(row.id)) for row in rows],
    }


def _legend() -> str:
    """Return what the colours mean."""
    stops = ", ".join(f"rgb{tuple(colour)}" for colour in heat_colours()[::32].tolist())
    ramp = f'<span class="ramp" style="background:linear-gradient(90deg, {stops})"></span>'
    items = [f"CAM 0{ramp}1"]
    items += [f"{key(ERRORS[name])}{text}" for name, text in ERROR_NAMES.items()]
    items += ["grey stripes: unknown"]
    return " ".join(f"<span>{item}</span>" for item in items)


def key(colour: Sequence[int]) -> str:
    """Return a small square of a colour."""
    return f'<span class="key" style="background:rgb({",".join(map(str, colour))})"></span>'


def _write_data(file: TextIO, name: str, text: str) -> None:
    """Write JSON that the page reads by its name."""
    file.write(f'<script type="application/json" id="{name}">{text}</script>\n')


def _json(value: Any) -> str:
    """Return JSON that may stand inside a page: no text in it ends the script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _rounded(value: float | None) -> float | None:
    """Return a share with four digits."""
    return None if value is None else round(value, 4)
