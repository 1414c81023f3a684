"""Measure the time and the memory that the NROI gate adds to CAM inference.

Each image is inferred without and with the gate, one immediately after the other, so that changes
in the speed of the machine affect both. The images are those of a dataset, by default the embedded
one, or are drawn with --size. Network and NROIs are random, which costs the same. The bank has its
largest size, or that of --bank.

With --memory N, the gate alone refines N tiny images with features of --width channels, and the
memory of the process is printed ten times.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import train_fbr
from benchmarks.drawn import write_drawn
from benchmarks.infer_cam import resident
from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import clock, spread
from benchmarks.training import build, headline, parse_with_training
from data.dataset import InferDataset
from data.readable import open_list
from data.regions import FEWEST, SAMPLE, SHARE
from network.contrast.gate import LARGEST, NroiGate, RegionCollector
from network.contrast.gate_steps import GateSettings
from tool.cli import run_stage
from tool.flags import flag
from tool.formats.regions import Regions
from tool.infer.multiscale import infer_images
from tool.infer.scales import Views
from tool.parallel.device import pick_device
from tool.ranges import FACTOR, POSITIVE, SIDE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command, beside those of `train_fbr.py`.

    Attributes:
        scales: Factors on the size of an image. By default the recipe's.
        images: Number of images, the first of the list.
        size: Draw images of this height and width.
        classes: Number of classes of drawn images, and with --memory.
        bank: Number of images whose NROIs are in the bank.
        memory: Measure the memory over N images instead of the time.
        width: Channels of the features with --memory.
    """

    scales: tuple[float, ...] | None = flag(None, type=FACTOR, metavar="FACTOR")
    images: int = flag(16, type=POSITIVE, metavar="N")
    size: tuple[int, int] | None = flag(None, type=SIDE, nargs=2, metavar=("H", "W"))
    classes: int = flag(20, type=POSITIVE, metavar="K")
    bank: int = flag(LARGEST, type=POSITIVE, metavar="N")
    memory: int | None = flag(None, type=POSITIVE, metavar="N")
    width: int = flag(4096, type=POSITIVE, metavar="D")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the memory with --memory, else the time."""
    example = "--size 375 500 --scales 1"
    command, stage = parse_with_training(Command, __name__, argv, example=example)
    if command.memory:
        memory(command)
        return
    with tempfile.TemporaryDirectory() as name:
        if command.size:
            root = Path(name) / "drawn"
            data = dataclasses.replace(stage.data, dataset="folder", root=root, list="train")
            stage = dataclasses.replace(stage, data=data)
            write_drawn(
                root, images=command.images, sizes=[command.size], num_classes=command.classes
            )
        speed(command, stage)


def random_regions(images: int, width: int, num_classes: int) -> Regions:
    """Return random NROIs and prototypes of norm 1.

    Args:
        images: Number of images, each of which has as many NROIs as the gate has clusters.
        width: D, the number of channels.
        num_classes: K, the number of prototypes.
    """
    rng = np.random.default_rng(0)
    clusters = GateSettings().clusters

    def unit(rows: int) -> np.ndarray:
        found = rng.random((rows, width), dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    owner = np.repeat(np.arange(images), clusters)
    names = [f"bank {number}" for number in range(images)]
    return Regions(names, owner, unit(len(owner)), unit(num_classes))


def speed(command: Command, stage: train_fbr.Command) -> None:
    """Print the times of an image without the gate, with it, and in the first pass.

    Args:
        command: The flags of the benchmark.
        stage: The flags of the training, which give the method and the images.
    """
    device = pick_device(stage.run.device)
    catalog, images = open_list(stage.data)
    method = build(stage, catalog, images, device).eval()
    views = Views(command.scales or method.recipe.scales)
    ids = images.ids[: command.images]
    dataset = InferDataset(
        catalog, ids, views=views, inputs=method.infer_inputs, previous=stage.previous
    )
    has_background = method.has_background
    collector = RegionCollector(method.num_classes, seed=0, has_background=has_background)
    samples = [dataset[index] for index in range(len(dataset))]
    # A first image warms up the device, and its region shows the width of the features.
    infer_images(method, samples[:1], device=device, amp=stage.run.amp, refine=collector)
    width = collector.regions(ids).region.shape[1]
    regions = random_regions(command.bank, width, method.num_classes)
    gate = NroiGate(regions, device, seed=0, has_background=has_background)
    ways = {"plain": None, "gate": gate, "first": collector}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    infer_images(method, samples[:1], device=device, amp=stage.run.amp, refine=gate)
    # Time each image in the three ways, one after the other.
    for sample in samples:
        for name, refine in ways.items():
            started = clock()
            mirror = name != "first"  # the first pass has none
            infer_images(
                method, [sample], device=device, amp=stage.run.amp, mirror=mirror, refine=refine
            )
            seconds[name].append(clock() - started)
    facts = (f"{width} channels", f"{len(regions.region)} NROIs", f"{method.num_classes} classes")
    scales = f"scales {', '.join(map(str, views.scales))} and flip"
    print(headline(stage, device, f"{len(samples)} images", *facts, scales))
    line = row("{what}", "{median:.0f}", "{fastest:.0f}", "{slowest:.0f}", "{more:+.1f}")
    rows = Rows(command.json, line, "ms per image", "median", "fastest", "slowest", "more, %")
    plain = np.array(seconds["plain"])
    words = {"plain": "without the gate", "gate": "with the gate", "first": "first pass"}
    # The ratio is taken per image, before the median.
    for name, found in seconds.items():
        more = 100 * float(np.median(np.array(found) / plain) - 1)
        rows.add(what=words[name], more=more, **spread(found, unit=1000))
    first, more = (float(np.median(np.array(seconds[n]) / plain)) for n in ("first", "gate"))
    # The first pass takes a sample of a list only, so its share falls with the length of the list.
    for count in (405, 1464, 10_582, 82_081):
        taken = max(FEWEST, min(SAMPLE, count // SHARE))
        print(f"a list of {count}: {100 * (taken / count * first + more - 1):+.1f} % in all")


def memory(command: Command) -> None:
    """Print the memory of this process ten times while the gate refines N images."""
    device = torch.device("cpu")
    regions = random_regions(command.bank, command.width, command.classes)
    gate = NroiGate(regions, device, seed=0, has_background=False)
    generator = torch.Generator().manual_seed(0)
    rows = Rows(command.json, row("{images}", "{mib:.1f}", "{seconds:.0f}"), "images", "MiB", "s")
    started = time.perf_counter()
    for number in range(command.memory or 0):
        height, width = 6 + number % 3, 6 + number % 5
        features = [torch.rand(command.width, height, width, generator=generator)]
        maps = torch.zeros(command.classes, 8 * height, 8 * width)
        maps[number % command.classes, 4:24, 4:24] = 1
        gate(f"image {number}", features, {"cam": maps}, maps.amax(dim=(1, 2)))
        if (number + 1) * 10 // (command.memory or 1) > len(rows.record["rows"]):
            seconds = time.perf_counter() - started
            rows.add(images=number + 1, mib=resident(os.getpid()), seconds=seconds)


if __name__ == "__main__":
    run_stage(main)
