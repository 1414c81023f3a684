"""Print a Markdown table of runs with and without the NROI gate, of `scripts/sweep_gate.sh`.

A figure is the mIoU of CRF masks in percent. "at 8" is the default exponent of the background
score. "best" is the exponent that is best on ground truth, in brackets: an oracle, which no user
has. Runs METHOD-seedN of one method also get a row of means ± sample standard deviations.

With --baseline a second table has paired differences: a gated method minus a baseline, mean ±
standard error over the seeds that both have on one processor model.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.cli import run_stage
from tool.documents import ANY, NUMBER
from tool.files import write_json
from tool.flags import flag, parse_flags
from tool.report.figures import ABOUT, CONFIG, SCORE, leak_in, paired, read, spread

GATES = ("none", "nroi")
DEFAULT = "8"
Results = dict[str, dict[str, float | None]]  # exponent -> "miou" and "leak"
SEED = re.compile(r"-seed(\d+)$")
_FIGURES = {"miou": NUMBER, "leak": NUMBER}
SAVED = {**ABOUT, "results": {gate: {DEFAULT: _FIGURES, ANY: _FIGURES} for gate in GATES}}
HEADINGS = ("plain at 8", "gate at 8", "plain, best", "gate, best", "leak plain", "leak gate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        runs: A row for each: run directories, which hold gate-none/ and gate-nroi/, or files that
            --save wrote.
        save: Folder that receives RUN.json per run: its figures, configuration, code and processor.
        baseline: Methods that the others, gated, are compared with, seed by seed.
    """

    runs: list[Path] = flag(positional=True, metavar="RUN")
    save: Path | None = flag(None, metavar="DIR")
    baseline: list[str] = flag(list, metavar="METHOD")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table.

    Raises:
        FileNotFoundError: A run has no results.
        ValueError: Two runs have one name, or a baseline has no run.
    """
    command = parse_flags(Command, argv, example="out/compare-toy/eps-seed0")
    twice = [run.name for run in command.runs if [r.name for r in command.runs].count(run.name) > 1]
    if twice:
        raise ValueError(f"two runs are called {twice[0]}: a table is of one dataset")
    methods: dict[str, list[list[float | None]]] = {}
    pairs: dict[str, dict[Any, list[float | None]]] = {}
    print(f"| run | {' | '.join(HEADINGS)} |")
    print("|---" * (1 + len(HEADINGS)) + "|")
    for run in command.runs:
        saved = run.is_file()
        name, record = run.stem if saved else run.name, read(run, SAVED) if saved else of_run(run)
        if command.save is not None:
            write_json(command.save / f"{name}.json", record)
        results = [record["results"][gate] for gate in GATES]
        found = figures(*results)
        cells = [spread([value]) for value in found]
        for column, of_gate in enumerate(results, start=2):
            cells[column] += f" ({best_exponent(of_gate)})"
        print(f"| `{name}` | {' | '.join(cells)} |")
        method, seed = SEED.sub("", name), SEED.search(name)
        methods.setdefault(method, []).append(found)
        pairs.setdefault(method, {})[seed and seed[1], record["cpu"]] = found
    for method, rows in methods.items():
        if len(rows) > 1:
            cells = [spread(list(column)) for column in zip(*rows, strict=True)]
            print(f"| `{method}`, {len(rows)} runs | {' | '.join(cells)} |")
    if command.baseline:
        print_differences(pairs, command.baseline)


def print_differences(
    methods: dict[str, dict[Any, list[float | None]]], baselines: Sequence[str]
) -> None:
    """Print the table of differences: each gated method minus each baseline, seed by seed.

    Args:
        methods: {method: {(seed, processor): figures in the order of `HEADINGS`}}.
        baselines: Names of methods.

    Raises:
        ValueError: A baseline has no run.
    """
    minus = ("plain at 8", "plain, best", "gate at 8", "leak gate")
    print(f"\n| gated method - baseline | {' | '.join(minus)} |")
    print("|---" * (1 + len(minus)) + "|")
    for baseline in baselines:
        if baseline not in methods:
            raise ValueError(f"--baseline {baseline}: there are runs of {', '.join(methods)}")
        theirs = methods[baseline]
        for method, ours in methods.items():
            if method == baseline:
                continue
            cells = []
            for name in minus:
                own = HEADINGS.index("leak gate" if name == "leak gate" else "gate at 8")
                other = HEADINGS.index(name)
                both = [(ours[key][own], theirs[key][other]) for key in ours if key in theirs]
                known = [a - b for a, b in both if a is not None and b is not None]
                cells.append(paired(known))
            print(f"| `{method}` - `{baseline}` | {' | '.join(cells)} |")


def of_run(run: Path) -> dict[str, Any]:
    """Read the figures of a run directory, and what the run was.

    Args:
        run: The run directory, with `gate-none/` and `gate-nroi/`.

    Returns:
        `results` {gate: {exponent: {"miou", "leak"}}} in percent, and `config`, `commit` and `cpu`
        of the run's `config.json`, each None if it is not there.

    Raises:
        FileNotFoundError: There is no result for the default exponent.
        ValueError: A JSON file is broken; names it.
    """
    noted = read(run / "config.json", CONFIG)
    record: dict[str, Any] = {name: noted.get(name) for name in ("commit", "cpu", "config")}
    record["results"] = {}
    for gate in GATES:
        results = {}
        for path in sorted((run / f"gate-{gate}").glob("miou-*.json")):
            found = read(path, SCORE)
            results[path.stem.removeprefix("miou-")] = {
                "miou": found["miou"],
                "leak": leak_in(found),
            }
        if DEFAULT not in results:
            raise FileNotFoundError(f"no miou-8.json in {run}/gate-{gate}: run sweep_gate.sh")
        record["results"][gate] = results
    return record


def figures(plain: Results, gated: Results) -> list[float | None]:
    """Return the six figures of a run in percent, in the order of `HEADINGS`.

    Args:
        plain: The results without the gate, by exponent; one of these is `DEFAULT`.
        gated: The results with the gate, likewise.

    Returns:
        The mIoU at `DEFAULT`, the mIoU at the exponent that is best on ground truth, and the leak
        at `DEFAULT`: of each first the plain one, then the gated one. None if a figure is unknown.
    """
    both = (plain, gated)
    found = [results[DEFAULT]["miou"] for results in both]
    found += [results[best_exponent(results)]["miou"] for results in both]
    return found + [results[DEFAULT]["leak"] for results in both]


def best_exponent(results: Results) -> str:
    """Return the exponent with the highest mIoU on ground truth; of equal ones the first.

    Args:
        results: At least one result. An mIoU of None counts as 0.
    """
    return max(results, key=lambda alpha: results[alpha]["miou"] or 0)


if __name__ == "__main__":
    run_stage(main)
