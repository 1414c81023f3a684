"""`python -m benchmarks.crf`: the CRF in torch against pydensecrf, time and agreement.

On the photographs of a folder, or on an image that it draws: seconds per image for each preset, on
one thread of a CPU (and on a GPU with --device cuda, `--batch` images at once), for numbers of
labels, and how far the two are apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawn import structured_noise
from benchmarks.record import add_json_flag, write_record
from data.files import IMAGE_SUFFIXES
from tool.cli import Parser, positive_int, run_stage
from tool.crf.dense import PRESETS, Preset, label_unary, score_unary
from tool.formats.image import decode

DRAWN = (375, 500)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table."""
    args = parse(argv)
    torch.set_num_threads(1)
    size = tuple(args.size) if args.size else None
    images = (
        photographs(args.images, args.count, size)
        if args.images
        else [structured_noise(np.random.default_rng(0), size or DRAWN)]
    )
    installed = importlib.util.find_spec("pydensecrf") is not None
    of_size = "x".join(map(str, size)) if size else "own sizes" if args.images else "375x500"
    print(f"{len(images)} images of {of_size}, torch on {args.device}, batch {args.batch}")
    print("| preset | labels | pydensecrf s | torch s | ratio | argmax agrees | mean difference |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for name, labels in itertools.product(args.presets, args.labels):
        rows = [compare(PRESETS[name], image, labels, args, installed) for image in images]
        theirs, ours, agree, apart = (
            statistics.median(column) for column in zip(*rows, strict=True)
        )
        print(
            f"| {name} | {labels} | {theirs:.2f} | {ours:.3f} | {ours / theirs:.2f} | {agree:.3%} "
            f"| {apart:.1e} |"
        )
        row = {
            "preset": name,
            "labels": labels,
            "pydensecrf": theirs,
            "torch": ours,
            "images_per_s": 1 / ours,
        }
        found.append(row | {"argmax_agrees": agree, "mean_difference": apart})
        write_record(args.json, {"unit": "s per image", "batch": args.batch, "rows": found})


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.crf", description=__doc__)
    add = parser.add_argument
    add("--images", type=Path, help="folder of photographs; None: draw one")
    add("--size", type=positive_int, nargs=2, metavar=("H", "W"), help="resize to this size")
    add("--count", type=positive_int, default=4, help="photographs, the first by name")
    add("--labels", type=positive_int, nargs="+", default=[3], help="labels, with background")
    add("--presets", nargs="+", choices=tuple(PRESETS), default=["psa80", "label50", "dlv2"])
    add("--batch", type=positive_int, default=1, help="copies of an image at once, in torch")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="of torch")
    add_json_flag(parser)
    return parser.parse_args(argv)


def photographs(folder: Path, count: int, size: tuple[int, int] | None) -> list[np.ndarray]:
    """The first images of a folder, (H, W, 3) uint8, resized where a size (H, W) is given."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)[:count]
    if not paths:
        raise FileNotFoundError(f"{folder} has no photographs")
    images = [decode(path, "RGB") for path in paths]
    return [np.asarray(image.resize(size[::-1]) if size else image) for image in images]


def energies(preset: Preset, image: np.ndarray, labels: int) -> np.ndarray:
    """(L, H, W): blurred blobs, as a CAM has them."""
    rng = np.random.default_rng(1)
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    blobs = []
    for _ in range(labels):
        distance = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width))
        blobs.append(np.exp(-((distance / (0.3 * height)) ** 2)))
    score = np.stack(blobs).astype(np.float32)
    if preset.from_labels:
        return label_unary(score.argmax(0), n_labels=labels, gt_prob=preset.gt_prob)
    return score_unary(score)


def compare(
    preset: Preset, image: np.ndarray, labels: int, args: argparse.Namespace, installed: bool
) -> tuple[float, float, float, float]:
    """Seconds of pydensecrf and of torch an image, agreement, mean difference; NaN where absent."""
    unary, crf = energies(preset, image, labels), preset.crf

    def in_torch() -> np.ndarray:
        copies = [image] * args.batch, [unary] * args.batch
        return crf.batch(*copies, device=args.device)[0]

    ours, seconds = timed(in_torch)
    seconds /= args.batch
    if not installed:
        return float("nan"), seconds, float("nan"), float("nan")
    theirs, their_seconds = timed(lambda: crf(image, unary, backend="pydensecrf"))
    agree = float((ours.argmax(0) == theirs.argmax(0)).mean())
    return their_seconds, seconds, agree, float(np.abs(ours - theirs).mean())


def timed(call: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The result, and the median of three runs after one that is not counted."""
    result, seconds = call(), []
    for _ in range(3):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds)


if __name__ == "__main__":
    run_stage(main)
