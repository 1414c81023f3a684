"""`python -m benchmarks.train_step`: where a training step's time goes, in milliseconds.

On a dataset, the embedded one by default, twice. Taken *apart*: loading in this process, the
device's part of the augmentation, the backbone, every function that heads and terms call (without
the functions in it), the backward of each term down to the backbone's taps, the backbone's
backward, optimizer and bank. And *whole*, as the engine takes it, waiting for the device at its end
only: images a second. The share of the card's peak arithmetic is that of the convolutions and
matrix products of the backbone.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.apart import STEPS, UNTIMED, Bench, apart
from benchmarks.arithmetic import Call, backbone_flops, peak_tflops, reached, share_of_peak
from benchmarks.record import add_json_flag, spread, write_record
from benchmarks.timing import Timer
from data.catalog import add_dataset_flags, catalog_from
from data.colour import Finish
from data.dataset import TrainDataset
from data.loader import step_batches
from data.transforms import RandomLongSide
from network.methods import Method, build_method, method_names
from network.weights.pretrained import load_pretrained
from tool.cli import Parser, positive_int, run_stage
from tool.infer.previous import add_previous_flags, previous_outputs_from
from tool.parallel.dist import pick_device
from tool.parallel.machine import cpp_compiler
from tool.progress import Progress
from tool.train.engine import History, Settings, take_step, to_device

PARTS = ("load", "to device", "finish", "backbone forward", "heads and terms forward")
PARTS += ("backward of all terms", "backbone backward", "optimizer", "bank")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the breakdown of one method's step."""
    args = parse(argv)
    bench = prepare(args)
    started = time.perf_counter()
    timer, calls = apart(bench)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = whole(bench)
    print(
        f"{args.method}, {args.backbone}, output stride {args.output_stride}, crop {args.crop}, "
        f"batch {args.batch_size}, {'bf16' if args.amp else 'float32'}"
        f"{f', compiled by {args.compile}' if args.compile else ''}, {device_name(bench.device)}; "
        f"medians of {args.repeats} steps"
    )
    report_parts(timer.medians())
    memory = peak_memory(bench.device)
    report_step(args, steps, memory)
    arithmetic = report_arithmetic(args, bench, calls, timer.medians(), statistics.median(steps))
    record = {"unit": "ms", "step": spread(steps), "parts": timer.medians(), **arithmetic}
    record |= {"images_per_s": 1000 * args.batch_size / statistics.median(steps), **memory}
    record |= {"compile": args.compile, "seconds": time.perf_counter() - started}
    write_record(args.json, record)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.train_step", description=__doc__)
    add = parser.add_argument
    add_dataset_flags(parser)
    add_previous_flags(parser)
    add_network_flags(parser)
    add("--crop", type=positive_int, default=224, help="pixels")
    add("--batch-size", type=positive_int, default=8, help="images")
    add("--repeats", type=positive_int, default=10, help="timed steps")
    add(
        "--compile",
        nargs="?",
        const="inductor",
        choices=("inductor", "cudagraphs", "aot_eager"),
        help="torch.compile the backbone, as in train_fbr.py",
    )
    add_json_flag(parser)
    args = parser.parse_args(argv)
    if args.compile == "inductor" and not (torch.cuda.is_available() or cpp_compiler()):
        parser.error("--compile needs a C++ compiler on a CPU: install g++, or set CXX")
    return args


def add_network_flags(parser: Parser) -> None:
    """What network, and where it runs."""
    add = parser.add_argument
    add("--method", default="fbr", choices=method_names(), help="as in train_fbr.py")
    add("--backbone", default="timm:tf_efficientnet_lite0", help="as in train_fbr.py")
    add("--output-stride", type=positive_int, default=16, help="pixels a cell")
    add("--weights", metavar="W", help="as in train_fbr.py; None: random ones, frozen likewise")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    add("--amp", action="store_true", help="bf16 autocast")
    add("--peak-tflops", type=float, help="the device's, dense; None: that of a known card")


def build(args: argparse.Namespace, num_classes: int, device: torch.device) -> Method:
    """The method of `add_network_flags`, frozen where training freezes pretrained weights."""
    config = {
        "method": args.method,
        "backbone": args.backbone,
        "output_stride": args.output_stride,
        "num_classes": num_classes,
        "pretrained": True,
        "method_config": {},
    }
    method = build_method(config)
    if args.weights is not None:
        load_pretrained(method.backbone, args.weights)
    return method.to(device, memory_format=torch.channels_last)


