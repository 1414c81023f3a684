"""The flag `--json FILE`, tables in Markdown and records in JSON, which all benchmarks share."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from tool.files import write_json
from tool.flags import flag

TIMES = "median {median:.1f} ms (fastest {fastest:.1f}, slowest {slowest:.1f})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonFlags:
    """The flag that every benchmark has.

    Attributes:
        json: Write the figures to this file too.
    """

    json: Path | None = flag(None, metavar="FILE")


def write_record(path: Path | None, record: dict[str, Any]) -> None:
    """Write `record` as JSON, whole or not at all; do nothing if `path` is None.

    NaN and infinity become null, because JSON has neither.
    """
    if path is not None:
        write_json(path, _finite(record))


class Rows:
    """Results that are printed one by one; the JSON of all of them is written anew after each.

    Args:
        path: The JSON file; None to write none.
        line: The line that is printed per result, a format string with the figures in braces.
        names: Names of the columns, if `line` is a row of a table.
        facts: Other entries of the record, beside its `rows`.
    """

    def __init__(self, path: Path | None, line: str, *names: str, **facts: Any) -> None:
        self.path, self.line, self.names = path, line, names
        self.record = {**facts, "rows": []}

    def add(self, **figures: Any) -> None:
        """Print a result, and record it.

        Args:
            figures: The figures by name, those of `line` and perhaps others.
        """
        if self.names and not self.record["rows"]:
            print(head(*self.names))
        print(self.line.format(**figures), flush=True)
        self.record["rows"].append(figures)
        write_record(self.path, self.record)


def row(*cells: object) -> str:
    """Return a row of a Markdown table.

    >>> row("size", 8)
    '| size | 8 |'
    """
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: object) -> str:
    """Return the first two lines of a Markdown table: the names of its columns, and a line."""
    return f"{row(*names)}\n{'|---' * len(names)}|"


def _finite(value: Any) -> Any:
    """Return the value in plain types, with None for each number that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
