"""`python -m benchmarks.infer_cam`: images a second of CAM inference, and whether memory is flat.

Speed: network and merge at all scales with flip, without CRF and without writing, for each
`--batch-size`; on a dataset (the embedded one by default) or, with `--size`, on noise. Weights are
random, which costs the same.

Memory: `--memory N` takes N tiny noise images through what infer_cam.py does (loader with workers,
network, merge, CAM files written in the background) and prints the memory of the processes.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.arithmetic import Call, backbone_flops, peak_tflops, reached, share_of_peak
from benchmarks.record import add_json_flag, write_record
from benchmarks.train_step import add_network_flags, build, device_name
from data.catalog import add_dataset_flags, catalog_from, open_catalog
from data.dataset import InferDataset
from data.loader import infer_loader
from network.methods import Method, find_method
from tool.cli import Parser, positive_int, run_stage
from tool.formats.cam import save_cam
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.scales import Views, at_scale
from tool.parallel.dist import pick_device
from tool.parallel.writer import BackgroundWriter

Samples = list[dict[str, Any]]
DISTINCT = 50  # images of the memory run, taken again and again
TINY = ((32, 32), (32, 40), (40, 32), (24, 48), (33, 31))  # (H, W), so that sizes vary


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one of the two."""
    args = parse(argv)
    device = pick_device(args.device)
    if args.memory is None:
        speed(args, device)
    else:
        memory(args, device)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.infer_cam", description=__doc__)
    add = parser.add_argument
    add_dataset_flags(parser)
    add_network_flags(parser)
    add("--scales", type=float, nargs="+", help="None: the method's recipe")
    add("--batch-size", type=positive_int, nargs="+", default=[1, 4, 8], help="images at once")
    add("--images", type=positive_int, default=32, help="images, the first of the list")
    add("--size", type=positive_int, nargs=2, metavar=("H", "W"), help="noise of this size")
    add("--classes", type=positive_int, default=20, help="K of noise; two are present")
    add("--memory", type=positive_int, metavar="N", help="measure memory over N images instead")
    add("--num-workers", type=int, default=2, help="loader processes of --memory")
    add_json_flag(parser)
    return parser.parse_args(argv)


def speed(args: argparse.Namespace, device: torch.device) -> None:
    """Print a row for each batch size."""
    scales = tuple(args.scales or find_method(args.method).recipe.scales)
    samples, num_classes = noise(args, scales) if args.size else photographs(args, scales)
    method = build(args, num_classes, device).eval()
    print(
        f"{args.method}, {args.backbone}, output stride {args.output_stride}, {len(samples)} "
        f"images, {num_classes} classes, scales {', '.join(map(str, scales))} and flip, "
        f"{'bf16' if args.amp else 'float32'}, {device_name(device)}"
    )
    calls = [Call((2, *image.shape), ("high",)) for sample in samples for image in sample["images"]]
    flops, _ = backbone_flops(
        method.backbone, calls, output_stride=args.output_stride, backward=False
    )
    peak = peak_tflops(device, args.peak_tflops)
    print(f"backbone: {flops / len(samples) / 1e9:.1f} GFLOP an image")
    print("| batch size | images a batch, mean | images/s | backbone's operations |")
    print("|---|---|---|---|")
    rows = []
    for size in args.batch_size:
        batches = batches_of(samples, size)
        seconds = timed(method, batches, device, amp=args.amp)
        print(
            f"| {size} | {len(samples) / len(batches):.1f} | {len(samples) / seconds:.2f} "
            f"| {share_of_peak(flops, 1000 * seconds, peak)} |"
        )
        rows.append({"batch_size": size, "images_per_s": len(samples) / seconds})
        rows[-1] |= reached(flops, 1000 * seconds, peak)
        write_record(args.json, {"gflop_per_image": flops / len(samples) / 1e9, "rows": rows})


def photographs(args: argparse.Namespace, scales: Sequence[float]) -> tuple[Samples, int]:
    """The first images of a list, and K; prints what loading them takes."""
    catalog = catalog_from(args)
    ids = catalog.ids(args.list)[: args.images]
    dataset = InferDataset(catalog, ids, views=Views(tuple(scales)))
    started = time.perf_counter()
    samples = [dataset[index] for index in range(len(dataset))]
    milliseconds = 1000 * (time.perf_counter() - started) / len(samples)
    print(f"decoding and resizing, in one process: {milliseconds:.1f} ms an image")
    return samples, catalog.num_classes


