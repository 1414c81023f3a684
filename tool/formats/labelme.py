"""Write masks as labelme's JSON files to be corrected by hand, and read them back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tool.files import write_json
from tool.formats.image import BROKEN, opened, reason_of
from tool.formats.mask import named_values
from tool.formats.polygons import outlines, paint

BACKGROUND, IGNORED = "_background_", "__ignore__"  # labelme's own names of the values 0 and 255
_FEWEST = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}  # fewest points by kind of shape
_REACH = 1 << 20  # limit of a coordinate's absolute value, in pixels


def save_labelme(path: Path, mask: np.ndarray, class_names: Sequence[str], image: str) -> None:
    """Write a mask as polygons, in labelme's layout.

    labelme paints the shapes in their order, which gives exactly the same mask again.

    Args:
        path: The JSON file.
        mask: (H, W) uint8, in 0..K and 255.
        class_names: The K foreground names.
        image: Path of the photograph, relative to the folder of the file.

    Raises:
        ValueError: A class is called `BACKGROUND` or `IGNORED`.
    """
    values = named_values(class_names, background=BACKGROUND, unknown=IGNORED)
    names = {value: name for name, value in values.items()}
    shapes = [
        {
            "label": names[value],
            "points": points.astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for value, points in outlines(mask)
    ]
    height, width = mask.shape
    write_json(
        path,
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        },
    )


def load_labelme(path: Path, class_names: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a labelme file, (H, W) uint8 in 0..K and 255.

    Polygons, rectangles, circles and masks are painted in their order, as labelme does.

    Args:
        path: The JSON file.
        class_names: The K foreground names. The label of a shape is one of them, `BACKGROUND` or
            `IGNORED`.
        size: (H, W) of the photograph.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no labelme file, is of a photograph of another size, or has a shape
            of another kind or label; names the file.
    """
    values = named_values(class_names, background=BACKGROUND, unknown=IGNORED)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        shapes = document.get("shapes") if isinstance(document, dict) else None
        if not isinstance(shapes, list):
            raise ValueError("it has no list of shapes")
        noted = (document.get("imageHeight"), document.get("imageWidth"))
        if None not in noted and noted != size:
            raise ValueError(f"it is of {shown(noted)} pixels (height, width), its image of {size}")
        mask = np.zeros(size, np.uint8)
        for number, shape in enumerate(shapes, start=1):
            try:
                mask = _painted(mask, shape, values)
            except ValueError as error:
                raise ValueError(f"shape {number}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no labelme file that can be read: {error}") from error
    return mask


def _painted(mask: np.ndarray, shape: Any, values: dict[str, int]) -> np.ndarray:
    """Return a mask with one shape of a labelme file painted over it.

    Args:
        mask: (H, W) uint8.
        shape: The shape, unchecked.
        values: Label -> mask value.

    Raises:
        ValueError: The shape is broken, or of another kind or label.
    """
    # Check the label, the kind and the points.
    if not isinstance(shape, dict):
        raise ValueError(f"{shown(shape)} is no shape")
    label, kind = shape.get("label"), shape.get("shape_type") or "polygon"
    if not isinstance(label, str) or label not in values:
        raise ValueError(f"the label {shown(label)} is none of {', '.join(values)}")
    if not isinstance(kind, str) or kind not in _FEWEST:
        raise ValueError(f"a {shown(kind)} has no area: there are {', '.join(_FEWEST)}")
    points = shape.get("points")
    good = isinstance(points, list) and all(_is_point(point) for point in points)
    if not good or len(points) < _FEWEST[kind] or (kind != "polygon" and len(points) > 2):
        raise ValueError(f"a {kind} with the points {shown(points)}")
    # Paint it.
    if kind == "polygon":
        return paint(mask, points, values[label])
    if kind == "mask":
        region = _embedded(mask.shape, points, shape.get("mask"))
    else:
        region = _drawn(mask.shape, points, kind)
    return np.where(region, np.uint8(values[label]), mask)


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(type(x) in (int, float) and abs(x) < _REACH for x in point)  # false for NaN
    )


def _drawn(size: tuple[int, ...], points: list[list[float]], kind: str) -> np.ndarray:
    """Return the region (H, W) bool of a rectangle or a circle.

    Args:
        size: (H, W).
        points: Two opposite corners of the rectangle, or the centre of the circle and a point on
            it, each as (x, y).
        kind: "rectangle" or "circle".
    """
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(box, outline=1, fill=1)
    else:
        radius = float(np.hypot(x1 - x0, y1 - y0))
        draw.ellipse((x0 - radius, y0 - radius, x0 + radius, y0 + radius), outline=1, fill=1)
    return np.asarray(canvas)


def _embedded(size: tuple[int, ...], points: list[list[float]], text: Any) -> np.ndarray:
    """Return the region (H, W) bool of a mask shape.

    Args:
        size: (H, W).
        points: The upper left and the lower right pixel of the shape, as (x, y).
        text: A PNG in base64 that fills the box of these pixels.

    Raises:
        ValueError: The box leaves the image, or `text` is no PNG of its size.
    """
    (left, top), (right, bottom) = np.asarray(points).astype(int)
    if not (0 <= left <= right < size[1] and 0 <= top <= bottom < size[0]):
        raise ValueError(f"a mask whose corners {shown(points)} lie outside the image")
    wanted = (int(bottom - top + 1), int(right - left + 1))
    try:
        with opened(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as png:
            if png.size[::-1] != wanted:
                raise ValueError(f"a mask of {png.size[::-1]} pixels for a box of {wanted}")
            inside = np.asarray(png.convert("L")) > 0
    except (*BROKEN, TypeError) as error:
        raise ValueError(f"a mask that is no PNG in base64: {reason_of(error)}") from error
    region = np.zeros(size, bool)
    region[top : bottom + 1, left : right + 1] = inside
    return region
