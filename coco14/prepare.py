"""`python -m coco14.prepare --root COCO`: lists, image-level labels and masks of COCO 2014.

COCO is the folder with `annotations/`, `train2014/` and `val2014/`. Stopped and started again, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import coco14
from coco14.annotations import OVERLAPS, ImageObjects, draw_mask, read_annotations
from data.catalog import Catalog, open_catalog
from data.prepare import (
    add_prepare_flags,
    check_counts,
    check_images,
    list_bytes,
    put,
    put_labels,
    write_protocol,
)
from tool.files import claim, locked
from tool.mask import load_mask, save_mask
from tool.options import Parser, positive_int, run_stage
from tool.parallel import map_processes
from tool.run_directory import file_hash


def main(argv: Sequence[str] | None = None) -> None:
    """Check the download, then write lists, labels, masks and `protocol.json`."""
    args = parse(argv)
    catalog = open_catalog("coco14", args.root)
    files = annotation_files(args.root, partial=args.partial)
    images = {split: read_annotations(path) for split, path in files.items()}
    lists = find_lists(images)
    official = coco14.LIST_SIZES
    check_counts({n: len(ids) for n, ids in lists.items()}, official, partial=args.partial)
    check_images(catalog, lists)
    with locked(args.root / "masks"):
        for name, ids in lists.items():
            path = args.root / catalog.layout.lists / f"{name}.txt"
            put(path, list_bytes(ids), overwrite=args.overwrite)
        labels = {one.image_id: label_of(one) for every in images.values() for one in every}
        put_labels(args.root, labels, catalog.class_names, overwrite=args.overwrite)
        hashes = {split: file_hash(path) for split, path in files.items()}
        for split, every in images.items():
            folder = args.root / "masks" / coco14.SPLITS[split]
            claim(folder, {"overlap": args.overlap, "annotations_sha256": hashes[split]})
            work = MaskWriter(catalog, folder, args.overlap)
            done = map_processes(work, every, workers=args.workers)
            written = sum(tqdm(done, total=len(every), desc=folder.name, mininterval=1.0))
            print(f"{folder}: {written} masks written, {len(every) - written} were there")
    about = {
        "benchmark": "MS COCO 2014",
        "overlap": args.overlap,
        "crowd": "255, below every object; its class counts as present",
        "lists_of": "train, val: images with an object; train_all, val_all: all images",
        "annotations_sha256": hashes,
    }
    write_protocol(args.root, lists, official, about)
    print(f"{args.root}: {', '.join(f'{name} {len(ids)}' for name, ids in lists.items())} images")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="coco14.prepare", description=__doc__)
    add = parser.add_argument
    add_prepare_flags(parser, root="folder with annotations/, train2014/, val2014/")
    add(
        "--overlap",
        choices=OVERLAPS,
        default="small",
        help="which object is on top: the smaller, the later or the first in the annotations",
    )
    add("--workers", type=positive_int, default=os.cpu_count() or 1, help="processes")
    return parser.parse_args(argv)


def annotation_files(root: Path, *, partial: bool) -> dict[str, Path]:
    """Split -> annotations; with `partial` those there are, else both must be."""
    files = {
        split: root / coco14.ANNOTATIONS.format(folder) for split, folder in coco14.SPLITS.items()
    }
    there = {split: path for split, path in files.items() if path.is_file()}
    missing = [path for split, path in files.items() if split not in there]
    if missing and not (partial and there):
        raise FileNotFoundError(f"annotations {missing[0]} do not exist (--root)")
    return there


def find_lists(images: dict[str, list[ImageObjects]]) -> dict[str, list[str]]:
    """The ids of both conventions: images with an object, and all."""
    lists = {}
    for split, every in images.items():
        lists[split] = [one.image_id for one in every if one.objects]
        lists[f"{split}_all"] = [one.image_id for one in every]
    return lists


def label_of(image: ImageObjects) -> np.ndarray:
    """(80,) float32 {0, 1}: the classes of its objects, crowds included."""
    label = np.zeros(len(coco14.CLASS_NAMES), np.float32)
    label[[one.value - 1 for one in image.objects]] = 1
    return label


@dataclasses.dataclass(frozen=True)
class MaskWriter:
    """Writes one image's mask; True when it was not there whole."""

    catalog: Catalog
    folder: Path
    overlap: str

    def __call__(self, image: ImageObjects) -> bool:
        path = self.folder / f"{image.image_id}.png"
        size = (image.height, image.width)
        if self.is_whole(path, size):
            return False
        width, height = self.catalog.image_size(image.image_id)
        if (height, width) != size:
            raise ValueError(
                f"image {image.image_id!r} is {width}x{height}, its annotation says "
                f"{size[1]}x{size[0]}"
            )
        save_mask(path, draw_mask(image, overlap=self.overlap))
        return True

    def is_whole(self, path: Path, size: tuple[int, int]) -> bool:
        """Whether the mask is there, readable and of this (H, W)."""
        try:
            return load_mask(path).shape == size
        except (FileNotFoundError, ValueError):
            return False


if __name__ == "__main__":
    run_stage(main)
