"""Measure how a training step spends its time, in milliseconds.

The step is taken on a dataset, by default the embedded one, in two ways. The first way times its
parts: loading in this process, the device's part of the augmentation, the backbone, every function
that heads and terms call (without the functions inside it), the backward of each term down to the
backbone's taps, the backbone's backward, the optimizer and the bank. The second way takes whole
steps, as the engine does, waits for the device only at the end of each, and gives images per
second. The share of the card's peak arithmetic counts the convolutions and matrix products of the
backbone.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

import train_fbr
from benchmarks.apart import STEPS, UNTIMED, Bench, apart
from benchmarks.arithmetic import backbone_flops, peak_tflops, reached, share_of_peak
from benchmarks.record import TIMES, JsonFlags, write_record
from benchmarks.timing import repeated, spread
from benchmarks.training import build, headline, parse_with_training
from data.colour import DeviceTransform
from network.optimizer import build_optimizer
from tool.cli import run_stage
from tool.flags import flag
from tool.parallel.device import pick_device
from tool.parallel.machine import keep_freed_memory
from tool.progress import Progress
from tool.ranges import POSITIVE, SOME
from tool.train.engine import Settings, take_step, to_device
from tool.train.history import History

PARTS = ("load", "to device", "finish", "backbone forward", "heads and terms forward")
PARTS += ("backward of all terms", "backbone backward", "optimizer", "bank")
MEMORY = {"gpu_gib": "GPU", "process_gib": "process"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command, beside those of `train_fbr.py`.

    Attributes:
        repeats: Number of timed steps.
        peak_tflops: Peak of the device in TFLOP/s. By default that of a known card.
        keep_memory: Keep freed memory, as train_fbr.py does on a CPU.
    """

    repeats: int = flag(10, type=POSITIVE, metavar="N")
    peak_tflops: float | None = flag(None, type=SOME, metavar="T")
    keep_memory: bool = flag(True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the times of one method's step and of its parts."""
    command, stage = parse(argv)
    bench = prepare(command, stage)
    started = time.perf_counter()
    timer, calls = apart(bench)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step, parts = spread(whole(bench), unit=1000), timer.medians()
    recipe, compiler = stage.recipe, stage.run.compile
    facts = [f"output stride {recipe.output_stride}", f"crop {recipe.crop}"]
    facts += [f"batch {recipe.batch_size}", *[f"compiled by {compiler}"] * bool(compiler)]
    print(f"{headline(stage, bench.device, *facts)}; medians of {command.repeats} steps")
    report_parts(parts)
    speed, memory = 1000 * recipe.batch_size / step["median"], peak_memory(bench.device)
    print(f"step, without load: {TIMES.format(**step)}, {speed:.2f} images/s")
    for name, gib in memory.items():
        print(f"peak {MEMORY[name]} memory: {gib:.2f} GiB")
    record = {"unit": "ms", "step": step, "parts": parts, "images_per_s": speed, **memory}
    flops = backbone_flops(bench.method.backbone, calls)
    own = parts["backbone forward"] + parts["backbone backward"]
    peak = peak_tflops(bench.device, command.peak_tflops)
    record |= report_arithmetic(flops, own, step["median"], peak)
    record |= {"compile": compiler, "seconds": time.perf_counter() - started}
    write_record(command.json, record)


def parse(argv: Sequence[str] | None) -> tuple[Command, train_fbr.Command]:
    """Return the flags of the benchmark and those of the training."""
    return parse_with_training(Command, __name__, argv, example="--repeats 5")


def prepare(command: Command, stage: train_fbr.Command) -> Bench:
    """Return the method, the optimizer and the batches as train_fbr.py makes them."""
    device = pick_device(stage.run.device)
    if command.keep_memory:
        keep_freed_memory(device)
    catalog, images = train_fbr.open_images(stage)
    method = build(stage, catalog, images, device).train()
    train_fbr.study(method, catalog, images, device)
    recipe = dataclasses.replace(stage.recipe, steps=2 * (command.repeats + UNTIMED))
    dataset = train_fbr.dataset_from(stage, catalog, images.ids)
    batches = train_fbr.batches_from(dataset, recipe, stage.run, 0, device)
    optimizer = build_optimizer(method, recipe, device)
    transform = DeviceTransform(method.backbone.mean, method.backbone.std, device)
    return Bench(method, optimizer, batches, transform, device, stage.run.amp, command.repeats)


def whole(bench: Bench) -> list[float]:
    """Return the seconds of whole steps as the engine takes them, without loading the batch."""
    method, history, batch = bench.method, History(), {}
    settings = Settings(steps=STEPS, batch_size=0, amp=bench.amp)
    progress = (Progress(step=step, steps=STEPS) for step in itertools.count())

    def load() -> None:
        batch.update(to_device(next(bench.batches), bench.device))

    def step() -> None:
        finished = bench.transform(batch)
        take_step(method, method, bench.optimizer, finished, next(progress), settings, history)

    return repeated(step, bench.repeats, untimed=UNTIMED, prepare=load)[1]


def report_parts(medians: dict[str, float]) -> None:
    """Print the parts, with details of the forward and of the backward of the terms.

    Args:
        medians: Name of a part -> its milliseconds.
    """
    # The forward of heads and terms is the sum of the functions in it, which have a dot in their
    # names, and of the method itself.
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
    """Print one row of the report, indented by `indent` spaces."""
    print(f"{' ' * indent}{name:{46 - indent}s} {milliseconds:9.2f} ms")


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of the GPU, since the whole steps began, and of the process, in GiB.

    Returns:
        "process_gib", and on a GPU also "gpu_gib".
    """
    import resource  # POSIX only; on other systems `run_stage` has stopped before

    unit = 1 if sys.platform == "darwin" else 1024  # bytes, or KiB
    process = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
    gpu = {"gpu_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}
    return gpu | {"process_gib": process}


def report_arithmetic(
    flops: tuple[int, int], own: float, step: float, peak: float | None
) -> dict[str, Any]:
    """Print and return the backbone's operations, and the share of the peak that they reach.

    Args:
        flops: Operations of the forward and of the backward in a step.
        own: The backbone's milliseconds in a step.
        step: The milliseconds of the whole step.
        peak: Peak of the device in TFLOP/s; None if it is not known.

    Returns:
        Entries of the record: "gflop", "backbone" and "whole_step".
    """
    forward, backward = (one / 1e9 for one in flops)
    print(f"backbone: {forward:.1f} GFLOP forward, {backward:.1f} GFLOP backward a step")
    print(f"  in its own time: {share_of_peak(sum(flops), own, peak)}")
    print(f"  in the whole step: {share_of_peak(sum(flops), step, peak)}")
    return {
        "gflop": {"forward": forward, "backward": backward},
        "backbone": reached(sum(flops), own, peak),
        "whole_step": reached(sum(flops), step, peak),
    }


if __name__ == "__main__":
    run_stage(main)
