"""Print a Markdown table of the runs of `scripts/compare.sh`.

A figure is the mean ± sample standard deviation over seeds. With --baseline two columns are paired
differences: mean ± standard error over the seeds that both methods have on one processor model. The
results of a seed differ between processors by up to the spread of the seeds.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tool.cli import run_stage
from tool.documents import ANY, NUMBER
from tool.files import write_json
from tool.flags import flag, parse_flags
from tool.report.figures import (
    ABOUT,
    CONFIG,
    MINUTES,
    SCORE,
    leak_in,
    paired,
    read,
    spread,
)

COLUMNS = ("CAM", "CAM oracle", "masks", "leak", "minutes", "seeds")

SAVED = {**ABOUT, "figures": {ANY: NUMBER}, "cam_threshold": NUMBER}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        directory: Folder of the runs METHOD-seedN, the OUT of scripts/compare.sh or compare_amn.sh,
            or a folder that --save wrote.
        methods: Rows of the table, in this order. By default every method of the folder.
        baseline: Method that the others are compared with, seed by seed.
        save: Folder that receives RUN.json per run: its figures, configuration, code and processor.
    """

    directory: Path = flag(positional=True)
    methods: list[str] | None = flag(None, metavar="METHOD")
    baseline: str | None = flag(None, metavar="METHOD")
    save: Path | None = flag(None, metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of a folder of METHOD-seedN runs.

    Raises:
        FileNotFoundError: The folder has no finished run.
    """
    command = parse_flags(Command, argv, example="out/compare-toy --methods cam eps ppc fbr")
    runs = find_runs(command.directory)
    if not runs:
        raise FileNotFoundError(
            f"no METHOD-seedN/miou.json in {command.directory}: run scripts/compare.sh"
        )
    base = command.baseline
    if base is not None and base not in runs:
        raise FileNotFoundError(f"--baseline {base}: {command.directory} has no such run")
    if command.save is not None:
        for path in itertools.chain(*runs.values()):
            write_json(command.save / f"{name_of(path)}.json", record_of(path))
    names = [cam_column(path for paths in runs.values() for path in paths), *COLUMNS[1:]]
    names += [f"masks - {base}", f"leak - {base}"] if base else []
    print(f"| method | {' | '.join(names)} |")
    print("|---" * (len(names) + 1) + "|")
    for method in command.methods or sorted(runs):
        found = runs.get(method, [])
        cells = row([figures(run) for run in found])
        if base is not None:
            cells += [difference(found, runs[base], name) for name in ("masks", "leak")]
        print(f"| `{method}` | {' | '.join(cells)} |")


def find_runs(directory: Path) -> dict[str, list[Path]]:
    """Return the finished runs of each method."""
    runs: dict[str, list[Path]] = {}
    folders = {path.parent for path in directory.glob("*-seed*/miou*.json")}
    for path in sorted([*folders, *directory.glob("*-seed*.json")]):
        match = re.fullmatch(r"(.+)-seed\d+(\.json)?", path.name)
        if match:
            runs.setdefault(match[1], []).append(path)
    return runs


def name_of(run: Path) -> str:
    """Return METHOD-seedN of a run directory, or of a file that --save wrote."""
    return run.name.removesuffix(".json")


def record_of(run: Path) -> dict[str, Any]:
    """Return the figures of a run, and what the run was.

    Args:
        run: A run directory, or a file that --save wrote.

    Returns:
        `figures` and `cam_threshold`, and `config`, `commit` and `cpu` of the run's `config.json`.
    """
    if run.is_file():
        return read(run, SAVED)
    noted = read(run / "config.json", CONFIG)
    mask, cam = read(run / "miou.json", SCORE), read(run / "miou_cam.json", SCORE)
    figures = {
        "CAM": cam.get("miou"),
        "CAM oracle": cam.get("oracle", [None, None])[1],
        "masks": mask.get("miou"),
        "leak": leak_in(mask),
        "minutes": read(run / "minutes.json", MINUTES).get("minutes"),
    }
    threshold = (cam.get("protocol") or {}).get("bg_threshold")
    record = {name: noted.get(name) for name in ("commit", "cpu", "config")}
    return record | {"figures": figures, "cam_threshold": threshold}


def cam_column(runs: Iterable[Path]) -> str:
    """Return the heading of the CAM column, such as `CAM at .22`.

    The threshold is that of the first run that has CAMs.
    """
    for run in runs:
        threshold = record_of(run)["cam_threshold"]
        if threshold is not None:
            return f"CAM at {threshold:.2f}".replace("0.", ".")
    return COLUMNS[0]


def figures(run: Path) -> dict[str, float | None]:
    """Return the figures of one run in percent, None for those that it does not have."""
    found = record_of(run)["figures"]
    return {name: found.get(name) for name in COLUMNS[:-1]}


def difference(runs: Sequence[Path], baseline: Sequence[Path], name: str) -> str:
    """Return the mean ± standard error of a figure's paired differences, and their number.

    Runs of one seed are a pair if they were trained on one processor model. A dash if there is no
    pair, or if the runs are the baseline's.
    """
    others = {name_of(run).rpartition("-seed")[2]: run for run in baseline}
    pairs = [(run, others.get(name_of(run).rpartition("-seed")[2])) for run in runs]
    found = []
    for one, other in pairs:
        if other is None or one == other or processor(one) != processor(other):
            continue
        here, there = figures(one)[name], figures(other)[name]
        if here is not None and there is not None:
            found.append(here - there)
    return paired(found)


def processor(run: Path) -> object:
    """Return the processor model that a run was trained on; None if it does not say."""
    return record_of(run)["cpu"]


def row(runs: list[dict[str, float | None]]) -> list[str]:
    """Return the cells of one method: its figures, then the number of its runs.

    A figure is the mean ± sample standard deviation over the runs.
    """
    if not runs:
        return ["not run"] * (len(COLUMNS) - 1) + ["0"]
    return [spread([run[name] for run in runs]) for name in COLUMNS[:-1]] + [str(len(runs))]


if __name__ == "__main__":
    run_stage(main)
