"""Measure how long a mask takes: the first one, later ones, and several in one call.

The photographs are segmented from Python, as `network.predict.predictor` does it. Beside them
stands the time of stage 2's network on the same photographs: decoding, resizing, all scales and
mirrors.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import Run, repeated
from network.predict.choose import label_of
from network.predict.predictor import Predictor, load
from network.predict.request import as_photograph
from tool.cli import DEVICES, run_stage
from tool.flags import flag, parse_flags
from tool.formats.image import reduced
from tool.infer.multiscale import infer_images
from tool.ranges import POSITIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        image: Photographs, at least two.
        checkpoint: The checkpoint.pth of a run; its gate is used if it has regions.
        classes: Names of the classes that every photograph may have. By default those of which the
            method is sure.
        repeats: Number of timed runs, of which the fastest counts.
        device: Where to compute.
    """

    image: list[Path] = flag(positional=True, metavar="IMAGE")
    checkpoint: Path
    classes: list[str] | None = flag(None, metavar="NAME")
    repeats: int = flag(3, type=POSITIVE, metavar="N")
    device: str = flag("auto", choices=DEVICES)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row per way to segment the photographs."""
    command = parse_flags(
        Command, argv, example="photos/*.jpg --checkpoint out/toy-fbr-seed0/checkpoint.pth"
    )
    images, names = command.image, command.classes
    rows = Rows(
        command.json,
        row("{what}", "{photographs}", "{seconds:.2f}", "{each:.3f}", "{processor:.2f}"),
        "what",
        "photographs",
        "seconds",
        "seconds per photograph",
        "processor seconds of this process",
    )

    def add(what: str, call: Run, *, photographs: int, repeats: int) -> Any:
        found, seconds, processor = fastest(call, repeats)
        each = seconds / photographs
        rows.add(
            what=what, photographs=photographs, seconds=seconds, each=each, processor=processor
        )
        return found

    def first() -> Predictor:
        predictor = load(command.checkpoint, device=command.device)
        predictor.predict(images[0], names)
        return predictor

    predictor = add("the first mask, and the checkpoint", first, photographs=1, repeats=1)
    lists = None if names is None else [names] * len(images)
    ways: dict[str, Run] = {
        "one call per photograph": lambda: [predictor.predict(one, names) for one in images],
        "all in one call": lambda: predictor.predict(images, lists),
        "stage 2's network": lambda: stage_2(predictor, images),
    }
    for what, call in ways.items():
        add(what, call, photographs=len(images), repeats=command.repeats)


def fastest(call: Run, repeats: int) -> tuple[Any, float, float]:
    """Return what a call returns, and the least seconds and processor seconds of some runs.

    The processor seconds, of all threads of this process, hardly depend on what else runs.
    """
    processor = []

    def run() -> Any:
        began = time.process_time()
        found = call()
        processor.append(time.process_time() - began)
        return found

    found, seconds = repeated(run, repeats)
    return found, min(seconds), min(processor)


def stage_2(predictor: Predictor, images: Sequence[Path]) -> None:
    """Compute the maps of photographs with one class as stage 2 does, and write nothing."""
    method, views = predictor.method, predictor.views
    label = torch.from_numpy(label_of([0], len(predictor.class_names)))
    for number, path in enumerate(images):
        image = reduced(as_photograph(path), views.max_side)
        size = (image.height, image.width)
        sample = {"image_id": str(number), "size": size, "images": views.of(image)}
        if "label" in method.infer_inputs:
            sample["label"] = label
        infer_images(
            method,
            [sample],
            device=predictor.device,
            mirror=views.mirror,
            refine=predictor.gate,
        )


if __name__ == "__main__":
    run_stage(main)
