"""Facts of PASCAL VOC 2012 segmentation: classes, folders, list sizes, integer image ids."""

from __future__ import annotations

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The 20 foreground classes; the mask value of a class is its index + 1, 0 is background."""

IMAGE_FOLDER = "JPEGImages"
MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")  # the first one with the file counts
OFFICIAL_LISTS = ("train", "val")  # the devkit's lists; its own masks are in the last folder
SALIENCY_FOLDER = "saliency"
ANNOTATION_FOLDER = "Annotations"  # one .xml per image, the source of image-level labels
LIST_FOLDER = "ImageSets/Segmentation"

LIST_SIZES = {"train": 1464, "train_aug": 10582, "val": 1449, "test": 1456}
"""Images of the official lists; `train_aug` is the union of `train` with SBD's extra masks."""


def image_ids_of(number: int) -> tuple[str, ...]:
    """Return the only image id that an integer of the field's files can mean.

    For example, 2007000032 means "2007_000032".
    """
    return (f"{number // 1_000_000:04d}_{number % 1_000_000:06d}",)
