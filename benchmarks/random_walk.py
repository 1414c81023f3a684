"""Measure the seconds of the edge-guided random walk, and of its affinity.

The edge map is smooth noise at stride 4 of each image size.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import repeated, spread
from network.walk.random_walk import pairs_within, path_affinity, random_walk
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import POSITIVE

STRIDE = 4
COLUMNS = ("image", "cells", "what", "median s", "fastest", "slowest")
CELLS = ("{size[0]}x{size[1]}", "{cells[0]}x{cells[1]}", "{what}")
CELLS += ("{median:.4f}", "{fastest:.4f}", "{slowest:.4f}")


def image_size(text: str) -> tuple[int, int]:
    """Return the (height, width) in a text, as a type of `argparse`.

    >>> image_size("375x500")
    (375, 500)

    Raises:
        ValueError: The text is not of the form HEIGHTxWIDTH.
        argparse.ArgumentTypeError: A side is below 1.
    """
    height, _, width = text.partition("x")
    return POSITIVE(height), POSITIVE(width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        sizes: Sizes of images, such as 375x500.
        classes: Number of maps that walk at once.
        gradient: Time a training step of the affinity alone too, at IRN's radius 10.
        device: Where torch computes.
        repeats: Number of timed runs.
    """

    sizes: list[tuple[int, int]] = flag(
        lambda: [(375, 500), (480, 640)], type=image_size, metavar="HxW"
    )
    classes: int = flag(3, type=POSITIVE, metavar="P")
    gradient: bool = False
    device: str = flag("cpu", choices=("cpu", "cuda"))
    repeats: int = flag(5, type=POSITIVE, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: median, fastest and slowest of the repeats."""
    command = parse_flags(Command, argv, example="--sizes 375x500 --gradient")
    print(f"{command.classes} classes, {torch.get_num_threads()} threads, {command.device}")
    rows = Rows(command.json, row(*CELLS), *COLUMNS, unit="s")
    for size in command.sizes:
        cells = tuple(-(-side // STRIDE) for side in size)
        edge = smooth_edge(cells).to(command.device)
        cam = torch.rand(command.classes, *cells, device=command.device)
        calls = {"walk, 256 steps": functools.partial(random_walk, cam, edge)}
        if command.gradient:
            calls["affinity, radius 10"] = functools.partial(affinity_step, edge)
        for what, call in calls.items():
            _, seconds = repeated(call, command.repeats, untimed=1)
            rows.add(size=size, cells=cells, what=what, **spread(seconds))


def smooth_edge(cells: tuple[int, int]) -> Tensor:
    """Return an edge map (h, w) in [0, 1]: lines between blobs, as a network predicts them."""
    coarse = [-(-side // 8) + 1 for side in cells]
    noise = torch.rand(1, 1, *coarse, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=cells, mode="bicubic").clamp(0, 1)[0, 0] ** 3


def affinity_step(edge: Tensor) -> None:
    """Compute the affinity of all pairs of cells within radius 10, and its gradient."""
    leaf = edge.clone().requires_grad_()
    path_affinity(leaf, pairs_within(10)).square().sum().backward()


if __name__ == "__main__":
    run_stage(main)
