"""Prepare MS COCO 2014: write its lists, image-level labels and masks.

If the command is stopped and started again, it continues where it stopped.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import coco14
from coco14.annotations import OVERLAPS, ImageObjects, draw_mask, read_annotations
from data.catalog import Catalog, open_catalog
from data.files import list_bytes
from data.labels import label_files
from data.prepare import PrepareFlags, check_lists, recorded
from tool.bar import counted
from tool.cli import run_stage
from tool.files import file_hash, first_few, locked
from tool.flags import flag, parse_flags
from tool.formats.image import check_size
from tool.formats.mask import is_whole, save_mask
from tool.parallel.processes import cores, map_processes
from tool.provenance import MADE_FROM, claim, differing
from tool.ranges import SOME_WORKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(PrepareFlags):
    """The flags of this command.

    Attributes:
        root: Folder with annotations/, train2014/ and val2014/, which also receives what is made.
        overlap: Which object is on top where objects overlap: the smaller, the later or the first
            in the annotations.
        workers: Processes that draw masks.
    """

    overlap: str = flag("small", choices=OVERLAPS)
    workers: int = flag(cores, type=SOME_WORKERS, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Check the download, then write lists, labels, masks and `protocol.json`."""
    command = parse_flags(Command, argv, example="--root COCO")
    # Read and check everything before anything is written.
    catalog = open_catalog("coco14", command.root)
    sources = annotation_files(command.root, partial=command.partial)
    images = read_splits(sources)
    lists = find_lists(images)
    check_lists(command, catalog, lists, coco14.LIST_SIZES)
    check_sizes(catalog, sources, images)
    # The overlap rule and the annotations determine the masks, so each folder's note has both.
    hashes = {split: file_hash(path) for split, path in sources.items()}
    works = {
        split: MaskWriter(
            command.root / "masks" / coco14.SPLITS[split],
            {"overlap": command.overlap, "annotations_sha256": digest},
        )
        for split, digest in hashes.items()
    }
    about: dict[str, Any] = {
        "benchmark": "MS COCO 2014",
        "overlap": command.overlap,
        "crowd": "255, below every object; its class counts as present",
        "lists_of": "train, val: images with an object; train_all, val_all: all images",
        "annotations_sha256": hashes,
    }
    if short := short_polygons(sources, images):
        about["polygons_left_out"] = short
    files = find_files(catalog, lists, images)
    # Write lists and labels, claim the folders, then draw the masks.
    with locked(command.root / "masks"):
        if not command.overwrite:
            for work in works.values():
                work.check_folder()
        with recorded(command, lists, coco14.LIST_SIZES, about, files):
            for split, work in works.items():
                work.claim_folder(images[split], anew=command.overwrite)
            for split, work in works.items():
                write_masks(work, images[split], workers=command.workers)


def annotation_files(root: Path, *, partial: bool) -> dict[str, Path]:
    """Return the annotation file of each split.

    Args:
        root: Folder of the dataset.
        partial: Whether one of the two files may be missing; the result leaves it out.

    Raises:
        FileNotFoundError: A file is missing, or both if `partial`.
    """
    files = {
        split: root / coco14.ANNOTATIONS.format(folder) for split, folder in coco14.SPLITS.items()
    }
    missing = [path for path in files.values() if not path.is_file()]
    if missing and not (partial and len(missing) < len(files)):
        raise FileNotFoundError(f"annotations {missing[0]} do not exist (--root)")
    for path in missing:
        print(f"partial: no {path}")
    return {split: path for split, path in files.items() if path not in missing}


def read_splits(sources: dict[str, Path]) -> dict[str, list[ImageObjects]]:
    """Return the images of each split.

    Args:
        sources: Split -> its annotation file.

    Raises:
        ValueError: As for `read_annotations`; or two images have the same id, so that one mask
            would overwrite the other.
    """
    images = {split: read_annotations(path) for split, path in sources.items()}
    first: dict[str, Path] = {}
    for split, path in sources.items():
        for one in images[split]:
            if one.image_id in first:
                raise ValueError(
                    f"{path}: two images have the file name of {one.image_id!r}, the other is in "
                    f"{first[one.image_id]}"
                )
            first[one.image_id] = path
    return images


def short_polygons(
    sources: dict[str, Path], images: dict[str, list[ImageObjects]]
) -> dict[str, int]:
    """Print and return how many polygons of fewer than three points were left out.

    Args:
        sources: Split -> its annotation file, for the line that is printed.
        images: Split -> its images.

    Returns:
        Split -> number of polygons, for the splits that have some.
    """
    counts = {}
    for split, path in sources.items():
        short = {one.image_id: sum(one.short_polygons) for one in images[split]}
        found = {image_id: count for image_id, count in short.items() if count}
        if found:
            counts[split] = sum(found.values())
            print(
                f"{path}: left out polygons of fewer than three points: {counts[split]}, of "
                f"{first_few(list(found))}"
            )
    return counts


