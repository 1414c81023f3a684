"""Measure the images per second of CAM inference, or whether its memory stays constant.

The speed is that of the network and the merge at all scales with mirrors, without CRF and without
writing files, for each batch size. The images are those of a dataset, by default the embedded one,
or are drawn with --size. The weights are random, which costs the same.

With --memory N, N tiny drawn images pass through infer_cam.py (loader with workers, network, merge,
CAM files written in the background), and the memory of the processes is printed.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import functools
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import infer_cam
import train_fbr
from benchmarks.arithmetic import Call, backbone_flops, peak_tflops, reached, share_of_peak
from benchmarks.drawn import write_drawn
from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import repeated
from benchmarks.training import build, headline, parse_with_training
from data.dataset import InferDataset
from data.readable import open_list
from network.methods import Method
from tool.cli import run_stage
from tool.flags import flag
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.outputs import Outputs, Plan
from tool.infer.scales import Views
from tool.parallel.device import pick_device
from tool.ranges import BATCH, FACTOR, POSITIVE, SIDE, SOME, WORKERS

Sample = dict[str, Any]
DISTINCT = 50  # number of different images of the memory run, which repeats them
TINY = ((32, 32), (32, 40), (40, 32), (24, 48), (33, 31))  # (H, W), so that sizes vary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command, beside those of `train_fbr.py`.

    Attributes:
        scales: Factors on the size of an image. By default the recipe's.
        batch_size: Numbers of images that are inferred at once. The table has one row per number.
        images: Number of images, the first of the list.
        size: Draw images of this height and width.
        classes: Number of classes of drawn images, each of which shows one or two.
        memory: Measure the memory over N images instead of the speed.
        num_workers: Number of loader processes with --memory.
        peak_tflops: Peak of the device in TFLOP/s. By default that of a known card.
    """

    scales: tuple[float, ...] | None = flag(None, type=FACTOR, metavar="FACTOR")
    batch_size: list[int] = flag(lambda: [1, 4, 8], type=BATCH, metavar="N")
    images: int = flag(32, type=POSITIVE, metavar="N")
    size: tuple[int, int] | None = flag(None, type=SIDE, nargs=2, metavar=("H", "W"))
    classes: int = flag(20, type=POSITIVE, metavar="K")
    memory: int | None = flag(None, type=POSITIVE, metavar="N")
    num_workers: int = flag(2, type=WORKERS, metavar="N")
    peak_tflops: float | None = flag(None, type=SOME, metavar="T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The objects of a measurement.

    Attributes:
        stage: The flags of the training, which describe the network.
        method: The method with random weights, on `device`, in evaluation mode.
        dataset: The images, and the scales at which they are inferred.
        device: The device that computes.
    """

    stage: train_fbr.Command
    method: Method
    dataset: InferDataset
    device: torch.device

    def headline(self, *facts: str) -> str:
        """Return the line above the table: the network, the device, `facts`, and the scales."""
        scales = f"scales {', '.join(map(str, self.dataset.views.scales))} and flip"
        return headline(self.stage, self.device, *facts, scales)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the memory with --memory, else the speed."""
    command, stage = parse(argv)
    with tempfile.TemporaryDirectory() as name:
        if command.size or command.memory:
            root = Path(name) / "drawn"
            data = dataclasses.replace(stage.data, dataset="folder", root=root, list="train")
            stage = dataclasses.replace(stage, data=data)
            images, sizes = (DISTINCT, TINY) if command.memory else (command.images, [command.size])
            write_drawn(root, images=images, sizes=sizes, num_classes=command.classes)
        setting = prepare(command, stage)
        if command.memory:
            memory(command, setting, Path(name) / "cam")
        else:
            speed(command, setting)


def parse(argv: Sequence[str] | None) -> tuple[Command, train_fbr.Command]:
    """Return the flags of the benchmark and those of the training."""
    return parse_with_training(Command, __name__, argv, example="--size 375 500")


def prepare(command: Command, stage: train_fbr.Command) -> Setting:
    """Build the method and the dataset; with `--memory` the images repeat, N in all."""
    device = pick_device(stage.run.device)
    catalog, images = open_list(stage.data)
    method = build(stage, catalog, images, device).eval()
    ids = itertools.cycle(images.ids) if command.memory else images.ids
    dataset = InferDataset(
        catalog,
        list(itertools.islice(ids, command.memory or command.images)),
        views=Views(command.scales or method.recipe.scales),
        inputs=method.infer_inputs,
        previous=stage.previous,
    )
    return Setting(stage, method, dataset, device)


def speed(command: Command, setting: Setting) -> None:
    """Measure the inference of all images, and print a table with one row per batch size.

    A row has the images per second and the backbone's share of the device's peak. The loading of
    the images is measured apart and printed above the table.

    Args:
        command: The flags.
        setting: The method and the images.
    """
    method, dataset, device = setting.method, setting.dataset, setting.device
    images, peak = len(dataset), peak_tflops(device, command.peak_tflops)
    samples, (seconds,) = repeated(lambda: [dataset[index] for index in range(images)], 1)
    print(f"decoding and resizing, in one process: {1000 * seconds / images:.1f} ms per image")
    stride = f"output stride {setting.stage.recipe.output_stride}"
    print(setting.headline(stride, f"{images} images", f"{method.num_classes} classes"))
    calls = [Call((2, *image.shape), ("high",)) for sample in samples for image in sample["images"]]
    flops, _ = backbone_flops(method.backbone, calls, backward=False)
    print(f"backbone: {flops / images / 1e9:.1f} GFLOP per image")
    names = ("batch size", "images per batch, mean", "images/s", "backbone's operations")
    line = row("{batch_size}", "{images_per_batch:.1f}", "{images_per_s:.2f}", "{operations}")
    rows = Rows(command.json, line, *names, gflop_per_image=flops / images / 1e9)
    for size in command.batch_size:
        batches = [[samples[i] for i in batch] for batch in dataset.batches(range(images), size)]
        # Warm up, on a GPU with all sizes of the images.
        infer_all(setting, batches[:1] if device.type == "cpu" else batches)
        _, (seconds,) = repeated(functools.partial(infer_all, setting, batches), 1)
        rows.add(
            batch_size=size,
            images_per_batch=images / len(batches),
            images_per_s=images / seconds,
            operations=share_of_peak(flops, 1000 * seconds, peak),
            **reached(flops, 1000 * seconds, peak),
        )


def infer_all(setting: Setting, batches: list[list[Sample]]) -> None:
    """Infer all batches, and copy their maps to the CPU as `infer_cam.py` does."""
    method, amp = setting.method, setting.stage.run.amp
    for samples in batches:
        merged = infer_images(method, samples, device=setting.device, amp=amp)
        for sample, maps in zip(samples, merged, strict=True):
            for values in maps.values():
                present_rows(values, sample.get("label"), has_background=method.has_background)


def memory(command: Command, setting: Setting, out: Path) -> None:
    """Print the memory of the processes ten times while N images are inferred and written.

    Args:
        command: The flags.
        setting: The method and the N images.
        out: Folder of the CAM files.
    """
    method, dataset = setting.method, setting.dataset
    batch, workers = command.batch_size[0], command.num_workers
    print(setting.headline(f"batch {batch}", f"{workers} workers"))
    flags = ["--checkpoint", "unused", "--out", out, "--batch-size", batch]
    flags += ["--num-workers", workers, *["--amp"] * setting.stage.run.amp]
    stage = infer_cam.parse(list(map(str, flags)))
    line = row("{images}", "{process:.1f}", "{worker:.1f}", "{seconds:.0f}")
    rows = Rows(command.json, line, "images", "this process, MiB", "a worker, MiB", "s")
    outputs = MemoryOutputs(dataset, infer_cam.plan_from(stage, method, dataset.views), rows)
    work = infer_cam.Work(method, dataset, outputs, {}, None, setting.device)
    infer_cam.infer(stage, work, gate=None)
    # Caches and workers grow at first, so compare from a fifth of the way on.
    late = [seen for seen in rows.record["rows"] if seen["images"] >= command.memory / 5]
    grown = [late[-1][name] - late[0][name] for name in ("process", "worker")]
    print(
        f"from image {late[0]['images']} to image {late[-1]['images']}: this process "
        f"{grown[0]:+.1f} MiB, the largest worker {grown[1]:+.1f} MiB"
    )


class MemoryOutputs(Outputs):
    """Outputs that also record the memory of the processes, ten times per dataset.

    Args:
        dataset: The images.
        plan: The plan of the files.
        rows: It receives the figures.
    """

    def __init__(self, dataset: InferDataset, plan: Plan, rows: Rows) -> None:
        super().__init__(dataset.catalog, plan)
        self.total, self.done, self.rows = len(dataset), 0, rows
        self.started = time.perf_counter()

    def put(self, image_id: str, label: Tensor | None, maps: dict[str, Tensor]) -> None:
        """Write the maps of an image, and count it."""
        super().put(image_id, label, maps)
        self.done += 1
        if self.done * 10 // self.total > len(self.rows.record["rows"]):
            workers = [child.pid for child in multiprocessing.active_children()]
            self.rows.add(
                images=self.done,
                process=resident(os.getpid()),
                worker=max(map(resident, workers), default=0.0),
                seconds=time.perf_counter() - self.started,
            )


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB, with shared pages; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    run_stage(main)
