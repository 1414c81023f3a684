"""Measure the cost of FBR's contrast in a training step, in milliseconds.

The contrast consists of prototypes, pseudo labels, `nce_fg`, `nce_nroi`, k-means and the bank. It
is measured forward and backward, on random embeddings, without the backbone. `fbr` contrasts two
views on the grid of the second view, which per side has 2 / 7 of the first view's cells, and finds
NROIs on the grid of the first view. The AMN host has one view and one grid.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.record import TIMES, JsonFlags, Rows
from benchmarks.timing import repeated, spread
from network.contrast.background import background_cells
from network.methods import build_method
from network.methods.fbr import Fbr
from network.methods.fbr_amn import FbrAmn
from network.methods.ppc import View
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.progress import Progress
from tool.ranges import BATCH, POSITIVE

Views = tuple[View, View]
UNTIMED = 3  # number of first steps that do not count
NEVER_RUN = {"backbone": "resnet38d_slim", "output_stride": 8, "pretrained": False}  # not called


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        method: Whose contrast is measured.
        batch_size: Number of images per step.
        cells: Cells per side of the first view.
        classes: Numbers of classes, a line for each.
        present: Number of classes per image.
        device: Where torch computes.
        repeats: Number of timed runs.
    """

    method: str = flag("fbr", choices=("fbr", "fbr_amn"))
    batch_size: int = flag(8, type=BATCH, metavar="IMAGES")
    cells: int = flag(56, type=POSITIVE, metavar="N")
    classes: list[int] = flag(lambda: [20], type=POSITIVE, metavar="K")
    present: int = flag(2, type=POSITIVE, metavar="N")
    device: str = flag("cpu", choices=("cpu", "cuda"))
    repeats: int = flag(20, type=POSITIVE, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the median, the fastest and the slowest of the repeats, one line per K."""
    command = parse_flags(Command, argv, example="--classes 20 80")
    line = (
        f"contrast step of {command.method}, batch {command.batch_size}, first view of "
        f"{command.cells}x{command.cells} cells, {{classes}} classes, {command.device}, "
        f"{torch.get_num_threads()} threads: {TIMES}"
    )
    rows = Rows(command.json, line, unit="ms")
    for num_classes in command.classes:
        rows.add(classes=num_classes, **spread(measure(command, num_classes), unit=1000))


def measure(command: Command, num_classes: int) -> list[float]:
    """Return the seconds of each repeat with `num_classes` classes."""
    config = {
        "method": command.method,
        **NEVER_RUN,
        "num_classes": num_classes,
        "method_config": {},
    }
    method = build_method(config).to(command.device).train()
    views, background = inputs(command, num_classes, method.config.width)
    steps = command.repeats + UNTIMED
    progress = (Progress(step=step, steps=steps) for step in range(steps))

    def step() -> None:
        contrast_step(method, views, background, next(progress))

    return repeated(step, command.repeats, untimed=UNTIMED)[1]


def inputs(command: Command, num_classes: int, width: int) -> tuple[Views, list[Tensor]]:
    """Return two views of smooth random maps, as a network makes them, and background embeddings.

    Args:
        command: Sizes and device.
        num_classes: K.
        width: D, the number of channels of the embeddings.

    Returns:
        The views, and per view a background embedding (N, D, h, w).
    """
    generator, device = torch.Generator().manual_seed(0), command.device
    size = (command.batch_size, num_classes)
    order = torch.rand(size, generator=generator).argsort(dim=1)
    label = (order < command.present).float().to(device)
    views, background = [], []
    for side in (command.cells, max(8, round(command.cells * 2 / 7))):
        maps = torch.rand(command.batch_size, num_classes + 1, 4, 4, generator=generator)
        maps = torch.nn.functional.interpolate(maps, size=(side, side), mode="bilinear")
        shape = (command.batch_size, width, side, side)
        embedding = random_map(shape, generator, device).requires_grad_()
        high = torch.empty(0, device=device)  # only `nroi_space` f reads it
        saliency = torch.rand(command.batch_size, 1, side, side, generator=generator).to(device)
        maps = maps.to(device)
        views.append(View(label, saliency, high, maps, maps, embedding))
        background.append(random_map(shape, generator, device))
    return tuple(views), background


def random_map(shape: tuple[int, ...], generator: torch.Generator, device: str) -> Tensor:
    """Return a random map in [0, 1] in the memory format of a training step, channels last."""
    map_ = torch.rand(shape, generator=generator).to(device)
    return map_.contiguous(memory_format=torch.channels_last)


def contrast_step(
    method: Fbr | FbrAmn, views: Views, background: list[Tensor], progress: Progress
) -> None:
    """Do everything that FBR adds to a step after its heads.

    Args:
        method: The method, in training mode.
        views: The two views.
        background: Per view its background embedding (N, D, h, w).
        progress: The position of the step in the run.
    """
    label, first = views[0].label, views[0]
    valid = torch.ones_like(first.saliency, dtype=torch.bool)
    # Cells, regions and eligible queries, as the host prepares them.
    if isinstance(method, FbrAmn):
        maps = first.refined_cam.softmax(dim=1)
        cells = method.cells(first.embedding, maps, label, valid)
        both, background = ([first.embedding], [cells]), background[:1]
        member = background_cells(cells, progress).view_as(valid[:, 0])
        regions = method.region_view(background[0], first.high, member, first.embedding)
        eligible = [first.saliency > 0.5]  # half of all cells, as if half of a seed is background
    else:
        both = method.cells(views, valid)
        regions = method.first_region_view(first, background[0], valid)
        eligible = method.eligible(views, both[0][0].shape[-2:])
    # The terms, their backward, and the update of the bank.
    terms = method.fbr_contrast(*both, label, background, regions, progress, eligible=eligible)
    (terms["nce_fg"] + terms["nce_nroi"]).backward()
    method.after_step(progress)


if __name__ == "__main__":
    run_stage(main)
