"""Write masks as one COCO JSON file of regions to be corrected by hand, and read them back."""

from __future__ import annotations

import dataclasses
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from reprlib import repr as shown
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tool.files import write_json
from tool.formats.coco_regions import check_segmentation, region_of, without_short_polygons
from tool.formats.image import most_pixels
from tool.formats.mask import named_values

BACKGROUND = "background"  # a category that other programs may have
UNKNOWN_NAME = "unknown"  # the category of pixels with the value 255
_LARGEST = 2**15  # a side has fewer pixels


@dataclasses.dataclass(frozen=True)
class Annotated:
    """The regions of one image in a file.

    Attributes:
        size: (H, W) of the image.
        regions: The mask value and COCO's segmentation of each region, checked, in the order of the
            file.
        short_polygons: For each annotation with polygons of fewer than three points, how many of
            them were left out.
    """

    size: tuple[int, int]
    regions: list[tuple[int, Any]] = dataclasses.field(default_factory=list)
    short_polygons: list[int] = dataclasses.field(default_factory=list)

    def mask(self) -> np.ndarray:
        """Return the mask (H, W) uint8; later regions are painted over earlier ones."""
        mask = np.zeros(self.size, np.uint8)
        for value, segmentation in self.regions:
            mask[region_of(segmentation, *self.size)] = value
        return mask


def save_coco(
    path: Path, masks: Iterable[tuple[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """Write masks as COCO's run lengths, with one annotation per image and value.

    Args:
        path: The JSON file.
        masks: The file name of each photograph, and its mask (H, W) uint8 in 0..K and 255.
        class_names: The K foreground names; their categories are 1..K. The value 255 is category
            255, called "unknown".

    Raises:
        ValueError: A class is called "background" or "unknown".
    """
    names = named_values(class_names, background=BACKGROUND, unknown=UNKNOWN_NAME)
    images, annotations = [], []
    for number, (file_name, mask) in enumerate(masks, start=1):
        height, width = mask.shape
        images.append({"id": number, "file_name": file_name, "height": height, "width": width})
        # The background has no annotation.
        for value in np.unique(mask[mask > 0]).tolist():
            runs = coco_mask.encode(np.asfortranarray(mask == value))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": value,
                    "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                    "area": int(coco_mask.area(runs)),
                    "bbox": coco_mask.toBbox(runs).tolist(),
                    "iscrowd": 0,
                }
            )
    categories = [
        {"id": value, "name": name, "supercategory": ""} for name, value in names.items() if value
    ]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories})


def load_coco(path: Path, class_names: Sequence[str]) -> dict[str, Annotated]:
    """Read the regions of all images in a COCO file.

    Categories are identified by their names, because programs may number them anew. Regions may be
    polygons or run lengths.

    Args:
        path: The JSON file.
        class_names: The K foreground names. A category has one of them, or is the background or
            "unknown".

    Returns:
        The file name of an image without its suffix -> its regions.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no COCO file, is broken, or has a category of another name; names
            the file.
    """
    known = named_values(class_names, background=BACKGROUND, unknown=UNKNOWN_NAME)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = _values(_entries(content, "categories"), known)
        images: dict[int, Annotated] = {}
        names: dict[str, Annotated] = {}
        for entry in _entries(content, "images"):
            name, size = entry.get("file_name"), (entry.get("height"), entry.get("width"))
            if not isinstance(name, str) or not all(
                type(x) is int and 0 < x < _LARGEST for x in size
            ):
                raise ValueError(f"an image {shown(name)} of {shown(size)} (height, width)")
            if size[0] * size[1] > most_pixels():
                most = f"more than {most_pixels()} pixels"
                raise ValueError(f"an image {shown(name)} of {shown(size)} (height, width), {most}")
            name = unicodedata.normalize("NFC", name)
            image_id = PurePosixPath(name).with_suffix("").as_posix()
            number = _number(entry, "id")
            if image_id in names or number in images:
                raise ValueError(f"image {image_id!r} or its number comes twice")
            images[number] = names[image_id] = Annotated(size)
        for entry in _entries(content, "annotations"):
            _add(entry, images, values)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no COCO file that can be read: {error}") from error
    return names


def _entries(content: Any, name: str) -> list[dict[str, Any]]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"it has no list of {name}")
    return entries


def _number(entry: dict[str, Any], name: str) -> int:
    value = entry.get(name)
    if type(value) is not int:
        raise ValueError(f"{name} {shown(value)} is no whole number")
    return value


def _values(categories: list[dict[str, Any]], known: dict[str, int]) -> dict[int, int]:
    """Return category number -> mask value.

    Raises:
        ValueError: A category has another name, or two have one number.
    """
    values: dict[int, int] = {}
    for entry in categories:
        if not isinstance(entry.get("name"), str) or entry["name"] not in known:
            raise ValueError(
                f"the category {shown(entry.get('name'))} is none of {', '.join(known)}"
            )
        number, value = _number(entry, "id"), known[entry["name"]]
        if values.setdefault(number, value) != value:
            raise ValueError(f"two categories have the number {number}")
    return values


def _add(entry: dict[str, Any], images: dict[int, Annotated], values: dict[int, int]) -> None:
    """Check an annotation, and add its region to the image.

    Args:
        entry: The annotation.
        images: The images by number. The one of the annotation is changed.
        values: Category number -> mask value.

    Raises:
        ValueError: The annotation is broken, or its image or category is missing; names it.
    """
    where = f"annotation {shown(entry.get('id'))}"
    image, category = _number(entry, "image_id"), _number(entry, "category_id")
    if image not in images or category not in values:
        raise ValueError(
            f"{where} is of image {image}, category {category}: one of them is missing"
        )
    segmentation, short = without_short_polygons(entry.get("segmentation"))
    try:
        check_segmentation(segmentation, *images[image].size)
    except ValueError as error:
        raise ValueError(f"{where}: bad segmentation: {error}") from error
    images[image].regions.append((values[category], segmentation))
    if short:
        images[image].short_polygons.append(short)
