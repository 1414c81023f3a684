"""Make a dataset for the stages out of photographs, and pick up photographs that are new.

The photographs lie in `images/` of the root, with a `labels.csv` that has a row
`image_id,class;class` per image; or in one folder per class, of which the command makes a
`labels.csv`. It writes `classes.txt`, the classes in alphabetical order, and two lists:
`lists/train.txt` is what networks are trained on, `lists/photographs.txt` is that and every
photograph that is in no list yet. Files that exist stay as they are, unless --overwrite is given;
what they lack is said. The second list, and `labels.csv` if there are folders of classes, are
brought up to date.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from data.catalog import Catalog
from data.class_folders import IMAGES, class_folders, read_folders, with_rows
from data.class_names import check_class_names, read_class_names
from data.files import IMAGE_SUFFIXES, all_found, list_bytes, without_suffix
from data.labels import csv_bytes, csv_rows
from data.layouts import LAYOUTS
from data.prepare import put_files
from data.readable import bad_images
from tool.cli import printable, run_stage
from tool.files import first_few
from tool.flags import parse_flags

_AGAIN = "--overwrite writes it anew"
_Rows = list[tuple[str, list[str]]]  # of a labels.csv: image id and classes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        root: Folder that holds images/ and labels.csv, or a folder per class, and receives what is
            missing.
        overwrite: Write classes.txt and lists/train.txt anew from labels.csv, without the images of
            other lists such as val, and drop the rows of photographs that are gone. Masks and
            checkpoints that were made with other classes no longer fit, and a network that was
            trained on another list needs another folder.
    """

    root: Path
    overwrite: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Check the photographs and labels, write the files that are missing, and print a summary.

    Raises:
        FileNotFoundError: The root, the labels, or photographs of a list do not exist.
        ValueError: The labels, the classes or a list is invalid; names the file.
    """
    command = parse_flags(Command, argv, example="--root my-photos")
    root = command.root
    labels_file, class_file = root / "labels.csv", root / "classes.txt"
    list_file, every_file = (root / "lists" / f"{name}.txt" for name in ("train", "photographs"))
    rows = labelled(root, labels_file, overwrite=command.overwrite)
    ids, names = [image_id for image_id, _ in rows], class_names(rows, labels_file)
    kept = [path for path in (class_file, list_file) if path.exists() and not command.overwrite]
    # Nothing is written before everything is checked, so that a mended file is read as if new.
    known = list(read_class_names(class_file)) if class_file in kept else names
    folders = class_folders(root)
    check_class_names(known, root if folders else labels_file)
    if lacking := sorted(set(names) - set(known)):
        raise ValueError(f"{class_file} lacks {first_few(lacking)}, in labels.csv: {_AGAIN}")
    if folders:
        put_changed({labels_file: csv_bytes(rows)})
    catalog = Catalog("folder", root, tuple(known), LAYOUTS["folder"], labels_file)
    others = in_other_lists(catalog, (list_file, every_file))
    own = [image_id for image_id in ids if image_id not in others] or ids
    listed = catalog.ids("train") if list_file in kept else own
    for image_id in listed:
        catalog.label(image_id)
    try:
        all_found(listed, catalog.image_path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{list_file if list_file in kept else labels_file}: {error}"
        ) from error
    listed_ids = set(listed)
    left_out = [image_id for image_id in own if image_id not in listed_ids]
    new = [image_id for image_id in left_out if catalog.has_image(image_id)]
    made = {class_file: names, list_file: own, every_file: [*listed, *new]}
    put_changed({path: list_bytes(lines) for path, lines in made.items() if path not in kept})
    if unused := [name for name in known if name not in names]:
        print(f"{class_file} has {first_few(unused)}, which no image of labels.csv has: {_AGAIN}")
    if unlabelled := [] if folders else without_row(root, {*ids, *others}):
        print(f"{labels_file} has no row of {first_few(unlabelled)} in {root / IMAGES}: left out")
    if left_out:
        print(
            f"{list_file} leaves out {first_few(left_out)} of labels.csv: {_AGAIN}, for another "
            "training; the network that is trained makes their masks"
        )
    report(catalog.class_names, bad_images(catalog, [*listed, *new]), len(listed))


def in_other_lists(catalog: Catalog, own: Sequence[Path]) -> set[str]:
    """Return the ids of the images that are in other lists of the dataset, such as `val`.

    Args:
        catalog: The dataset.
        own: The lists of this command, which are left out. At least one; they share a folder.
    """
    others = (path for path in own[0].parent.glob("*.txt") if path not in own)
    return {image_id for path in others for image_id in catalog.ids(path.stem)}


def without_row(root: Path, known: Collection[str]) -> list[str]:
    """Return the ids of the photographs in `images/` that are not among the known ids, sorted."""
    folder = root / IMAGES
    paths = (path for path in folder.rglob("*") if path.name.endswith(IMAGE_SUFFIXES))
    names = {
        path.relative_to(folder).with_name(without_suffix(path.name)).as_posix()
        for path in paths
        if path.name[0] != "." and path.is_file()
    }
    return sorted({unicodedata.normalize("NFC", name) for name in names}.difference(known))


def put_changed(files: Mapping[Path, bytes]) -> None:
    """Write files, except those that already have the given content.

    Args:
        files: The content by path.
    """
    changed = {path: c for path, c in files.items() if not path.is_file() or path.read_bytes() != c}
    put_files(changed)


def labelled(root: Path, labels_file: Path, *, overwrite: bool) -> _Rows:
    """Return the rows of `labels.csv`, with the images of the class folders if there are any.

    Args:
        root: The root.
        labels_file: The file, which need not exist if there are folders.
        overwrite: Whether to drop the rows of photographs that are gone.

    Raises:
        FileNotFoundError: There are neither labels nor folders, or photographs are gone.
        ValueError: The file is no `labels.csv`, or a photograph has a name that no list can hold.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist (--root)")
    folders = class_folders(root)
    if not folders and not labels_file.is_file():
        raise FileNotFoundError(
            f"{labels_file} does not exist: a header image_id,classes and rows ID,cat;dog for "
            f"photographs in {root / IMAGES}; or put the photographs of each class into a folder "
            f"of its name, such as {root / 'cat'} (--root)"
        )
    rows = csv_rows(labels_file) if labels_file.is_file() else []
    if not folders:
        return rows
    found = read_folders(root, folders, (image_id for image_id, _ in rows))
    if gone := [image_id for image_id, _ in rows if image_id not in found.rows]:
        if not overwrite:
            raise FileNotFoundError(
                f"{labels_file} has {first_few(gone)}, which have no photograph: --overwrite "
                "drops the rows"
            )
        rows = [row for row in rows if row[0] in found.rows]
    for line in found.lines():
        print(line)
    merged = with_rows(rows, found.rows)
    if rows and (new := len(merged) - len(rows)):
        print(f"{new} photographs are new: {first_few([one for one, _ in merged[len(rows) :]])}")
    return merged


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
    """Print the number of images, the classes, and which images cannot be read, and why.

    Args:
        class_names: The classes.
        bad: {image id: why it cannot be read}.
        count: Number of images to train on.
    """
    for image_id, reason in bad.items():
        print(printable(f"cannot be read: {image_id}: {reason}"))
    print(f"{count} images, {len(class_names)} classes: {', '.join(class_names)}")
    if bad:
        print(f"{len(bad)} of them cannot be read: mend them, or SKIP_BAD_IMAGES=1")


if __name__ == "__main__":
    run_stage(main)
