"""Compare a sweep of 100 thresholds with separate evaluations, in time and in results.

Both read the files, as eval_miou.py does. The released code takes 48 s for 60 thresholds over 100
CAM files of 375x500 on two cores; the sweep here must take under 2 s.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.drawn import soft_blobs
from benchmarks.record import JsonFlags, write_record
from benchmarks.timing import repeated
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import load_mask, save_mask
from tool.formats.predictions import Predictions
from tool.ranges import POSITIVE
from tool.score.evaluation import Evaluation
from tool.score.metrics import THRESHOLDS, Sweep

NUM_CLASSES = 20
SIZE = (375, 500)
REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        files: Number of CAM files.
        separate: Number of separate evaluations to time.
    """

    files: int = flag(100, type=POSITIVE, metavar="N")
    separate: int = flag(10, type=POSITIVE, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Print both times, their ratio, and whether the results are the same."""
    command = parse_flags(Command, argv, example="--files 100")
    chosen = np.linspace(0, 99, command.separate).round().astype(int)
    with tempfile.TemporaryDirectory() as name:
        root, ids = Path(name), write_files(Path(name), command.files)
        curve, times = repeated(lambda: at_all_thresholds(root, ids), REPEATS)
        separate, (seconds,) = repeated(lambda: at_thresholds(root, ids, chosen), 1)
    swept, single = statistics.median(times), seconds / len(chosen)
    same = separate == [curve[index] for index in chosen]
    print(
        f"{command.files} CAM files of 375x500, {len(THRESHOLDS)} thresholds in one pass: "
        f"{swept:.2f} s (of {REPEATS})"
    )
    print(f"one separate evaluation: {single:.2f} s, so 100 of them: {100 * single:.0f} s")
    print(f"ratio: {100 * single / swept:.0f}")
    print(f"the {len(chosen)} separate evaluations equal the sweep bit for bit: {same}")
    write_record(command.json, {"unit": "s", "sweep": swept, "separate": single, "same": same})


def write_files(root: Path, count: int) -> list[str]:
    """Write CAMs of one to three blobs to root/cam, and the masks to score them on to root/mask.

    Args:
        root: The folder.
        count: Number of images.

    Returns:
        The image ids.
    """
    rng = np.random.default_rng(0)
    ids = [f"{number:06d}" for number in range(count)]
    for image_id in ids:
        classes = np.sort(rng.choice(NUM_CLASSES, rng.integers(1, 4), replace=False) + 1)
        blobs = soft_blobs(rng, len(classes), SIZE, 0.2)
        mask = np.zeros(SIZE, np.uint8)
        for value, blob in zip(classes, blobs, strict=True):
            mask[blob > np.exp(-1.1)] = 255  # around an object
            mask[blob > np.exp(-1)] = value
        maps = blobs + rng.uniform(0, 0.05, blobs.shape).astype(np.float32)
        maps /= maps.max((1, 2), keepdims=True)
        save_cam(root / "cam" / f"{image_id}.npy", Cam(classes.astype(np.uint8), maps))
        save_mask(root / "mask" / f"{image_id}.png", mask)
    return ids


def at_all_thresholds(root: Path, ids: list[str]) -> list[float]:
    """Return the mIoU at every threshold, in one pass over the files."""
    evaluation = evaluate(root, ids, 0.22, Sweep.empty(NUM_CLASSES))
    return [scores.miou for scores in evaluation.sweep.scores()]


def at_thresholds(root: Path, ids: list[str], chosen: Sequence[int]) -> list[float]:
    """Return the mIoU at the thresholds of these indices, each from a pass of its own."""
    return [evaluate(root, ids, THRESHOLDS[index]).scores().miou for index in chosen]


def evaluate(root: Path, ids: list[str], limit: float, sweep: Sweep | None = None) -> Evaluation:
    """Return the evaluation of one pass over the files.

    Args:
        root: The folder of `write_files`.
        ids: The image ids.
        limit: The background threshold.
        sweep: Counts of a sweep that the pass fills; None for no sweep.
    """
    predictions = Predictions.find(root / "cam", ids)
    evaluation = Evaluation(NUM_CLASSES, limit, "background", sweep)
    for image_id in ids:
        truth = load_mask(root / "mask" / f"{image_id}.png")
        evaluation.add(truth, predictions.read(image_id, num_classes=NUM_CLASSES))
    return evaluation


if __name__ == "__main__":
    run_stage(main)
