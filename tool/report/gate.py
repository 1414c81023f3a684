"""Print a Markdown table of runs with and without the NROI gate, of `scripts/sweep_gate.sh`.

A figure is the mIoU of CRF masks in percent. "at 8" is the default exponent of the background
score. "best" is the exponent that is best on ground truth, in brackets: an oracle, which no user
has. Runs METHOD-seedN of one method also get a row of means ± sample standard deviations.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.cli import run_stage
from tool.files import write_json
from tool.flags import flag, parse_flags
from tool.report.figures import read, spread

GATES = ("none", "nroi")
DEFAULT = "8"
Results = dict[str, dict[str, float | None]]  # exponent -> "miou" and "leak"
HEADINGS = ("plain at 8", "gate at 8", "plain, best", "gate, best", "leak plain", "leak gate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        runs: A row for each: run directories, which hold gate-none/ and gate-nroi/, or files that
            --save wrote.
        save: Folder that receives RUN.json per run: its figures, configuration, code and processor.
    """

    runs: list[Path] = flag(positional=True, metavar="RUN")
    save: Path | None = flag(None, metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table.

    Raises:
        FileNotFoundError: A run has no results.
        ValueError: Two runs have one name.
    """
    command = parse_flags(Command, argv, example="out/compare-toy/eps-seed0")
    twice = [run.name for run in command.runs if [r.name for r in command.runs].count(run.name) > 1]
    if twice:
        raise ValueError(f"two runs are called {twice[0]}: a table is of one dataset")
    methods: dict[str, list[list[float | None]]] = {}
    print(f"| run | {' | '.join(HEADINGS)} |")
    print("|---" * (1 + len(HEADINGS)) + "|")
    for run in command.runs:
        saved = run.is_file()
        name, record = run.stem if saved else run.name, read(run) if saved else of_run(run)
        if command.save is not None:
            write_json(command.save / f"{name}.json", record)
        results = [record["results"][gate] for gate in GATES]
        found = figures(*results)
        cells = [spread([value]) for value in found]
        for column, of_gate in enumerate(results, start=2):
            cells[column] += f" ({best_exponent(of_gate)})"
        print(f"| `{name}` | {' | '.join(cells)} |")
        methods.setdefault(re.sub(r"-seed\d+$", "", name), []).append(found)
    for method, rows in methods.items():
        if len(rows) > 1:
            cells = [spread(list(column)) for column in zip(*rows, strict=True)]
            print(f"| `{method}`, {len(rows)} runs | {' | '.join(cells)} |")


def of_run(run: Path) -> dict[str, Any]:
    """Return the figures of a run directory, and what the run was.

    Returns:
        `results` {gate: {exponent: {"miou", "leak"}}}, and `config`, `commit` and `cpu` of the
        run's `config.json`.

    Raises:
        FileNotFoundError: There is no result for the default exponent.
    """
    noted = read(run / "config.json")
    record: dict[str, Any] = {name: noted.get(name) for name in ("commit", "cpu", "config")}
    record["results"] = {}
    for gate in GATES:
        results = {}
        for path in sorted((run / f"gate-{gate}").glob("miou-*.json")):
            found = read(path)
            leak = (found.get("leak") or {}).get("overall")
            results[path.stem.removeprefix("miou-")] = {"miou": found["miou"], "leak": leak}
        if DEFAULT not in results:
            raise FileNotFoundError(f"no miou-8.json in {run}/gate-{gate}: run sweep_gate.sh")
        record["results"][gate] = results
    return record


def figures(plain: Results, gated: Results) -> list[float | None]:
    """Return the figures of a run, in the order of `HEADINGS`; None for a leak that it lacks."""
    both = (plain, gated)
    found = [results[DEFAULT]["miou"] for results in both]
    found += [results[best_exponent(results)]["miou"] for results in both]
    return found + [results[DEFAULT]["leak"] for results in both]


def best_exponent(results: Results) -> str:
    """Return the exponent that is best on ground truth."""
    return max(results, key=lambda alpha: results[alpha]["miou"] or 0)


if __name__ == "__main__":
    run_stage(main)
