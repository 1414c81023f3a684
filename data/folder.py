"""Make a dataset for the stages out of photographs and a `labels.csv`.

The root holds the photographs in `images/`, and `labels.csv` with a row `image_id,class;class` per
image. The command writes `classes.txt`, the classes in alphabetical order, and `lists/train.txt`.
Files that exist stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.catalog import open_catalog
from data.files import all_found, list_bytes
from data.labels import csv_rows
from data.prepare import put_files
from data.readable import bad_images
from tool.cli import run_stage
from tool.flags import parse_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        root: Folder that holds images/ and labels.csv, and receives what is missing.
    """

    root: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files that are missing, look every image over."""
    root = parse_flags(Command, argv, example="--root my-photos").root
    labels_file = root / "labels.csv"
    if not labels_file.is_file():
        raise FileNotFoundError(
            f"{labels_file} does not exist: a header image_id,classes and rows ID,cat;dog (--root)"
        )
    rows = csv_rows(labels_file)
    class_file = root / "classes.txt"
    if not class_file.exists():
        put_files({class_file: list_bytes(class_names(rows, labels_file))})
    catalog = open_catalog("folder", root)
    ids = [image_id for image_id, _ in rows]
    for image_id in ids:  # an unknown class, an empty label
        catalog.label(image_id)
    list_file = root / "lists" / "train.txt"
    if list_file.exists():
        ids = catalog.ids("train")
    all_found(ids, catalog.image_path)
    if not list_file.exists():
        put_files({list_file: list_bytes(ids)})
    report(catalog.class_names, bad_images(catalog, ids), len(ids))


def class_names(rows: Iterable[tuple[str, list[str]]], path: Path) -> list[str]:
    """Return the classes that rows of `path` name, sorted.

    Raises:
        ValueError: They name none.
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
