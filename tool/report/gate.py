"""Print a Markdown table of runs with and without the NROI gate, of `scripts/sweep_gate.sh`.

A figure is the mIoU of CRF masks in percent. "at 8" is the default exponent of the background
score. "best" is the exponent that is best on ground truth, in brackets: an oracle, which no user
has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.cli import run_stage
from tool.flags import flag, parse_flags

GATES = ("none", "nroi")
DEFAULT = 8.0


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
    print("| run | plain at 8 | gate at 8 | plain, best | gate, best | leak plain | leak gate |")
    print("|---" * 7 + "|")
    for run in command.runs:
        plain, gated = (results_of(run, gate) for gate in GATES)
        cells = [masks(plain[DEFAULT]), masks(gated[DEFAULT]), best(plain), best(gated)]
        cells += [leak(plain[DEFAULT]), leak(gated[DEFAULT])]
        print(f"| `{run.name}` | {' | '.join(cells)} |")


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


def masks(result: dict[str, Any]) -> str:
    """Return the mIoU of a result."""
    return f"{result['miou']:.1f}"


def best(results: dict[float, dict[str, Any]]) -> str:
    """Return the best mIoU, and its exponent."""
    alpha = max(results, key=lambda one: results[one]["miou"])
    return f"{masks(results[alpha])} ({alpha:g})"


def leak(result: dict[str, Any]) -> str:
    """Return the leak score of a result, a dash if it has none."""
    found = (result.get("leak") or {}).get("overall")
    return "-" if found is None else f"{found:.1f}"


if __name__ == "__main__":
    run_stage(main)
