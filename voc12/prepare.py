"""`python -m voc12.prepare --root VOCdevkit/VOC2012`: the lists and image-level labels of VOC 2012.

The devkit has the lists `train`, `val` and, in its other half, `test`; `train_aug` adds the images
of SBD: those with a mask in `SegmentationClassAug/`, or of a list that you name. The labels come
from the XML annotations; objects marked difficult count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import voc12
from data.catalog import Catalog, open_catalog
from data.labels import AnnotationLabels
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
from tool.cli import Parser, run_stage

SBD_FOLDER = voc12.MASK_FOLDERS[0]


def main(argv: Sequence[str] | None = None) -> None:
    """Check the devkit, then write lists, labels and `protocol.json`."""
    args = parse(argv)
    catalog = open_catalog("voc12", args.root)
    lists, source = find_lists(catalog, args.sbd_list)
    check_counts({n: len(ids) for n, ids in lists.items()}, voc12.LIST_SIZES, partial=args.partial)
    check_images(catalog, lists)
    labels = find_labels(catalog, lists)
    files = label_files(args.root, labels, catalog.class_names)
    path = args.root / voc12.LIST_FOLDER / "train_aug.txt"
    if not has_ids(catalog, path, lists["train_aug"]):
        files[path] = list_bytes(lists["train_aug"])
    if not args.overwrite:
        check_files(files)
    about = {"benchmark": "PASCAL VOC 2012", "train_aug": source, "labelled": len(labels)}
    with recorded(args.root, lists, voc12.LIST_SIZES, about, anew=args.overwrite):
        put_files(files)
    sizes = ", ".join(f"{name} {len(ids)}" for name, ids in lists.items())
    print(f"{args.root}: {sizes} images; {len(labels)} labels")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="voc12.prepare", description=__doc__)
    add = parser.add_argument
    add_prepare_flags(parser, root="the devkit's VOC2012 folder")
    add(
        "--sbd-list",
        type=Path,
        help=f"list of SBD's images, in place of the masks in {SBD_FOLDER}/ (val is left out)",
    )
    return parser.parse_args(argv)


def find_lists(catalog: Catalog, sbd_list: Path | None) -> tuple[dict[str, list[str]], str]:
    """The ids of every list, and where `train_aug` comes from.

    Raises:
        FileNotFoundError: a list of the devkit or SBD's images are missing.
        ValueError: train and val share an image.
    """
    lists = {name: catalog.ids(name) for name in ("train", "val")}
    if (catalog.root / voc12.LIST_FOLDER / "test.txt").is_file():
        lists["test"] = catalog.ids("test")
    else:
        print("no list test.txt: it comes with the devkit's test half")
    shared = set(lists["train"]) & set(lists["val"])
    if shared:
        raise ValueError(
            f"train and val share {len(shared)} images: {', '.join(sorted(shared)[:3])}"
        )
    if sbd_list is not None:
        more, source = catalog.ids(str(existing(sbd_list))), f"list {sbd_list.name}"
    else:
        folder = catalog.root / SBD_FOLDER
        more = [path.stem for path in folder.glob("*.png") if not path.name.startswith(".")]
        source = f"masks in {SBD_FOLDER}"
        if not more:
            raise FileNotFoundError(
                f"{folder} has no masks: put SBD's there, or name a list with --sbd-list"
            )
    aside = set(lists["val"]) | set(lists.get("test", ()))
    lists["train_aug"] = sorted((set(lists["train"]) | set(more)) - aside)
    return lists, source


def has_ids(catalog: Catalog, path: Path, ids: list[str]) -> bool:
    """Whether a list is there and has these ids, in whatever order and form."""
    try:
        return set(catalog.ids(str(path))) == set(ids)
    except (FileNotFoundError, ValueError):
        return False


def existing(path: Path) -> Path:
    """`path`; `FileNotFoundError` when it is no file, `ValueError` when it is no `.txt`."""
    if not path.is_file():
        raise FileNotFoundError(f"list {path} does not exist (--sbd-list)")
    if path.suffix != ".txt":
        raise ValueError(f"list {path} does not end in .txt (--sbd-list)")
    return path


def find_labels(catalog: Catalog, lists: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Image id -> (20,) label, of every image with public annotations, in the order of the ids.

    Raises:
        FileNotFoundError: annotations are missing; counts and names them.
        ValueError: a broken annotation, or one that names another class.
    """
    annotations = AnnotationLabels(
        catalog.root / voc12.ANNOTATION_FOLDER, class_names=catalog.class_names
    )
    ids = sorted(set(lists["train_aug"]) | set(lists["train"]) | set(lists["val"]))
    missing = [image_id for image_id in ids if image_id not in annotations]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images have no annotation in {annotations.folder}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return {image_id: annotations[image_id] for image_id in ids}


if __name__ == "__main__":
    run_stage(main)
