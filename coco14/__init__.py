"""Facts of MS COCO 2014 for segmentation: classes and their own ids, folders, list sizes."""

from __future__ import annotations

CATEGORIES = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign",
    14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear",
    89: "hair drier", 90: "toothbrush",
}  # fmt: skip
"""COCO's own category id -> name; the ids have gaps, up to 90."""

CLASS_NAMES = tuple(CATEGORIES.values())
"""The 80 foreground classes; the mask value of a class is its index + 1, 0 is background."""

MASK_VALUES = {category: index for index, category in enumerate(CATEGORIES, start=1)}
"""COCO's own category id -> mask value, 1..80."""

SPLITS = {"train": "train2014", "val": "val2014"}
IMAGE_FOLDERS = tuple(SPLITS.values())
MASK_FOLDERS = tuple(f"masks/{folder}" for folder in IMAGE_FOLDERS)
ANNOTATIONS = "annotations/instances_{}.json"  # {} is train2014 or val2014

LIST_SIZES = {"train": 82_081, "val": 40_137, "train_all": 82_783, "val_all": 40_504}
"""Images of the two conventions: those with an object (EPS, PPC, SIPE, SFC), and all of them."""


def image_ids_of(number: int) -> tuple[str, ...]:
    """Return the ids that an image with COCO's number can have, one per split.

    No two splits share a number, so at most one of them exists.
    """
    return tuple(f"COCO_{folder}_{number:012d}" for folder in IMAGE_FOLDERS)
