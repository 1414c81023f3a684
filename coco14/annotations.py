"""Read COCO's instance annotations as lists of objects, and draw masks of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

import coco14
from data.files import check_id
from tool.formats.coco_regions import check_segmentation, region_of, without_short_polygons
from tool.formats.mask import UNKNOWN

OVERLAPS = ("small", "later", "first")
_LARGEST = 2**12  # pixels of a side, each of which takes memory; COCO's own have up to 640


@dataclasses.dataclass(frozen=True)
class Object:
    """One annotated object.

    Attributes:
        value: Mask value, 1..80.
        area: Area in pixels.
        crowd: Whether it is a group whose objects were not annotated one by one.
        segmentation: COCO's polygons or run lengths, checked.
    """

    value: int
    area: float
    crowd: bool
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class ImageObjects:
    """The annotations of one image, in their order in the file.

    Attributes:
        image_id: The id of the image.
        height: Height in pixels.
        width: Width in pixels.
        objects: The annotated objects that have a region.
        short_polygons: For each annotation with polygons of fewer than three points, how many of
            them were left out. An annotation that has no other polygons is left out itself.
    """

    image_id: str
    height: int
    width: int
    objects: list[Object] = dataclasses.field(default_factory=list)
    short_polygons: list[int] = dataclasses.field(default_factory=list)


def read_annotations(path: Path) -> list[ImageObjects]:
    """Return the images of an `instances_*.json`, in the order of COCO's image numbers.

    Every entry is checked, which `pycocotools.coco.COCO` does not do.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is of another kind or damaged; names it and the entry.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = _images(_entries(content, "images"))
        for entry in _entries(content, "annotations"):
            _add_object(entry, images)
        if "categories" in content:
            _check_categories(_entries(content, "categories"))
        if not any(image.objects for image in images.values()):
            raise ValueError(f"{len(images)} images and no object: there is nothing to list")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO instances file, or is damaged: {error}") from error
    return [image for _, image in sorted(images.items())]


def _entries(content: Any, name: str) -> list[dict[str, Any]]:
    """Return the list of dictionaries called `name` in a file; raise `ValueError` without one."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"it has no list of {name}")
    return entries


def _check_categories(entries: list[dict[str, Any]]) -> None:
    """Raise `ValueError` unless the categories are COCO's."""
    for entry in entries:
        number, name = _whole(entry, "id", "a category"), entry.get("name")
        wanted = coco14.CATEGORIES.get(number)
        if name != wanted:
            raise ValueError(f"category {shown(number)} is {shown(name)}, in COCO {wanted!r}")


def _whole(entry: dict[str, Any], name: str, where: str) -> int:
    """Return the value called `name` of an entry; raise `ValueError` if it is no whole number.

    Args:
        entry: The entry.
        name: The key of the value.
        where: The entry as the message names it.
    """
    value = entry.get(name)
    if type(value) is not int:
        raise ValueError(f"{where} has the {name} {shown(value)}, which is no whole number")
    return value


def _images(entries: list[dict[str, Any]]) -> dict[int, ImageObjects]:
    """Return the images by COCO's number, without objects; raise `ValueError` for a bad entry."""
    images: dict[int, ImageObjects] = {}
    for entry in entries:
        image_id = _image_id(entry.get("file_name"))
        where = f"image {image_id!r}"
        number = _whole(entry, "id", where)
        if number in images:
            raise ValueError(f"{where} has the id {number} of {images[number].image_id!r}")
        height, width = (_whole(entry, name, where) for name in ("height", "width"))
        if not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
            raise ValueError(f"{where} is {shown(width)}x{shown(height)}")
        images[number] = ImageObjects(image_id, height, width)
    return images


def _image_id(file_name: Any) -> str:
    """Return the file name without suffix; raise `ValueError` if an image list cannot hold it."""
    if not isinstance(file_name, str):
        raise ValueError(f"an image has the file_name {shown(file_name)}, which is no text")
    image_id = file_name.rsplit(".", 1)[0]
    if not image_id.isprintable() or image_id != image_id.strip():
        raise ValueError(f"file_name {file_name!r} has characters that an image list cannot hold")
    return check_id(image_id, "file_name")


def _add_object(entry: dict[str, Any], images: dict[int, ImageObjects]) -> None:
    """Check an annotation, and add its object to the image.

    Args:
        entry: The annotation.
        images: The images by COCO's number. The one of the annotation is changed.

    Raises:
        ValueError: The annotation is broken, or of an image that is not there; names it.
    """
    # The image and the class.
    where = f"annotation {shown(entry.get('id'))}"
    image = images.get(_whole(entry, "image_id", where))
    if image is None:
        raise ValueError(f"{where} is of image {shown(entry['image_id'])}, which is not there")
    where = f"image {image.image_id!r}, {where}"
    category = _whole(entry, "category_id", where)
    if category not in coco14.MASK_VALUES:
        raise ValueError(f"{where} has the unknown category {shown(category)}")
    # The area and the kind. The comparison is written so that NaN fails it.
    area, crowd = entry.get("area"), entry.get("iscrowd", 0)
    if type(area) not in (int, float) or not 0 <= area < 2**31:
        raise ValueError(f"{where} has the area {shown(area)}")
    if crowd not in (0, 1):
        raise ValueError(f"{where} has iscrowd {shown(crowd)}: 0 and 1 are possible")
    # The region. An annotation of short polygons only has none, and is no object.
    segmentation, short = without_short_polygons(entry.get("segmentation"))
    try:
        check_segmentation(segmentation, image.height, image.width)
    except ValueError as error:
        raise ValueError(f"{where}: bad segmentation: {error}") from error
    if short:
        image.short_polygons.append(short)
        if not segmentation:
            return
    value = coco14.MASK_VALUES[category]
    image.objects.append(Object(value, float(area), bool(crowd), segmentation))


def draw_mask(image: ImageObjects, *, overlap: str) -> np.ndarray:
    """Return the mask of an image.

    Args:
        image: The image and its objects, as `read_annotations` returns them.
        overlap: Which object is on top if objects overlap: "small" for the one of smaller area,
            "later" or "first" for that one in the file. A crowd is always below every object.

    Returns:
        (H, W) uint8: 0 background, 1..80 classes, 255 for a crowd.

    Raises:
        ValueError: As `region_of`.
    """
    # Sort so that the top comes last, because later objects are painted over earlier ones.
    objects = list(image.objects)
    if overlap == "small":
        objects.sort(key=lambda one: -one.area)
    elif overlap == "first":
        objects.reverse()
    objects.sort(key=lambda one: not one.crowd)  # crowds first; the sort is stable
    mask = np.zeros((image.height, image.width), np.uint8)
    for one in objects:
        region = region_of(one.segmentation, image.height, image.width)
        mask[region] = UNKNOWN if one.crowd else one.value
    return mask
