"""Prepare PASCAL VOC 2012: write its lists and image-level labels.

The devkit has the lists `train`, `val` and, in its test half, `test`. The list `train_aug` adds the
images of SBD: those with a mask in `SegmentationClassAug/`, or those of a given list. The labels
come from the XML annotations; objects that are marked difficult count too.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import voc12
from data.catalog import Catalog, open_catalog
from data.files import all_found, list_bytes
from data.labels import AnnotationLabels, label_files
from data.prepare import PrepareFlags, check_lists, recorded
from tool.cli import run_stage
from tool.files import first_few
from tool.flags import flag, parse_flags

SBD_FOLDER = voc12.MASK_FOLDERS[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(PrepareFlags):
    """The flags of this command.

    Attributes:
        root: The devkit's VOC2012 folder, which also receives what is made.
        sbd_list: List of SBD's images, in place of the masks in SegmentationClassAug/. Images of
            val are left out of it.
    """

    sbd_list: Path | None = flag(None, metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Check the devkit, then write lists, labels and `protocol.json`."""
    command = parse_flags(Command, argv, example="--root VOCdevkit/VOC2012")
    catalog = open_catalog("voc12", command.root)
    lists, source = find_lists(catalog, command.sbd_list)
    check_lists(command, catalog, lists, voc12.LIST_SIZES)
    labels = find_labels(catalog, lists)
    files = label_files(command.root, labels, catalog.class_names)
    path = command.root / voc12.LIST_FOLDER / "train_aug.txt"
    if not has_ids(catalog, path, lists["train_aug"]):
        files[path] = list_bytes(lists["train_aug"])
    about = {"benchmark": "PASCAL VOC 2012", "train_aug": source, "labelled": len(labels)}
    with recorded(command, lists, voc12.LIST_SIZES, about, files):
        print(f"{len(labels)} images have labels")


def find_lists(catalog: Catalog, sbd_list: Path | None) -> tuple[dict[str, list[str]], str]:
    """Return the ids of every list, and the origin of `train_aug`.

    Args:
        catalog: The devkit.
        sbd_list: List of SBD's images; None for the images with a mask in `SegmentationClassAug/`.

    Returns:
        Name -> ids, for `train`, `val`, `train_aug` and, if the devkit has it, `test`; and the
        origin as text for `protocol.json`.

    Raises:
        FileNotFoundError: A list or SBD's images are missing.
        ValueError: train and val share an image, or a list is broken.
    """
    if not (catalog.root / voc12.LIST_FOLDER / "train.txt").is_file():
        raise FileNotFoundError(
            f"{catalog.root} has no {voc12.LIST_FOLDER}/train.txt: give the folder VOC2012 of the "
            "devkit (--root)"
        )
    lists = {name: catalog.ids(name) for name in ("train", "val")}
    if (catalog.root / voc12.LIST_FOLDER / "test.txt").is_file():
        lists["test"] = catalog.ids("test")
    else:
        print("no list test.txt: it comes with the devkit's test half")
    shared = set(lists["train"]) & set(lists["val"])
    if shared:
        raise ValueError(f"train and val share {len(shared)} images: {first_few(sorted(shared))}")
    if sbd_list is not None:
        if sbd_list.suffix != ".txt" or not sbd_list.is_file():
            raise FileNotFoundError(f"list {sbd_list} is no .txt file that exists (--sbd-list)")
        more, source = catalog.ids(str(sbd_list)), f"list {sbd_list.name}"
    else:
        folder = catalog.root / SBD_FOLDER
        more = [path.stem for path in folder.glob("*.png") if not path.name.startswith(".")]
        source = f"masks in {SBD_FOLDER}"
        if not more:
            raise FileNotFoundError(
                f"{folder} has no masks: put SBD's there, or name a list with --sbd-list"
            )
    # SBD also has masks of images in val. Training must not see them, nor those of test.
    aside = set(lists["val"]) | set(lists.get("test", ()))
    lists["train_aug"] = sorted((set(lists["train"]) | set(more)) - aside)
    return lists, source


def has_ids(catalog: Catalog, path: Path, ids: list[str]) -> bool:
    """Return whether the list file `path` exists and has these ids, in any order and any format."""
    try:
        return set(catalog.ids(str(path))) == set(ids)
    except (FileNotFoundError, ValueError):
        return False


def find_labels(catalog: Catalog, lists: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """Return the image-level labels of the images with public annotations.

    Args:
        catalog: The devkit.
        lists: The lists of `find_lists`. Images of `test` have no public annotations.

    Returns:
        Image id -> (20,) {0, 1}, in the order of the ids.

    Raises:
        FileNotFoundError: Annotations are missing; names the first few, and how many.
        ValueError: An annotation is broken or names another class.
    """
    annotations = AnnotationLabels(catalog.root / voc12.ANNOTATION_FOLDER, catalog.class_names)
    ids = sorted(set(lists["train_aug"]) | set(lists["train"]) | set(lists["val"]))
    all_found(ids, annotations.path)
    return {image_id: annotations[image_id] for image_id in ids}


if __name__ == "__main__":
    run_stage(main)
