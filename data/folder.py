"""`python -m data.folder --root R`: photographs and a `labels.csv` -> a dataset for the stages.

`R/images/` holds the photographs, `R/labels.csv` a row `image_id,class;class` for each. Writes
`R/classes.txt`, the classes that are named, in alphabetical order, and `R/lists/train.txt`; files
that are there stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.catalog import open_catalog
from data.labels import csv_rows, read_class_names
from data.prepare import check_images, list_bytes, put_files
from data.usable import bad_images
from tool.cli import Parser, run_stage


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files that are missing, look every image over."""
    args = parse(argv)
    root: Path = args.root
    labels_file = root / "labels.csv"
    if not labels_file.is_file():
        raise FileNotFoundError(
            f"{labels_file} does not exist: a header image_id,classes and rows ID,cat;dog (--root)"
        )
    rows = csv_rows(labels_file)
    class_file = root / "classes.txt"
    if not class_file.exists():
        put_files({class_file: list_bytes(class_names(rows, labels_file))})
    read_class_names(class_file)
    catalog = open_catalog("folder", root)
    ids = [image_id for image_id, _ in rows]
    for image_id in ids:  # an unknown class, an empty label
        catalog.label(image_id)
    list_file = root / "lists" / "train.txt"
    if list_file.exists():
        ids = catalog.ids("train")
    check_images(catalog, {"train": ids})
    if not list_file.exists():
        put_files({list_file: list_bytes(ids)})
    report(catalog.class_names, bad_images(catalog, ids), len(ids))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="data.folder", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="holds images/ and labels.csv")
    return parser.parse_args(argv)


def class_names(rows: Iterable[tuple[str, list[str]]], path: Path) -> list[str]:
    """The classes that rows of `path` name, sorted.

    Raises:
        ValueError: none.
    """
    names = sorted({name for _, names in rows for name in names})
    if not names:
        raise ValueError(f"{path} names no class")
    return names


def report(class_names: Sequence[str], bad: dict[str, str], count: int) -> None:
    """Print what there is, and the images that cannot be read."""
    for image_id, reason in bad.items():
        print(f"cannot be read: {image_id}: {reason}")
    print(f"{count} images, {len(class_names)} classes: {', '.join(class_names)}")
    if bad:
        print(f"{len(bad)} of them cannot be read: mend them, or SKIP_BAD_IMAGES=1")


if __name__ == "__main__":
    run_stage(main)
