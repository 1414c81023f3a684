"""Train `fbr` from scratch for a short time, as a sanity check.

The images are those of the embedded dataset if OpenCV, which draws it, is installed. Else they are
drawn with Pillow alone. The loss must be finite, and its mean over the last fifth of the log must
be lower than over the first fifth.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import importlib.util
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import train_fbr
from benchmarks.drawn import write_drawn
from benchmarks.record import JsonFlags, write_record
from benchmarks.timing import repeated
from benchmarks.training import parse_with_training
from tool.cli import run_stage
from tool.parallel.device import pick_device

ROWS = 10  # number of rows of the log
IMAGES = 96
DEFAULTS = "--backbone timm:tf_efficientnet_lite0 --weights none --steps 100 --crop 224 "
DEFAULTS += "--batch-size 8 --lr 0.001 --momentum 0.9 --picture-every 0"


def main(argv: Sequence[str] | None = None) -> int:
    """Train, check the log, and return the exit status of the training.

    Raises:
        ValueError: The loss is not finite, or did not fall.
    """
    command, stage = parse(argv)
    with tempfile.TemporaryDirectory() as name:
        root, out = Path(name) / "data", Path(name) / "run"
        dataset = prepare(root)
        layout = "toy" if dataset == "toy" else "folder"
        stage = dataclasses.replace(
            stage,
            data=dataclasses.replace(stage.data, dataset=layout, root=root, list="train"),
            run=dataclasses.replace(stage.run, out=out),
        )
        device = pick_device(stage.run.device)
        status, (seconds,) = repeated(lambda: train_fbr.train(stage, device), 1)
        if status:
            return status
        lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    losses, speeds = ([row[name] for row in rows] for name in ("loss", "images_per_s"))
    fifth, steps = max(1, len(losses) // 5), stage.recipe.steps
    first, last = statistics.mean(losses[:fifth]), statistics.mean(losses[-fifth:])
    record = {"dataset": dataset, "steps": steps, "seconds": seconds, "loss": losses}
    record |= {"images_per_s": statistics.median(speeds), "first_loss": first, "last_loss": last}
    write_record(command.json, record)
    found = f"{steps} steps on {dataset}: the loss goes from {first:.3f} to {last:.3f}"
    if not (all(map(math.isfinite, losses)) and last < first):
        raise ValueError(f"{found}: it has to fall")
    print(f"{found}, {seconds:.1f} s")
    return 0


def parse(argv: Sequence[str] | None) -> tuple[JsonFlags, train_fbr.Command]:
    """Return the flags of the benchmark, and those of the training with what follows from them.

    The output stride depends on the backbone, and the warm-up and the interval of the log depend on
    the number of steps.
    """
    command, stage = parse_with_training(
        JsonFlags,
        __name__,
        argv,
        example="--json short_run.json",
        defaults=DEFAULTS,
    )
    stride, steps = 8 if "resnet38d" in stage.recipe.backbone else 16, stage.recipe.steps
    recipe = dataclasses.replace(stage.recipe, output_stride=stride, warmup=max(1, steps // 5))
    run = dataclasses.replace(stage.run, log_every=max(1, steps // ROWS))
    return command, dataclasses.replace(stage, recipe=recipe, run=run)


def prepare(root: Path) -> str:
    """Write a dataset to `root`, and return which one it is: "toy" or "drawn"."""
    if importlib.util.find_spec("cv2") is None:
        write_drawn(root, images=IMAGES, sizes=[(112, 150)], num_classes=8)
        return "drawn"
    from data.toy import write_toy

    write_toy(root, train=IMAGES, val=1)
    return "toy"


if __name__ == "__main__":
    run_stage(main)
