"""Times the 100-threshold sweep over CAM files against separate evaluations.

    python -m benchmarks.sweep

Files are read in both, as eval_miou.py does. The released code takes 48 s for 60 thresholds over
100 CAM files of 375x500 on two cores; the sweep here must take under 2 s.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tool.cli import Parser, positive_int, run_stage
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import load_mask, save_mask
from tool.formats.predictions import Predictions
from tool.score.evaluation import Evaluation
from tool.score.metrics import THRESHOLDS, Sweep

NUM_CLASSES = 20


def write_files(root: Path, count: int, size: tuple[int, int]) -> list[str]:
    """CAMs of one to three blobs and masks to score them on, in root/cam and root/mask."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    ids = [f"{number:06d}" for number in range(count)]
    for image_id in ids:
        classes = np.sort(rng.choice(NUM_CLASSES, rng.integers(1, 4), replace=False) + 1)
        mask = np.zeros(size, np.uint8)
        maps = np.zeros((len(classes), *size), np.float32)
        for row, value in enumerate(classes):
            cy, cx = rng.uniform(0.2, 0.8, 2) * size
            distance = np.hypot((y - cy) / size[0], (x - cx) / size[1])
            maps[row] = np.exp(-((distance / 0.2) ** 2)) + rng.uniform(0, 0.05, size)
            mask[distance < 0.21] = 255
            mask[distance < 0.2] = value
        maps /= maps.max((1, 2), keepdims=True)
        save_cam(root / "cam" / f"{image_id}.npy", Cam(classes.astype(np.uint8), maps))
        save_mask(root / "mask" / f"{image_id}.png", mask)
    return ids


def evaluate(root: Path, ids: list[str], threshold: float, *, sweep: bool) -> Evaluation:
    """One pass over the files."""
    predictions = Predictions.find(root / "cam", ids)
    counts = Sweep.empty(NUM_CLASSES) if sweep else None
    evaluation = Evaluation(NUM_CLASSES, threshold, "background", counts)
    for image_id in ids:
        truth = load_mask(root / "mask" / f"{image_id}.png")
        evaluation.add(truth, predictions.read(image_id, num_classes=NUM_CLASSES))
    return evaluation


def main(argv: Sequence[str] | None = None) -> None:
    """Print both times, their ratio, and whether the results are the same."""
    parser = Parser(prog="benchmarks.sweep", description=__doc__)
    add = parser.add_argument
    add("--files", type=positive_int, default=100, help="CAM files")
    add("--separate", type=positive_int, default=10, help="separate evaluations to time")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        ids = write_files(Path(name), args.files, (375, 500))
        times = []
        for _ in range(3):
            start = time.perf_counter()
            curve = [s.miou for s in evaluate(Path(name), ids, 0.22, sweep=True).sweep.scores()]
            times.append(time.perf_counter() - start)
        swept = statistics.median(times)
        chosen = np.linspace(0, 99, args.separate).round().astype(int)
        start = time.perf_counter()
        separate = [
            evaluate(Path(name), ids, THRESHOLDS[i], sweep=False).scores().miou for i in chosen
        ]
        single = (time.perf_counter() - start) / len(chosen)
    print(f"{args.files} CAM files of 375x500, 100 thresholds in one pass: {swept:.2f} s (of 3)")
    print(f"one separate evaluation: {single:.2f} s, so 100 of them: {100 * single:.0f} s")
    print(f"ratio: {100 * single / swept:.0f}")
    same = separate == [curve[i] for i in chosen]
    print(f"the {len(chosen)} separate evaluations equal the sweep bit for bit: {same}")


if __name__ == "__main__":
    run_stage(main)
