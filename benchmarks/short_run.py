"""`python -m benchmarks.short_run`: a short training of `fbr` from scratch, for its sanity.

On the embedded dataset where OpenCV, which draws it, is installed; else on images drawn with Pillow
alone. The loss has to be finite, and lower in the last rows of the log than in the first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drawn import write_drawn
from benchmarks.record import add_json_flag, write_record
from tool.cli import Parser, positive_int, run_stage

ROOT = Path(__file__).resolve().parents[1]
ROWS = 10  # of the log
IMAGES = 96


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and look at the log."""
    args = parse(argv)
    with tempfile.TemporaryDirectory() as name:
        dataset = prepare(Path(name) / "data")
        started = time.perf_counter()
        train(args, dataset, Path(name))
        seconds = time.perf_counter() - started
        lines = (Path(name) / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    losses = [row["loss"] for row in rows]
    fifth = max(1, len(losses) // 5)
    record = {
        "dataset": dataset,
        "steps": args.steps,
        "seconds": seconds,
        "images_per_s": statistics.median(row["images_per_s"] for row in rows),
        "loss": losses,
        "first_loss": statistics.mean(losses[:fifth]),
        "last_loss": statistics.mean(losses[-fifth:]),
    }
    write_record(args.json, record)
    found = f"{args.steps} steps on {dataset}: the loss goes from {record['first_loss']:.3f} to "
    found += f"{record['last_loss']:.3f}"
    if not (all(map(math.isfinite, losses)) and record["last_loss"] < record["first_loss"]):
        raise ValueError(f"{found}: it has to fall")
    print(f"{found}, {seconds:.1f} s")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.short_run", description=__doc__)
    add = parser.add_argument
    add("--backbone", default="timm:tf_efficientnet_lite0", help="as in train_fbr.py")
    add("--steps", type=positive_int, default=100, help="of the run")
    add("--crop", type=positive_int, default=224, help="pixels")
    add("--batch-size", type=positive_int, default=8, help="images")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    add("--amp", action="store_true", help="bf16 autocast")
    add_json_flag(parser)
    return parser.parse_args(argv)


def prepare(root: Path) -> str:
    """Draw a dataset in `root`; which: "toy" or "drawn"."""
    if importlib.util.find_spec("cv2") is None:
        write_drawn(root, images=IMAGES, size=(112, 150), num_classes=8)
        return "drawn"
    counts = ("--train", str(IMAGES), "--val", "1")
    command = [sys.executable, "-m", "data.toy", "--root", str(root), *counts]
    subprocess.run(command, cwd=ROOT, check=True)
    return "toy"


def train(args: argparse.Namespace, dataset: str, folder: Path) -> None:
    """Run `train_fbr.py` on the dataset in `folder`.

    Raises:
        ChildProcessError: it failed.
    """
    flags: list[object] = ["--dataset", "toy" if dataset == "toy" else "folder"]
    flags += ["--root", folder / "data", "--list", "train", "--out", folder / "run"]
    flags += ["--method", "fbr", "--backbone", args.backbone, "--weights", "none"]
    flags += ["--output-stride", 8 if "resnet38d" in args.backbone else 16]
    flags += ["--crop", args.crop, "--steps", args.steps, "--device", args.device]
    flags += ["--batch-size", args.batch_size]
    flags += ["--momentum", 0.9, "--lr", 0.001, "--warmup", max(1, args.steps // 5)]
    flags += ["--log-every", max(1, args.steps // ROWS), "--picture-every", 0]
    flags += ["--amp"] * args.amp
    command = [sys.executable, str(ROOT / "train_fbr.py"), *map(str, flags)]
    returncode = subprocess.run(command, cwd=ROOT, check=False).returncode
    if returncode:
        raise ChildProcessError(f"train_fbr.py ended with status {returncode}")


if __name__ == "__main__":
    run_stage(main)
