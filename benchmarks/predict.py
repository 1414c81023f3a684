"""Measure how long a mask takes: the first one, later ones, and several in one call.

The photographs are segmented from Python, as `network.predict.predictor` does it. Beside them
stands the time of stage 2's network on the same photographs: decoding, resizing, all scales and
mirrors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import clock, repeated, spread
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
        row("{what}", "{photographs}", "{seconds:.2f}", "{each:.3f}"),
        "what",
        "photographs",
        "seconds",
        "seconds per photograph",
    )

    def add(what: str, seconds: float, photographs: int = len(images)) -> None:
        rows.add(what=what, photographs=photographs, seconds=seconds, each=seconds / photographs)

    started = clock()
    predictor = load(command.checkpoint, device=command.device)
    predictor.predict(images[0], names)
    add("load the checkpoint, and the first mask", clock() - started, 1)
    lists = None if names is None else [names] * len(images)
    ways = {
        "one call per photograph": lambda: [predictor.predict(one, names) for one in images],
        "all in one call": lambda: predictor.predict(images, lists),
        "stage 2's network": lambda: stage_2(predictor, images),
    }
    for what, call in ways.items():
        _, seconds = repeated(call, command.repeats)
        add(what, spread(seconds)["fastest"])


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
