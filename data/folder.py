"""Make a dataset for the stages out of photographs and a `labels.csv`.

The root holds the photographs in `images/`, and `labels.csv` with a row `image_id,class;class` per
image. The command writes `classes.txt`, the classes in alphabetical order, and `lists/train.txt`.
Files that exist stay as they are, unless --overwrite is given; what they lack is said.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.catalog import Catalog
from data.files import all_found, list_bytes
from data.labels import check_class_names, csv_rows, read_class_names
from data.layouts import LAYOUTS
from data.prepare import put_files
from data.readable import bad_images
from tool.cli import run_stage
from tool.files import first_few
from tool.flags import parse_flags

_AGAIN = "--overwrite writes it anew"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        root: Folder that holds images/ and labels.csv, and receives what is missing.
        overwrite: Write classes.txt and lists/train.txt anew from labels.csv. Masks and checkpoints
            that were made with other classes no longer fit.
    """

    root: Path
    overwrite: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Look everything over, then write the files that are missing, and say what they lack."""
    command = parse_flags(Command, argv, example="--root my-photos")
    root = command.root
    labels_file, class_file = root / "labels.csv", root / "classes.txt"
    list_file = root / "lists" / "train.txt"
    if not labels_file.is_file():
        raise FileNotFoundError(
            f"{labels_file} does not exist: a header image_id,classes and rows ID,cat;dog (--root)"
        )
    rows = csv_rows(labels_file)
    ids, names = [image_id for image_id, _ in rows], class_names(rows, labels_file)
    made = {class_file: names, list_file: ids}
    kept = [path for path in made if path.exists() and not command.overwrite]
    # Nothing is written before everything is checked, so that a mended file is read as if new.
    known = list(read_class_names(class_file)) if class_file in kept else names
    check_class_names(known, labels_file)
    if new := sorted(set(names) - set(known)):
        raise ValueError(f"{class_file} lacks {first_few(new)}, in labels.csv: {_AGAIN}")
    catalog = Catalog("folder", root, tuple(known), LAYOUTS["folder"], labels_file)
    listed = catalog.ids("train") if list_file in kept else ids
    for image_id in listed:
        catalog.label(image_id)
    all_found(listed, catalog.image_path)
    listed_ids = set(listed)
    put_files({path: list_bytes(lines) for path, lines in made.items() if path not in kept})
    if unused := [name for name in known if name not in names]:
        print(f"{class_file} has {first_few(unused)}, which no image of labels.csv has: {_AGAIN}")
    if left_out := [image_id for image_id in ids if image_id not in listed_ids]:
        print(f"{list_file} leaves out {first_few(left_out)} of labels.csv: {_AGAIN}")
    report(catalog.class_names, bad_images(catalog, listed), len(listed))


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