def noise(args: argparse.Namespace, scales: Sequence[float]) -> tuple[Samples, int]:
    """Images of random colours with two classes, or the one there is, as `InferDataset` has them;
    and K.
    """
    rng = np.random.default_rng(0)
    samples = []
    for number in range(args.images):
        image = random_image(rng, args.size)
        label = torch.zeros(args.classes)
        label[rng.permutation(args.classes)[:2]] = 1
        images = [at_scale(image, scale) for scale in scales]
        samples.append(
            {"image_id": str(number), "size": tuple(args.size), "images": images, "label": label}
        )
    return samples, args.classes


def random_image(rng: np.random.Generator, size: Sequence[int]) -> Image.Image:
    """An image (H, W) of random colours."""
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def batches_of(samples: Samples, size: int) -> list[Samples]:
    """At most `size` samples of one size each."""
    of_size: dict[tuple[int, int], Samples] = {}
    for sample in samples:
        of_size.setdefault(tuple(sample["size"]), []).append(sample)
    return [
        same[first : first + size]
        for same in of_size.values()
        for first in range(0, len(same), size)
    ]


def timed(method: Method, batches: list[Samples], device: torch.device, *, amp: bool) -> float:
    """Seconds until the maps of all batches are in the main memory; once before, uncounted.

    On a CPU the run before is the first batch alone.
    """
    for warm_up in (True, False):
        started = time.perf_counter()
        for samples in batches[:1] if warm_up and device.type == "cpu" else batches:
            merged = infer_images(method, samples, device=device, amp=amp)
            for sample, maps in zip(samples, merged, strict=True):
                for values in maps.values():
                    present_rows(values, sample["label"], has_background=method.has_background)
    return time.perf_counter() - started


def memory(args: argparse.Namespace, device: torch.device) -> None:
    """Print the memory of the processes ten times on the way through N images."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        ids = write_noise(root, args.classes)
        catalog = open_catalog("folder", root)
        method = build(args, args.classes, device).eval()
        scales = tuple(args.scales or method.recipe.scales)
        repeated = list(itertools.islice(itertools.cycle(ids), args.memory))
        dataset = InferDataset(catalog, repeated, views=Views(scales), inputs=method.infer_inputs)
        batches = dataset.batches(range(args.memory), args.batch_size[0])
        loader = infer_loader(dataset, batches=batches, num_workers=args.num_workers)
        print(
            f"{args.method}, {args.backbone}, scales {', '.join(map(str, scales))} and flip, batch "
            f"{args.batch_size[0]}, {args.num_workers} workers, {device_name(device)}"
        )
        print("| images | this process, MiB | a worker, MiB | s |")
        print("|---|---|---|---|")
        seen = run(method, loader, root / "cam", device, args)
    late = [row for row in seen if row[0] >= args.memory / 5]
    grown = [late[-1][column] - late[0][column] for column in (1, 2)]
    print(
        f"from image {late[0][0]} to image {late[-1][0]}: this process {grown[0]:+.1f} MiB, the "
        f"largest worker {grown[1]:+.1f} MiB"
    )


def run(
    method: Method,
    loader: Iterator[Samples],
    out: Path,
    device: torch.device,
    args: argparse.Namespace,
) -> list[tuple[int, float, float]]:
    """What infer_cam.py does with its loader; (images, MiB, MiB of the largest worker) rows."""
    rows, done, started = [], 0, time.perf_counter()
    with BackgroundWriter() as writer:
        for samples in loader:
            merged = infer_images(method, samples, device=device, amp=args.amp)
            for sample, maps in zip(samples, merged, strict=True):
                cam = present_rows(
                    maps["cam"], sample.get("label"), has_background=method.has_background
                )
                writer.submit(save_cam, out / f"{sample['image_id']}.npy", cam)
            done += len(samples)
            if done * 10 // args.memory > len(rows):
                workers = [child.pid for child in multiprocessing.active_children()]
                rows.append((done, resident(os.getpid()), max(map(resident, workers), default=0)))
                seconds = time.perf_counter() - started
                print("| {} | {:.1f} | {:.1f} | {:.0f} |".format(*rows[-1], seconds), flush=True)
    return rows


def write_noise(root: Path, num_classes: int) -> list[str]:
    """A `folder` dataset of tiny noise images with a class or two each; its ids."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    classes = [f"class {number}" for number in range(num_classes)]
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    rows = []
    for number in range(DISTINCT):
        random_image(rng, TINY[number % len(TINY)]).save(root / "images" / f"{number}.jpg")
        present = rng.permutation(num_classes)[: rng.integers(1, 3)]
        rows.append(f"{number},{';'.join(classes[index] for index in present)}\n")
    (root / "labels.csv").write_text("image_id,classes\n" + "".join(rows))
    return [str(number) for number in range(DISTINCT)]


def resident(pid: int) -> float:
    """MiB of a process that lie in memory, pages that it shares included; 0 for one that ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    run_stage(main)
