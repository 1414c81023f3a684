"""COCO's instance annotations as lists of objects, and as masks."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

import coco14
from tool.mask import UNKNOWN

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
    """The images of an `instances_*.json`, in the order of COCO's image numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a category or image that there is not; names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"annotations {path} do not exist (--root)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: (image, []) for image in content["images"]}
        for annotation in content["annotations"]:
            _, objects = images[annotation["image_id"]]
            objects.append(_object(annotation))
        return [_image(*images[number]) for number in sorted(images)]
    except KeyError as error:
        raise ValueError(f"{path}: no {error} where one belongs") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO instances file: {error}") from error


def _object(annotation: dict[str, Any]) -> Object:
    category = annotation["category_id"]
    if category not in coco14.MASK_VALUES:
        raise ValueError(f"annotation {annotation.get('id')} has the unknown category {category!r}")
    return Object(
        coco14.MASK_VALUES[category],
        float(annotation["area"]),
        bool(annotation.get("iscrowd", 0)),
        annotation["segmentation"],
    )


def _image(image: dict[str, Any], objects: list[Object]) -> ImageObjects:
    height, width = int(image["height"]), int(image["width"])
    if not (0 < height < 2**15 and 0 < width < 2**15):
        raise ValueError(f"image {image['file_name']!r} is {width}x{height}")
    return ImageObjects(str(image["file_name"]).rsplit(".", 1)[0], height, width, tuple(objects))


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
            region = _region(one.segmentation, image.height, image.width)
            mask[region] = UNKNOWN if one.crowd else one.value
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"image {image.image_id!r}: bad segmentation: {error}") from error
    return mask


def _region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of polygons, or of run lengths as a list or compressed."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, reach=4 * max(height, width))
        if not segmentation:
            return np.zeros((height, width), bool)
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    else:
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"run lengths of size {segmentation['size']}")
        runs = segmentation
        if isinstance(segmentation["counts"], list):
            counts = segmentation["counts"]
            if sum(counts) != height * width or any(count < 0 for count in counts):
                raise ValueError("run lengths that do not fill the image")
            runs = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(runs).astype(bool)


def _check_polygon(polygon: Any, *, reach: float) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon of fewer than three points")
    if not all(isinstance(x, int | float) and math.isfinite(x) and abs(x) < reach for x in polygon):
        raise ValueError("a polygon far outside the image")
