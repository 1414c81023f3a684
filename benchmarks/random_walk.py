"""`python -m benchmarks.random_walk`: seconds of the edge-guided random walk, and its affinity's.

On blurred noise as the edge map, at stride 4 of the image sizes given; --gradient also times a
training step of the affinity alone, forward and backward, at IRN's radius 10.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import add_json_flag, spread, write_record
from network.walk.random_walk import pairs_within, path_affinity, random_walk
from tool.cli import Parser, positive_int, run_stage

STRIDE = 4


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table: median, fastest and slowest of the repeats."""
    args = parse(argv)
    print(f"{args.classes} classes, {torch.get_num_threads()} threads, {args.device}")
    print("| image | cells | what | median s | fastest | slowest |")
    print("|---|---|---|---|---|---|")
    rows = []
    for size in args.sizes:
        cells = tuple(-(-side // STRIDE) for side in size)
        edge = smooth_edge(cells).to(args.device)
        cam = torch.rand(args.classes, *cells, device=args.device)
        calls = {"walk, 256 steps": lambda cam=cam, edge=edge: random_walk(cam, edge)}
        if args.gradient:
            calls["affinity, radius 10"] = lambda edge=edge: affinity_step(edge)
        for what, call in calls.items():
            rows.append({"size": size, "cells": cells, "what": what, **timed(call, args)})
            times = " | ".join(f"{rows[-1][name]:.4f}" for name in ("median", "fastest", "slowest"))
            print(f"| {size[0]}x{size[1]} | {cells[0]}x{cells[1]} | {what} | {times} |")
            write_record(args.json, {"unit": "s", "rows": rows})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.random_walk", description=__doc__)
    add = parser.add_argument
    sizes = [(375, 500), (480, 640)]
    add("--sizes", type=image_size, nargs="+", default=sizes, help="HEIGHTxWIDTH of images")
    add("--classes", type=positive_int, default=3, help="maps walked at once")
    add("--repeats", type=positive_int, default=5, help="timed runs, after one that is not")
    add("--gradient", action="store_true", help="also the affinity of training")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where")
    add_json_flag(parser)
    return parser.parse_args(argv)


def image_size(text: str) -> tuple[int, int]:
    """375x500 -> (375, 500)."""
    height, _, width = text.partition("x")
    return positive_int(height), positive_int(width)


def smooth_edge(cells: tuple[int, int]) -> Tensor:
    """(h, w) in [0, 1]: lines between blobs, as a network gives them."""
    coarse = [-(-side // 8) + 1 for side in cells]
    noise = torch.rand(1, 1, *coarse, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=cells, mode="bicubic").clamp(0, 1)[0, 0] ** 3


def affinity_step(edge: Tensor) -> None:
    """The affinity of all pairs, and its gradient."""
    leaf = edge.clone().requires_grad_()
    path_affinity(leaf, pairs_within(10)).square().sum().backward()


def timed(call: Callable[[], object], args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the repeats."""
    seconds = []
    for _ in range(args.repeats + 1):
        started = time.perf_counter()
        call()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return spread(seconds[1:])


if __name__ == "__main__":
    run_stage(main)
