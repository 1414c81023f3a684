"""Read a run directory: its configuration, scores, log and times, as plain data."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool.crf.post import post_of
from tool.documents import ANY, NUMBER, TEXT, read_dict, read_rows
from tool.provenance import PLAIN, SETTINGS
from tool.report.figures import SCORE

CONFIG = "config.json"
_FLAG = (str, bool, float, list, None)
NOTED = {
    "config?": ({"batch_size?": NUMBER, "method?": TEXT, "class_names?": list}, None),
    "flags?": ({ANY: _FLAG}, None),  # those of the data are checked where they are used
}
SCORED = {**SCORE, "iou": {ANY: NUMBER}, "leak?": ({"overall": NUMBER}, None)}
ROW = {"step": int, ANY: NUMBER}
_LONGEST = 1e6  # minutes: a log that says more is broken
PAUSE = 60  # seconds, or usual gaps: a longer gap between two files is a pause of the stage


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run, and what they say.

    Attributes:
        name: A short name, unique among the runs of a page.
        home: The folder of `config.json`, else the folder that was given.
        mask_dir: The folder of the masks.
        cam_dir: The folder of the CAMs that the masks were made from; None if it is not there.
        noted: The content of `config.json`, or {}.
        masks: The result of stage 4 for the masks, or {}.
        cams: The result of stage 4 for the CAMs, or {}.
        log: The rows of `log.jsonl`.
    """

    name: str
    home: Path
    mask_dir: Path
    cam_dir: Path | None
    noted: dict[str, Any]
    masks: dict[str, Any]
    cams: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def gated(self) -> bool:
        """Whether the CAMs went through the NROI gate."""
        return self.cam_dir is not None and post_of(self.cam_dir).gate != "none"

    @property
    def plain_dir(self) -> Path | None:
        """The folder of the CAMs before the gate; None if they were not kept."""
        plain = self.cam_dir and self.cam_dir / PLAIN
        return plain if plain and plain.is_dir() else None

    def minutes(self) -> dict[str, float]:
        """Return {stage: minutes} for "training", "CAMs" and "masks".

        The times are read from the log and the files. A stage whose time cannot be told from them
        is left out.
        """
        found = {"training": training_minutes(self.log, self.noted)}
        found["CAMs"] = None if self.cam_dir is None else file_minutes(self.cam_dir, ".npy")
        found["masks"] = file_minutes(self.mask_dir, ".png")
        return {stage: minutes for stage, minutes in found.items() if minutes is not None}


def open_run(folder: Path, *, mask_dir: Path | None = None, score: Path | None = None) -> Run:
    """Read a run directory, or a folder of masks.

    Args:
        folder: A run directory with `mask/`, or a folder of masks.
        mask_dir: The folder of the masks, if it is another one.
        score: The result of stage 4 for the masks, if its name does not tell; it need not exist.

    Raises:
        FileNotFoundError: There are no masks.
    """
    masks = mask_dir or folder / "mask"
    if mask_dir is None and not masks.is_dir() and any(folder.glob("*.png")):
        masks = folder
    if not masks.is_dir():
        raise FileNotFoundError(
            f"{masks} does not exist: give a run directory after crf_postprocess.py, or a folder "
            "of masks"
        )
    homes = (folder, *folder.absolute().parents[:2])
    home = next((place for place in homes if (place / CONFIG).is_file()), folder)
    places = (masks.parent, home)
    cam_dir = cams_of(masks, places)
    if score is None:
        names = (f"miou{masks.name.removeprefix('mask')}", f"miou-{masks.name}")
        scored = result(places, *names)
    else:
        scored = result([score.parent], score.stem)
    return Run(
        name=f"{folder.parent.name}/{folder.name}" if masks == folder else folder.name,
        home=home,
        mask_dir=masks,
        cam_dir=cam_dir,
        noted=read_dict(home / CONFIG, NOTED) or {},
        masks=scored,
        cams=result(places, "miou_cam") if cam_dir and cam_dir.name == "cam" else {},
        log=read_log(home / "log.jsonl"),
    )


def with_own_names(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names that differ: with as much of their path as that takes."""
    names = [run.name for run in runs]
    folders = [(run.mask_dir if run.name == run.mask_dir.name else run.home) for run in runs]
    for parts in range(1, max(len(folder.absolute().parts) for folder in folders) + 1):
        counts = Counter(names)
        if max(counts.values()) == 1:
            break
        tails = ["/".join(folder.absolute().parts[-parts:]) for folder in folders]
        names = [tail if counts[n] > 1 else n for n, tail in zip(names, tails, strict=True)]
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def cams_of(masks: Path, places: Sequence[Path]) -> Path | None:
    """Return the folder of the CAMs that masks were made from, as their note or its name tells."""
    noted = (read_dict(masks / SETTINGS) or {}).get("cam_dir")
    named = [masks / noted] if isinstance(noted, str) else []
    found = (path for path in (*named, *(place / "cam" for place in places)) if path.is_dir())
    first = next(found, None)
    return first and first.resolve()


def result(places: Sequence[Path], *names: str) -> dict[str, Any]:
    """Return the first result of stage 4 of these names in these folders, or {}."""
    for place in places:
        for name in names:
            document = read_dict(place / f"{name}.json", SCORED)
            if document is not None:
                return document
    return {}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of `log.jsonl`, without a last one that a kill cut off."""
    return [row for _, row in read_rows(path, ROW)]


def training_minutes(log: Sequence[dict[str, Any]], noted: dict[str, Any]) -> float | None:
    """Return the minutes between the first and the last step, from the speed in each row."""
    batch_size = (noted.get("config") or {}).get("batch_size")
    if not log or not batch_size:
        return None
    seconds, before = 0.0, 0
    for row in log:
        rate = row.get("images_per_s")
        if not rate or rate < 0:
            return None
        seconds, before = seconds + (row["step"] - before) * batch_size / rate, row["step"]
    return seconds / 60 if 0 <= seconds / 60 < _LONGEST else None


def file_minutes(folder: Path, suffix: str) -> float | None:
    """Return the minutes in which the files of a folder were written, without pauses.

    A run that was stopped and started again has a gap, which does not count.
    """
    times = sorted(path.stat().st_mtime for path in folder.rglob(f"*{suffix}"))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    if len(gaps) < 2:
        return None
    longest = PAUSE * max(1.0, statistics.median(gaps))
    return sum(gap for gap in gaps if gap <= longest) / 60
