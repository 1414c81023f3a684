"""`python -m benchmarks.train_step`: where a training step's time goes, in milliseconds.

Load (augmentation in this process), forward with the terms, backward, optimizer and bank, images a
second and peak memory, on a dataset (the embedded one by default).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data.catalog import add_dataset_flags, catalog_from
from data.dataset import TrainDataset
from data.loader import step_batches
from network.methods import Method, build_method, method_names
from tool.dist import pick_device
from tool.engine import to_device, total_loss
from tool.options import Parser, positive_int, run_stage
from tool.progress import Progress


def main(argv: Sequence[str] | None = None) -> None:
    """Print the breakdown of one method's step."""
    args = parse(argv)
    device = pick_device(args.device)
    catalog = catalog_from(args)
    config = {
        "method": args.method,
        "backbone": args.backbone,
        "output_stride": args.output_stride,
        "num_classes": catalog.num_classes,
        "pretrained": True,
        "method_config": {},
    }
    method = build_method(config).to(device, memory_format=torch.channels_last).train()
    dataset = TrainDataset(
        catalog,
        catalog.ids(args.list),
        inputs=method.inputs,
        mean=method.backbone.mean,
        std=method.backbone.std,
        crop=args.crop,
        long_side=method.recipe.long_side_for(args.crop),
        seed=0,
    )
    batches = step_batches(
        dataset, batch_size=args.batch_size, start_step=0, steps=args.repeats + 2, seed=0
    )
    times = measure(method, batches, device, amp=args.amp, steps=args.repeats + 2)
    report(args, times, device)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.train_step", description=__doc__)
    add = parser.add_argument
    add_dataset_flags(parser, list_name="train")
    add("--method", default="fbr", choices=method_names(), help="what to train")
    add("--backbone", default="timm:tf_efficientnet_lite0", help="as in train_fbr.py")
    add("--output-stride", type=positive_int, default=16, help="pixels a cell")
    add("--crop", type=positive_int, default=224, help="pixels")
    add("--batch-size", type=positive_int, default=8, help="images")
    add("--repeats", type=positive_int, default=10, help="timed steps")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    add("--amp", action="store_true", help="bf16 autocast")
    return parser.parse_args(argv)


def measure(
    method: Method, batches: Any, device: torch.device, *, amp: bool, steps: int
) -> dict[str, list[float]]:
    """Milliseconds of each part of each step; the weights are random, which costs the same."""
    optimizer = torch.optim.SGD(method.param_groups(0.0, 0.0))
    times: dict[str, list[float]] = {}

    def part(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.setdefault(name, []).append(1000 * (time.perf_counter() - started))
        return result

    batches = iter(batches)
    for step in range(steps):
        progress = Progress(step=step, steps=steps)
        batch = part("load", lambda: to_device(next(batches), device))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            batch = part("backbone alone", lambda b=batch: method.backbone(b["image"]) and b)
            terms = part("forward", lambda b=batch, p=progress: method(b, p))
        loss = total_loss(terms, method.weights())
        part("backward", loss.backward)
        part("optimizer and bank", lambda p=progress: (optimizer.step(), method.after_step(p)))
    return {name: values[2:] for name, values in times.items()}


def report(args: argparse.Namespace, times: dict[str, list[float]], device: torch.device) -> None:
    """Print medians, images a second and memory."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    step = sum(medians[name] for name in ("forward", "backward", "optimizer and bank"))
    print(
        f"{args.method}, {args.backbone}, batch {args.batch_size}, crop {args.crop}, {device}, "
        f"{torch.get_num_threads()} threads"
    )
    for name, value in medians.items():
        print(f"  {name:20s} {value:9.1f} ms")
    print(f"  step without load    {step:9.1f} ms, {1000 * args.batch_size / step:.1f} images/s")
    if device.type == "cuda":
        print(f"  peak GPU memory      {torch.cuda.max_memory_allocated() / 2**30:9.2f} GiB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  peak process memory  {peak:9.2f} GiB")


if __name__ == "__main__":
    run_stage(main)
