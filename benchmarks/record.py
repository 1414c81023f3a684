"""What a benchmark found, as JSON beside its text: the flag `--json FILE` of each of them."""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.files import atomic_path


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def write_record(path: Path | None, record: dict[str, Any]) -> None:
    """Write `record` whole, in place of what the file held; do nothing if `path` is None.

    NaN and infinity, which JSON does not have, become null.
    """
    if path is None:
        return
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, fastest and slowest of some times."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