def find_lists(images: dict[str, list[ImageObjects]]) -> dict[str, list[str]]:
    """Return the ids of the lists: per split the images with an object, and all as `SPLIT_all`."""
    lists = {}
    for split, every in images.items():
        lists[split] = [one.image_id for one in every if one.objects]
        lists[f"{split}_all"] = [one.image_id for one in every]
    return lists


def check_sizes(
    catalog: Catalog, sources: dict[str, Path], images: dict[str, list[ImageObjects]]
) -> None:
    """Check that every image has the size that its annotations state.

    Args:
        catalog: The dataset.
        sources: Split -> its annotation file, for the message.
        images: Split -> its images.

    Raises:
        FileNotFoundError: An image is missing.
        ValueError: The sizes of an image differ, or the image is broken.
    """
    for split, path in sources.items():
        for one in images[split]:
            size = catalog.image_size(one.image_id)[::-1]
            check_size(
                f"image {one.image_id!r}", size, f"its entry in {path}", (one.height, one.width)
            )


def find_files(
    catalog: Catalog, lists: dict[str, list[str]], images: dict[str, list[ImageObjects]]
) -> dict[Path, bytes]:
    """Return the contents of the files of lists and labels, by path."""
    folder = catalog.root / catalog.layout.lists
    labels = {one.image_id: label_of(one) for every in images.values() for one in every}
    files = {folder / f"{name}.txt": list_bytes(ids) for name, ids in lists.items()}
    return files | label_files(catalog.root, labels, catalog.class_names)


def label_of(image: ImageObjects) -> np.ndarray:
    """Return the label (80,) float32 {0, 1}: the classes of its objects, crowds included."""
    label = np.zeros(len(coco14.CLASS_NAMES), np.float32)
    label[[one.value - 1 for one in image.objects]] = 1
    return label


def write_masks(work: MaskWriter, images: list[ImageObjects], *, workers: int) -> None:
    """Write the masks of a split, except those that exist and are whole.

    Args:
        work: The writer of the split's masks.
        images: The images of the split.
        workers: The number of processes.
    """
    done = map_processes(work, images, workers=workers)
    written = sum(counted(done, len(images), work.folder.name, unit="image"))
    print(f"{work.folder}: {written} masks written, {len(images) - written} were there")


@dataclasses.dataclass(frozen=True)
class MaskWriter:
    """A writer of masks that can be sent to another process.

    A call with an image writes its mask unless a whole one exists, and returns whether it did.

    Attributes:
        folder: Folder of the masks.
        made_from: The facts that determine the masks: `overlap`, and the hash of the annotations.
    """

    folder: Path
    made_from: dict[str, str]

    def check_folder(self) -> None:
        """Check that the masks in the folder, if any, are made from the same facts.

        Raises:
            ValueError: They are made from others, or no note says what they are made from.
        """
        differ = differing(self.folder, self.made_from)
        unknown = differ is None and any(p.name[0] != "." for p in self.folder.rglob("*.png"))
        if differ or unknown:
            why = f"no {MADE_FROM}" if unknown else f"{', '.join(differ)} differ"
            raise ValueError(
                f"{self.folder} holds masks of another run ({why}): run it as before, move them "
                "away, or --overwrite replaces them"
            )

    def claim_folder(self, images: Sequence[ImageObjects], *, anew: bool) -> None:
        """Write the note of what the masks are made from.

        Args:
            images: The images of the split.
            anew: Whether to remove old masks and their note first.

        Raises:
            ValueError: The folder has a note of other facts.
        """
        # Remove the masks before their note. Then an old mask never counts as a new one, whenever
        # the command is stopped.
        if anew:
            for image in images:
                self.path_of(image).unlink(missing_ok=True)
            (self.folder / MADE_FROM).unlink(missing_ok=True)
        claim(self.folder, self.made_from)

    def path_of(self, image: ImageObjects) -> Path:
        """Return the path of an image's mask."""
        return self.folder / f"{image.image_id}.png"

    def __call__(self, image: ImageObjects) -> bool:
        """Write the mask of an image unless it is there; return whether it was written."""
        path = self.path_of(image)
        if is_whole(path, (image.height, image.width)):
            return False
        save_mask(path, draw_mask(image, overlap=self.made_from["overlap"]))
        return True


if __name__ == "__main__":
    run_stage(main)
