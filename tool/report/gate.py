"""Print a Markdown table of runs with and without the NROI gate, of `scripts/sweep_gate.sh`.

A figure is the mIoU of CRF masks in percent. "at 8" is the default exponent of the background
score. "best" is the exponent that is best on ground truth, in brackets: an oracle, which no user
has. Runs METHOD-seedN of one method also get a row of means ± sample standard deviations.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.report.table import spread

GATES = ("none", "nroi")
DEFAULT = 8.0
HEADINGS = ("plain at 8", "gate at 8", "plain, best", "gate, best", "leak plain", "leak gate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        runs: Run directories, a row for each; they hold gate-none/ and gate-nroi/.
    """

    runs: list[Path] = flag(positional=True, metavar="RUN")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table.

    Raises:
        FileNotFoundError: A run has no results.
    """
    command = parse_flags(Command, argv, example="out/compare-toy/eps-seed0")
    methods: dict[str, list[list[float | None]]] = {}
    print(f"| run | {' | '.join(HEADINGS)} |")
    print("|---" * (1 + len(HEADINGS)) + "|")
    for run in command.runs:
        results = [results_of(run, gate) for gate in GATES]
        found = figures(*results)
        cells = [spread([value]) for value in found]
        for column, of_gate in enumerate(results, start=2):
            cells[column] += f" ({best_exponent(of_gate):g})"
        print(f"| `{run.name}` | {' | '.join(cells)} |")
        methods.setdefault(re.sub(r"-seed\d+$", "", run.name), []).append(found)
    for method, rows in methods.items():
        if len(rows) > 1:
            cells = [spread(list(column)) for column in zip(*rows, strict=True)]
            print(f"| `{method}`, {len(rows)} runs | {' | '.join(cells)} |")


def results_of(run: Path, gate: str) -> dict[float, dict[str, Any]]:
    """Return the result of each exponent.

    Raises:
        FileNotFoundError: There is none for the default exponent.
    """
    folder = run / f"gate-{gate}"
    found = {
        float(path.stem.removeprefix("miou-")): json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob("miou-*.json")
    }
    if DEFAULT not in found:
        raise FileNotFoundError(f"no miou-8.json in {folder}: run scripts/sweep_gate.sh")
    return found


def figures(
    plain: dict[float, dict[str, Any]], gated: dict[float, dict[str, Any]]
) -> list[float | None]:
    """Return the figures of a run, in the order of `HEADINGS`; None for a leak that it lacks."""
    both = (plain, gated)
    found: list[float | None] = [results[DEFAULT]["miou"] for results in both]
    found += [results[best_exponent(results)]["miou"] for results in both]
    found += [(results[DEFAULT].get("leak") or {}).get("overall") for results in both]
    return found


def best_exponent(results: dict[float, dict[str, Any]]) -> float:
    """Return the exponent that is best on ground truth."""
    return max(results, key=lambda one: results[one]["miou"])


if __name__ == "__main__":
    run_stage(main)
