"""The layouts of datasets on disk: one row of `LAYOUTS` per dataset. Add yours here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import coco14
import voc12
from data.labels import number_as_id
from tool.formats.image import MAX_SIDE


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places of a dataset's files, relative to its root, and the facts of its benchmark.

    Attributes:
        images: Folders of images. An image lies in one of them only.
        masks: Folders of ground-truth masks, in order of preference.
        saliency: The folder of saliency maps.
        lists: The folder of image lists.
        labels: Files or folders of image-level labels, in order of preference.
        class_names: The K foreground classes; None to read them from `classes.txt` in the root.
        ids_of_int: Returns the image ids that a number in a list or a label file can stand for.
        official: Names of lists for which `masks` is searched from its last folder to its first.
        upright: Whether images are turned by the orientation in their EXIF data. The masks of a
            benchmark fit its images as they are stored.
        max_side: Longer side in pixels to which larger images are reduced in inference; None for
            no limit.
        prepare: The command that makes lists and labels; "" if there is none.
        inside: Folders in which the dataset can lie within the folder of its archive.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    saliency: str
    lists: str
    labels: tuple[str, ...] = ("labels.csv", "cls_labels.npy")
    class_names: tuple[str, ...] | None = None
    ids_of_int: Callable[[int], tuple[str, ...]] = number_as_id
    official: tuple[str, ...] = ()
    upright: bool = False
    max_side: int | None = None
    prepare: str = ""
    inside: tuple[str, ...] = ()


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
