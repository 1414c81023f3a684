"""Figures of runs: read from JSON files, summed up over seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tool.documents import ANY, NUMBER, TEXT, read_document

PAIR = [float, float]
# What stage 4 writes. Older versions wrote a leak of all classes as a number.
LEAK = ({"overall": NUMBER}, *NUMBER)
PROTOCOL = {"bg_threshold?": NUMBER, "classes_in_mean?": int}
SCORE = {
    "miou": NUMBER,
    "iou?": {ANY: NUMBER},
    "oracle?": PAIR,
    "sweep?": [PAIR],
    "leak?": LEAK,
    "protocol?": (PROTOCOL, None),
}
CONFIG = {"commit?": TEXT, "cpu?": TEXT, "config?": (dict, None)}
MINUTES = {"minutes?": NUMBER}
# What `--save` writes of a run, beside its figures.
ABOUT = {"commit": TEXT, "cpu": TEXT, "config": (dict, None)}


def read(path: Path, shape: Any) -> dict[str, Any]:
    """Return the content of a JSON file, {} if the file does not exist.

    Raises:
        ValueError: The file is no JSON, or not of this shape; names it.
    """
    return read_document(path, shape) if path.exists() else {}


def leak_in(document: dict[str, Any]) -> float | None:
    """Return the leak over all classes in a result of stage 4, in percent; None if it has none."""
    leak = document.get("leak")
    return leak.get("overall") if isinstance(leak, dict) else leak


def spread(values: list[float | None]) -> str:
    """Return `mean ± std`, `mean` for a single figure, or a dash for none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    return f"{mean:.1f}" if len(known) == 1 else f"{mean:.1f} ± {statistics.stdev(known):.1f}"


def paired(differences: list[float]) -> str:
    """Return `mean ± standard error (number)` of differences of pairs, or a dash for none."""
    if not differences:
        return "-"
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return f"{mean:+.1f} (1)"
    return f"{mean:+.1f} ± {statistics.stdev(differences) / count**0.5:.1f} ({count})"


def share(pairs: list[tuple[float, float]]) -> str:
    """Return `mean ± standard error` of ratios of pairs in percent, or a dash for none."""
    ratios = [100 * part / whole for part, whole in pairs]
    if not ratios:
        return "-"
    mean, count = statistics.fmean(ratios), len(ratios)
    return f"{mean:.0f}" + (f" ± {statistics.stdev(ratios) / count**0.5:.0f}" if count > 1 else "")
