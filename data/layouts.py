"""Where each kind of dataset keeps its files, and what its benchmark fixes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import coco14
import voc12
from data.labels import number_as_id
from tool.formats.image import MAX_SIDE


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a kind of dataset keeps its files, relative to the root."""

    images: tuple[str, ...]  # the first folder that has the file
    masks: tuple[str, ...]  # likewise
    saliency: str
    lists: str
    labels: tuple[str, ...] = ("labels.csv", "cls_labels.npy")  # the first that is there
    class_names: tuple[str, ...] | None = None  # None: the root's classes.txt
    ids_of_int: Callable[[int], tuple[str, ...]] = number_as_id  # that a number can be
    official: tuple[str, ...] = ()  # lists whose masks are in the last folder of masks first
    upright: bool = False  # images are turned as their EXIF data say; benchmarks are as stored
    max_side: int | None = None  # larger images are reduced to it; a benchmark's images are small
    prepare: str = ""  # the command that makes lists and labels
    inside: tuple[str, ...] = ()  # where the dataset lies in the folder of its archive


_VOC = Layout((voc12.IMAGE_FOLDER,), voc12.MASK_FOLDERS, voc12.SALIENCY_FOLDER, voc12.LIST_FOLDER)
_FOLDER = Layout(
    ("images", "."),
    ("masks",),
    "saliency",
    "lists",
    upright=True,
    max_side=MAX_SIDE,
    prepare="python -m data.folder",
)  # "." has the folders of classes
LAYOUTS = {
    "toy": _VOC,
    "voc12": dataclasses.replace(
        _VOC,
        labels=(*_VOC.labels, voc12.ANNOTATION_FOLDER),
        class_names=voc12.CLASS_NAMES,
        ids_of_int=voc12.image_ids_of,
        official=voc12.OFFICIAL_LISTS,
        prepare="python -m voc12.prepare",
        inside=("VOC2012", "VOCdevkit/VOC2012"),
    ),
    "coco14": dataclasses.replace(
        _FOLDER,
        images=coco14.IMAGE_FOLDERS,
        masks=coco14.MASK_FOLDERS,
        class_names=coco14.CLASS_NAMES,
        ids_of_int=coco14.image_ids_of,
        upright=False,
        max_side=None,
        prepare="python -m coco14.prepare",
    ),
    "folder": _FOLDER,
}
