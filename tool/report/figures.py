"""Figures of runs: read from JSON files, summed up over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, {} if the file does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


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