def prepare(args: argparse.Namespace) -> Bench:
    """Method, optimizer and loader as train_fbr.py has them; the rate is 0."""
    device, catalog = pick_device(args.device), catalog_from(args)
    method = build(args, catalog.num_classes, device).train()
    if args.compile:
        method.backbone.compile(backend=args.compile, dynamic=False)
    recipe = method.recipe
    dataset = TrainDataset(
        catalog,
        catalog.ids(args.list),
        inputs=method.inputs,
        crop=args.crop,
        resize=RandomLongSide(*recipe.long_side_for(args.crop)),
        seed=0,
        previous=previous_outputs_from(args),
    )
    steps = 2 * (args.repeats + UNTIMED)
    return Bench(
        method,
        torch.optim.SGD(
            method.param_groups(0.0, recipe.weight_decay),
            momentum=recipe.momentum,
            fused=device.type == "cuda",
        ),
        step_batches(dataset, batch_size=args.batch_size, start_step=0, steps=steps, seed=0),
        Finish(method.backbone.mean, method.backbone.std, device),
        device,
        args.amp,
        args.repeats,
    )


def whole(bench: Bench) -> list[float]:
    """Milliseconds of steps as the engine takes them, from a batch on the device."""
    timer, history = Timer(bench.device), History()
    settings = Settings(steps=STEPS, batch_size=0, amp=bench.amp)
    milliseconds = []
    for step in range(bench.repeats + UNTIMED):
        batch = to_device(next(bench.batches), bench.device)
        progress = Progress(step=step, steps=STEPS)
        timer.wait()
        started = time.perf_counter()
        batch = bench.finish(batch)
        take_step(bench.method, bench.method, bench.optimizer, batch, progress, settings, history)
        timer.wait()
        milliseconds.append(1000 * (time.perf_counter() - started))
    return milliseconds[UNTIMED:]


def report_parts(medians: dict[str, float]) -> None:
    """Print the parts; under the forward and the backward of the terms what they consist of."""
    functions = {name: value for name, value in medians.items() if "." in name}
    functions["the method itself"] = medians["method"]
    alone = {
        name.removeprefix("backward of "): value
        for name, value in medians.items()
        if name.startswith("backward of ") and name not in PARTS
    }
    medians = medians | {"heads and terms forward": sum(functions.values())}
    details = {"heads and terms forward": functions, "backward of all terms": alone}
    for part in PARTS:
        line(part, medians[part], indent=2)
        if part == "backward of all terms":
            print("    each term alone, down to the taps (what terms share counts in each):")
        for name, value in sorted(details.get(part, {}).items(), key=lambda item: -item[1]):
            line(name, value, indent=4)


def line(name: str, milliseconds: float, *, indent: int) -> None:
    """Print one row."""
    print(f"{' ' * indent}{name:{46 - indent}s} {milliseconds:9.2f} ms")


def peak_memory(device: torch.device) -> dict[str, float]:
    """{name: GiB}: of the GPU since the steps taken whole began, and of the process."""
    import resource  # POSIX only; elsewhere `run_stage` has said so by now

    unit = 1 if sys.platform == "darwin" else 1024  # bytes, or KiB
    found = {"process_gib": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30}
    if device.type == "cuda":
        found["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def report_step(args: argparse.Namespace, steps: list[float], memory: dict[str, float]) -> None:
    """Print what the whole step takes."""
    median = statistics.median(steps)
    print(
        f"step, without load: median {median:.1f} ms (fastest {min(steps):.1f}, slowest "
        f"{max(steps):.1f}), {1000 * args.batch_size / median:.2f} images/s"
    )
    if "gpu_gib" in memory:
        print(f"peak GPU memory: {memory['gpu_gib']:.2f} GiB")
    print(f"peak process memory: {memory['process_gib']:.2f} GiB")


def report_arithmetic(
    args: argparse.Namespace,
    bench: Bench,
    calls: Sequence[Call],
    medians: dict[str, float],
    step: float,
) -> dict[str, Any]:
    """Print and return the backbone's operations, and the share of the peak that they reach."""
    backbone, peak = bench.method.backbone, peak_tflops(bench.device, args.peak_tflops)
    forward, backward = backbone_flops(backbone, calls, output_stride=args.output_stride)
    print(
        f"backbone: {forward / 1e9:.1f} GFLOP forward, {backward / 1e9:.1f} GFLOP backward a step"
    )
    alone = medians["backbone forward"] + medians["backbone backward"]
    print(f"  in its own time: {share_of_peak(forward + backward, alone, peak)}")
    print(f"  in the whole step: {share_of_peak(forward + backward, step, peak)}")
    return {
        "gflop": {"forward": forward / 1e9, "backward": backward / 1e9},
        "backbone": reached(forward + backward, alone, peak),
        "whole_step": reached(forward + backward, step, peak),
    }


def device_name(device: torch.device) -> str:
    """The card, or the processor and its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    run_stage(main)
