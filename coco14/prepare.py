"""`python -m coco14.prepare --root COCO`: lists, image-level labels and masks of COCO 2014.

COCO is the folder with `annotations/`, `train2014/` and `val2014/`. Stopped and started again, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import coco14
from coco14.annotations import OVERLAPS, ImageObjects, check_ids, draw_mask, read_annotations
from data.catalog import Catalog, open_catalog
from data.files import check_id
from data.prepare import (
    add_prepare_flags,
    check_counts,
    check_files,
    check_images,
    label_files,
    list_bytes,
    put_files,
    recorded,
)
from tool.cli import Parser, positive_int, run_stage
from tool.files import file_hash, locked
from tool.formats.mask import load_mask, save_mask
from tool.parallel.processes import cores, map_processes
from tool.provenance import MADE_FROM, claim, differing


def main(argv: Sequence[str] | None = None) -> None:
    """Check the download, then write lists, labels, masks and `protocol.json`."""
    args = parse(argv)
    catalog = open_catalog("coco14", args.root)
    sources = annotation_files(args.root, partial=args.partial)
    images = read_splits(sources)
    lists = find_lists(images)
    official = coco14.LIST_SIZES
    check_counts({n: len(ids) for n, ids in lists.items()}, official, partial=args.partial)
    check_images(catalog, lists)
    check_sizes(catalog, images)
    hashes = {split: file_hash(path) for split, path in sources.items()}
    works = {
        split: MaskWriter(args.root / "masks" / folder, args.overlap, hashes[split])
        for split, folder in coco14.SPLITS.items()
        if split in sources
    }
    about = {
        "benchmark": "MS COCO 2014",
        "overlap": args.overlap,
        "crowd": "255, below every object; its class counts as present",
        "lists_of": "train, val: images with an object; train_all, val_all: all images",
        "annotations_sha256": hashes,
    }
    files = find_files(catalog, lists, images)
    with locked(args.root / "masks"):
        if not args.overwrite:
            check_files(files)
            for work in works.values():
                work.check_folder()
        with recorded(args.root, lists, official, about, anew=args.overwrite):
            put_files(files)
            for split, work in works.items():
                work.claim_folder(images[split], anew=args.overwrite)
            for split, work in works.items():
                write_masks(work, images[split], workers=args.workers)
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
    add("--workers", type=positive_int, default=cores(), help="processes")
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
    for path in missing:
        print(f"partial: no {path}")
    return there


def read_splits(sources: dict[str, Path]) -> dict[str, list[ImageObjects]]:
    """Split -> its images; `ValueError` also for an image in both splits, or outside the root."""
    images = {}
    for split, path in sources.items():
        images[split] = read_annotations(path)
        for one in images[split]:
            check_id(one.image_id, f"{path}: file_name")
    try:
        check_ids(one.image_id for every in images.values() for one in every)
    except ValueError as error:
        raise ValueError(f"{' and '.join(map(str, sources.values()))}: {error}") from error
    return images


def find_lists(images: dict[str, list[ImageObjects]]) -> dict[str, list[str]]:
    """The ids of both conventions: images with an object, and all."""
    lists = {}
    for split, every in images.items():
        lists[split] = [one.image_id for one in every if one.objects]
        lists[f"{split}_all"] = [one.image_id for one in every]
    return lists


def check_sizes(catalog: Catalog, images: dict[str, list[ImageObjects]]) -> None:
    """`ValueError` when an image is not as large as its annotation says."""
    for image in (one for every in images.values() for one in every):
        width, height = catalog.image_size(image.image_id)
        if (height, width) != (image.height, image.width):
            raise ValueError(
                f"image {image.image_id!r} is {width}x{height}, its annotation says "
                f"{image.width}x{image.height}"
            )


def find_files(
    catalog: Catalog, lists: dict[str, list[str]], images: dict[str, list[ImageObjects]]
) -> dict[Path, bytes]:
    """Path -> content of the lists and the labels."""
    folder = catalog.root / catalog.layout.lists
    labels = {one.image_id: label_of(one) for every in images.values() for one in every}
    files = {folder / f"{name}.txt": list_bytes(ids) for name, ids in lists.items()}
    return files | label_files(catalog.root, labels, catalog.class_names)


def label_of(image: ImageObjects) -> np.ndarray:
    """(80,) float32 {0, 1}: the classes of its objects, crowds included."""
    label = np.zeros(len(coco14.CLASS_NAMES), np.float32)
    label[[one.value - 1 for one in image.objects]] = 1
    return label


def write_masks(work: MaskWriter, images: list[ImageObjects], *, workers: int) -> None:
    """The masks of a split that are not there whole."""
    done = map_processes(work, images, workers=workers)
    written = sum(tqdm(done, total=len(images), desc=work.folder.name, mininterval=1.0))
    print(f"{work.folder}: {written} masks written, {len(images) - written} were there")


@dataclasses.dataclass(frozen=True)
class MaskWriter:
    """Writes one image's mask; True when it was not there whole."""

    folder: Path
    overlap: str
    annotations_sha256: str

    @property
    def made_from(self) -> dict[str, str]:
        """What decides the masks of the folder."""
        return {"overlap": self.overlap, "annotations_sha256": self.annotations_sha256}

    def check_folder(self) -> None:
        """`ValueError` when the folder holds masks made from something else, or who knows what."""
        differ = differing(self.folder, self.made_from)
        if differ is None and any(p.name[0] != "." for p in self.folder.rglob("*.png")):
            raise ValueError(
                f"{self.folder} holds masks that this command has not made: "
                "move them away, or --overwrite replaces them"
            )
        if differ:
            raise ValueError(
                f"{self.folder} holds masks of another run ({', '.join(differ)} differ): "
                "run it as before, or --overwrite makes them anew"
            )

    def claim_folder(self, images: Sequence[ImageObjects], *, anew: bool) -> None:
        """Note what the masks are made from; with `anew` the old ones go first.

        In this order: whatever stops it, an old mask does not pass for a new one.
        """
        if anew:
            for image in images:
                self.path_of(image).unlink(missing_ok=True)
            (self.folder / MADE_FROM).unlink(missing_ok=True)
        claim(self.folder, self.made_from)

    def path_of(self, image: ImageObjects) -> Path:
        """The mask's file."""
        return self.folder / f"{image.image_id}.png"

    def __call__(self, image: ImageObjects) -> bool:
        path = self.path_of(image)
        if self.is_whole(path, (image.height, image.width)):
            return False
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
