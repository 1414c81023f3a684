"""COCO's instance annotations as lists of objects, and as masks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

import coco14
from coco14.regions import check_segmentation, region_of
from tool.formats.mask import UNKNOWN

OVERLAPS = ("small", "later", "first")


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotated object: mask value 1..80, area in pixels, COCO's polygons or run lengths."""

    value: int
    area: float
    crowd: bool
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class ImageObjects:
    """One image's annotations, in their order in the file."""

    image_id: str
    height: int
    width: int
    objects: tuple[Object, ...]


def read_annotations(path: Path) -> list[ImageObjects]:
    """The images of an `instances_*.json`, in the order of COCO's image numbers, all checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or something in it that is damaged; names both.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotations {path} do not exist (--root)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO instances file: {error}") from error
    try:
        _check_categories(content)
        images = _images(_entries(content, "images"))
        objects: dict[int, list[Object]] = {number: [] for number in images}
        for entry in _entries(content, "annotations"):
            number = _whole(entry, "image_id", "an annotation")
            if number not in images:
                raise ValueError(f"an annotation of image {shown(number)}, which is not there")
            objects[number].append(_object(entry, images[number]))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not any(objects.values()):
        raise ValueError(f"{path} has {len(images)} images and no object: there is nothing to list")
    return [
        dataclasses.replace(image, objects=tuple(objects[number]))
        for number, image in sorted(images.items())
    ]


def check_ids(image_ids: Iterable[str]) -> None:
    """`ValueError` when two images have the same id: each would overwrite the other's mask."""
    seen: set[str] = set()
    for image_id in image_ids:
        if image_id in seen:
            raise ValueError(f"two images have the file name of {image_id!r}")
        seen.add(image_id)


def _entries(content: Any, name: str) -> list[dict[str, Any]]:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"not a COCO instances file: it has no list of {name}")
    return entries


def _check_categories(content: Any) -> None:
    """What the file says of its categories, if it does, is what COCO says."""
    if not isinstance(content, dict) or "categories" not in content:
        return
    for entry in _entries(content, "categories"):
        number = _whole(entry, "id", "a category")
        if coco14.CATEGORIES.get(number) != entry.get("name"):
            raise ValueError(
                f"category {shown(number)} is {shown(entry.get('name'))}, "
                f"in COCO {coco14.CATEGORIES.get(number)!r}"
            )


def _whole(entry: dict[str, Any], name: str, where: str) -> int:
    value = entry.get(name)
    if type(value) is not int:
        raise ValueError(f"{where} has the {name} {shown(value)}, which is no whole number")
    return value


def _images(entries: list[dict[str, Any]]) -> dict[int, ImageObjects]:
    """COCO's number -> the image, without objects."""
    images: dict[int, ImageObjects] = {}
    for entry in entries:
        image_id = _image_id(entry.get("file_name"))
        where = f"image {image_id!r}"
        number = _whole(entry, "id", where)
        if number in images:
            raise ValueError(f"{where} has the id {number} of {images[number].image_id!r}")
        height, width = (_whole(entry, name, where) for name in ("height", "width"))
        if not (0 < height < 2**15 and 0 < width < 2**15):
            raise ValueError(f"{where} is {shown(width)}x{shown(height)}")
        images[number] = ImageObjects(image_id, height, width, ())
    check_ids(image.image_id for image in images.values())
    return images


def _image_id(file_name: Any) -> str:
    """The file name without suffix; it must be one line of a list."""
    if not isinstance(file_name, str):
        raise ValueError(f"an image has the file_name {shown(file_name)}, which is no text")
    image_id = file_name.rsplit(".", 1)[0]
    if not image_id.isprintable() or image_id != image_id.strip():
        raise ValueError(f"file_name {file_name!r} has characters that an image list cannot hold")
    return image_id


def _object(entry: dict[str, Any], image: ImageObjects) -> Object:
    where = f"image {image.image_id!r}, annotation {shown(entry.get('id'))}"
    category = _whole(entry, "category_id", where)
    if category not in coco14.MASK_VALUES:
        raise ValueError(f"{where} has the unknown category {shown(category)}")
    area, crowd = entry.get("area"), entry.get("iscrowd", 0)
    if type(area) not in (int, float) or not 0 <= area < 2**31:  # nor when it is NaN
        raise ValueError(f"{where} has the area {shown(area)}")
    if crowd not in (0, 1):
        raise ValueError(f"{where} has iscrowd {shown(crowd)}: 0 and 1 are possible")
    segmentation = entry.get("segmentation")
    try:
        check_segmentation(segmentation, image.height, image.width)
    except ValueError as error:
        raise ValueError(f"{where}: bad segmentation: {error}") from error
    return Object(coco14.MASK_VALUES[category], float(area), bool(crowd), segmentation)


def draw_mask(image: ImageObjects, *, overlap: str) -> np.ndarray:
    """The mask of an image.

    Args:
        overlap: who is on top where objects overlap: `small`, the one of smaller area; `later` or
            `first` in the file. A crowd is 255 and lies below every object.

    Returns:
        (H, W) uint8: 0 background, 1..80, 255 ignored.

    Raises:
        ValueError: a malformed segmentation; names the image.
    """
    painted = [one for one in image.objects if not one.crowd]
    if overlap == "small":
        painted.sort(key=lambda one: -one.area)
    elif overlap == "first":
        painted.reverse()
    mask = np.zeros((image.height, image.width), np.uint8)
    try:
        for one in (*(one for one in image.objects if one.crowd), *painted):
            region = region_of(one.segmentation, image.height, image.width)
            mask[region] = UNKNOWN if one.crowd else one.value
    except ValueError as error:
        raise ValueError(f"image {image.image_id!r}: bad segmentation: {error}") from error
    return mask
