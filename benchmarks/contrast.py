"""`python -m benchmarks.contrast`: what FBR's contrast costs a training step, in milliseconds.

Prototypes, pseudo labels, `nce_fg`, `nce_nroi`, k-means and the bank, for two views of g x g
cells (one on the AMN host), forward and backward, on random embeddings; the backbone is not in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.record import add_json_flag, spread, write_record
from network.methods import build_method
from network.methods.fbr import Fbr
from network.methods.fbr_amn import FbrAmn
from network.methods.ppc import View
from tool.cli import Parser, positive_int, run_stage
from tool.progress import Progress


def main(argv: Sequence[str] | None = None) -> None:
    """Print median, fastest and slowest of the repeats, a line for each K."""
    parser = Parser(prog="benchmarks.contrast", description=__doc__)
    add = parser.add_argument
    add("--method", default="fbr", choices=("fbr", "fbr_amn"), help="whose contrast")
    add("--batch-size", type=positive_int, default=8, help="images")
    add("--cells", type=positive_int, default=16, help="cells a side of a view")
    add("--classes", type=positive_int, nargs="+", default=[20], help="K")
    add("--present", type=positive_int, default=2, help="classes an image")
    add("--repeats", type=positive_int, default=20, help="timed steps")
    add("--device", default="cpu", help="cpu or cuda")
    add_json_flag(parser)
    args = parser.parse_args(argv)
    rows = []
    for num_classes in args.classes:
        row = spread(measure(args, num_classes, torch.device(args.device)))
        rows.append({"classes": num_classes, **row})
        print(
            f"contrast step of {args.method}, batch {args.batch_size}, views of "
            f"{args.cells}x{args.cells} cells, {num_classes} classes, {args.device}, "
            f"{torch.get_num_threads()} threads: "
            f"median {row['median']:.1f} ms (fastest {row['fastest']:.1f}, slowest "
            f"{row['slowest']:.1f})"
        )
        write_record(args.json, {"unit": "ms", "rows": rows})


def measure(args: argparse.Namespace, num_classes: int, device: torch.device) -> list[float]:
    """Milliseconds of each repeat; three before are not counted."""
    method = build(args.method, num_classes).to(device).train()
    views, background = inputs(args, num_classes, device, method.config.width)
    times = []
    for step in range(args.repeats + 3):
        progress = Progress(step=step, steps=args.repeats + 3)
        started = time.perf_counter()
        contrast_step(method, views, background, progress)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return times[3:]


def build(name: str, num_classes: int) -> Fbr | FbrAmn:
    """A method whose backbone is never run."""
    config = {
        "method": name,
        "backbone": "resnet38d_slim",
        "output_stride": 8,
        "num_classes": num_classes,
        "pretrained": False,
        "method_config": {},
    }
    return build_method(config)


def inputs(
    args: argparse.Namespace, num_classes: int, device: torch.device, width: int
) -> tuple[tuple[View, View], list[torch.Tensor]]:
    """Two views of smooth random maps, as a network gives them, and their background embeddings."""
    generator = torch.Generator().manual_seed(0)
    size = (args.batch_size, num_classes)
    order = torch.rand(size, generator=generator).argsort(dim=1)
    label = (order < args.present).float().to(device)
    views, background = [], []
    for _ in range(2):
        maps = torch.rand(args.batch_size, num_classes + 1, 4, 4, generator=generator)
        maps = torch.nn.functional.interpolate(maps, size=(args.cells,) * 2, mode="bilinear")
        shape = (args.batch_size, width, args.cells, args.cells)
        embedding = random_map(shape, generator, device).requires_grad_()
        none = torch.empty(0, device=device)
        views.append(View(label, none, none, maps.to(device), maps.to(device), embedding))
        background.append(random_map(shape, generator, device))
    return tuple(views), background


def random_map(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """In memory as a training step has it: channels last."""
    map_ = torch.rand(shape, generator=generator).to(device)
    return map_.contiguous(memory_format=torch.channels_last)


def contrast_step(
    method: Fbr | FbrAmn,
    views: tuple[View, View],
    background: list[torch.Tensor],
    progress: Progress,
) -> None:
    """Everything FBR adds to a step behind its heads."""
    label, cells = views[0].label, background[0].shape[-2:]
    valid = torch.ones(len(label), 1, *cells, dtype=torch.bool, device=label.device)
    if isinstance(method, FbrAmn):
        maps = views[0].refined_cam.softmax(dim=1)
        both = [views[0].embedding], [method.cells(views[0].embedding, maps, label)]
        background = background[:1]
    else:
        both = method.cells(views)
    terms = method.fbr_contrast(*both, label, background, valid, progress)
    (terms["nce_fg"] + terms["nce_nroi"]).backward()
    method.after_step(progress)


if __name__ == "__main__":
    run_stage(main)
