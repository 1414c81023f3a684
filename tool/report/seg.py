"""Print a Markdown table of segmentation networks, runs of `scripts/compare_seg.sh`.

A row is what the networks were trained on, a figure the mIoU of `val` in percent, mean ± sample
standard deviation over seeds. "with labels" are the classes of the image label only: a diagnostic.
The last column is the share of what training on the ground truth reaches, seed by seed, on one
processor model: mean ± standard error.
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
from tool.documents import NUMBER
from tool.files import write_json
from tool.flags import flag, parse_flags
from tool.report.figures import ABOUT, CONFIG, SCORE, leak_in, read, share, spread

FIGURES = {  # heading: file beside masks.json
    "val": "miou-{list}.json",
    "val, CRF": "miou-{list}-crf.json",
    "with labels": "miou-{list}-labelled.json",
    "with labels, CRF": "miou-{list}-labelled-crf.json",
}
HEADINGS = ("its masks", *FIGURES, "leak, CRF")
SAVED = {**ABOUT, "rounds": [dict.fromkeys(HEADINGS, NUMBER)]}
RUN = re.compile(r"(?P<name>.+)-seed(?P<seed>\d+)$")
TRUTH = "truth"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        runs: Run directories MASKS-seedN of script_seg.sh, or files that --save wrote.
        list: Image list that the networks were scored on.
        save: Folder that receives RUN.json per run: its figures, configuration, code and processor.
    """

    runs: tuple[Path, ...] = flag(positional=True, metavar="RUN")
    list: str = "val"
    save: Path | None = flag(None, metavar="DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table.

    Raises:
        FileNotFoundError: A run has no results.
        ValueError: A run has another name than MASKS-seedN, or two have the same.
    """
    command = parse_flags(Command, argv, example="out/seg-toy/fbr-seed0 out/seg-toy/truth-seed0")
    rows: dict[str, dict[tuple[str, Any], dict[str, float | None]]] = {}
    for run in command.runs:
        saved = run.is_file()
        name = run.stem if saved else run.name
        record = read(run, SAVED) if saved else of_run(run, command.list)
        if command.save is not None:
            write_json(command.save / f"{name}.json", record)
        match = RUN.fullmatch(name)
        if match is None:
            raise ValueError(f"{run}: its name is not MASKS-seedN, such as fbr-seed0")
        for number, found in enumerate(record["rounds"], start=1):
            label = match["name"] + (f", round {number}" if number > 1 else "")
            key = (match["seed"], record["cpu"])
            if key in rows.setdefault(label, {}):
                raise ValueError(f"two runs are called {name}: a table is of one dataset")
            rows[label][key] = found
    print(f"| trained on | {' | '.join(HEADINGS)} | % of truth: val, CRF | seeds |")
    print("|---" * (len(HEADINGS) + 3) + "|")
    for label, runs in rows.items():
        cells = [spread([found[name] for found in runs.values()]) for name in HEADINGS]
        cells.append(of_truth(runs, rows.get(TRUTH, {})))
        print(f"| {label} | {' | '.join(cells)} | {len(runs)} |")


def of_truth(
    runs: dict[tuple[str, Any], dict[str, float | None]],
    truth: dict[tuple[str, Any], dict[str, float | None]],
) -> str:
    """Return what runs have in percent of those on the ground truth, without and with CRF.

    Args:
        runs: Figures per seed and processor.
        truth: The same of the runs that were trained on the ground truth.
    """
    columns = []
    for name in ("val", "val, CRF"):
        pairs = [(found[name], truth[key][name]) for key, found in runs.items() if key in truth]
        columns.append(share([(a, b) for a, b in pairs if a is not None and b]))
    return ", ".join(columns)


def of_run(run: Path, images: str) -> dict[str, Any]:
    """Return the figures of a run directory, and what the run was.

    Args:
        run: The run directory; its further rounds are in round2, round3, ...
        images: The list that was scored.

    Returns:
        `rounds`, the figures of `HEADINGS` in percent for each round, and `config`, `commit` and
        `cpu` of the run's `config.json`.

    Raises:
        FileNotFoundError: The list was not scored.
    """
    noted = read(run / "config.json", CONFIG)
    record: dict[str, Any] = {name: noted.get(name) for name in ("commit", "cpu", "config")}
    rounds = [run, *sorted(run.glob("round[0-9]*"))]
    record["rounds"] = [figures(folder, images) for folder in rounds]
    return record


def figures(folder: Path, images: str) -> dict[str, float | None]:
    """Return the figures of one round in percent, None for those that it does not have."""
    documents = {
        name: read(folder / file.format(list=images), SCORE) for name, file in FIGURES.items()
    }
    if not documents["val, CRF"]:
        raise FileNotFoundError(f"no miou-{images}-crf.json in {folder}: run script_seg.sh")
    own = read(folder / "masks.json", {"miou?": NUMBER}).get("miou")
    found: dict[str, float | None] = {"its masks": None if own is None else 100 * own}
    found |= {name: document.get("miou") for name, document in documents.items()}
    found["leak, CRF"] = leak_in(documents["val, CRF"])
    return found


if __name__ == "__main__":
    run_stage(main)
