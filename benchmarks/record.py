"""What the commands share: the flag `--json FILE`, Markdown tables, and the figures as JSON."""

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
    """Write `record` whole, in place of what the file held; do nothing if `path` is None.

    JSON does not have NaN and infinity, which become null.
    """
    if path is not None:
        write_json(path, _finite(record))


class Rows:
    """Results that are printed one by one; after each, the JSON of all of them is written anew.

    Args:
        path: File of the JSON; None for none.
        line: What is printed of a result, with its figures in braces.
        names: Columns of the table whose row `line` is; none if it is no row of a table.
        facts: What the record holds beside its `rows`.
    """

    def __init__(self, path: Path | None, line: str, *names: str, **facts: Any) -> None:
        self.path, self.line, self.names = path, line, names
        self.record = {**facts, "rows": []}

    def add(self, **figures: Any) -> None:
        """Print a result, and record it."""
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
    """Return the first two lines of a Markdown table: the names of its columns, and a rule."""
    return f"{row(*names)}\n{'|---' * len(names)}|"


def _finite(value: Any) -> Any:
    """Return the value with None for each number in it that is not finite."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
