"""Check COCO's segmentations here, and paint them with `pycocotools`."""

from __future__ import annotations

import re
from reprlib import repr as shown
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

LONGEST_OUTLINE = 2**22  # pixels; pycocotools needs about 100 bytes per pixel of an outline
# A number in compressed run lengths: 5 bits per character, and from "P" on another one follows.
_NUMBER = re.compile(rb"[P-o]{0,6}[0-O]")


def without_short_polygons(segmentation: Any) -> tuple[Any, int]:
    """Return a segmentation without its polygons of fewer than three points, and their number.

    Such polygons have no area. Detectron2 leaves them out too.

    Args:
        segmentation: Any value; one that is no list is returned unchanged.
    """
    if not isinstance(segmentation, list):
        return segmentation, 0
    kept = [one for one in segmentation if not (isinstance(one, list) and len(one) in (0, 2, 4))]
    return kept, len(segmentation) - len(kept)


def check_segmentation(segmentation: Any, height: int, width: int) -> list[Any]:
    """Return polygons or run lengths in the form that `pycocotools.mask.frPyObjects` takes.

    The result is safe to paint. The C code of pycocotools itself checks nothing.

    Args:
        segmentation: Any value.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: It is neither polygons nor run lengths, or does not fit the size of the image.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, reach=4 * max(height, width))
        return segmentation
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation, height, width)
        return [{"size": [height, width], "counts": counts}]
    raise ValueError(f"{shown(segmentation)} is neither polygons nor run lengths")


def region_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the region (H, W) bool of a segmentation.

    Args:
        segmentation: Polygons, or run lengths as a list or compressed.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: As for `check_segmentation`.
    """
    parts = check_segmentation(segmentation, height, width)
    if not parts:
        return np.zeros((height, width), bool)
    runs = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    return coco_mask.decode(runs).astype(bool)


def run_lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """Return the run lengths of a segmentation, as numbers.

    Runs outside and inside the region alternate, outside first, down the columns. They must fill
    the image. Otherwise pycocotools would leave uninitialised memory in the pixels after the last
    run, and would read beyond the end of compressed run lengths that are cut off.

    Args:
        segmentation: {"size": [height, width], "counts": a list, or compressed text}.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Raises:
        ValueError: They are of another size, do not fill the image, or are no run lengths.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(
            f"run lengths of the size {shown(size)} (height, width) for an image of "
            f"{[height, width]}"
        )
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if isinstance(counts, bytes):
        counts = _unpacked(counts)
    if not isinstance(counts, list):
        raise ValueError(f"{shown(counts)} in place of run lengths")
    for count in counts:
        if type(count) is not int or count < 0:
            raise ValueError(f"{shown(count)} is no run length")
    if sum(counts) != height * width:
        raise ValueError(
            f"run lengths that do not fill the image: {shown(sum(counts))} of {height * width}"
        )
    return counts


def _unpacked(text: bytes) -> list[int]:
    """Return compressed run lengths as numbers.

    A character holds 5 bits of a number, the lowest bits first. The highest of the 5 bits of the
    last character is the sign. From the fourth number on, each is the difference to the run length
    two places before.

    Raises:
        ValueError: The text is damaged or cut off.
    """
    numbers = _NUMBER.findall(text)
    if b"".join(numbers) != text:
        raise ValueError("compressed run lengths that are damaged or cut off")
    counts: list[int] = []
    for number in numbers:
        value = sum((code - 48 & 31) << 5 * place for place, code in enumerate(number))
        if number[-1] - 48 & 16:  # a negative number, in two's complement
            value -= 1 << 5 * len(number)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _check_polygon(polygon: Any, *, reach: int) -> None:
    """Raise `ValueError` unless a polygon is one that pycocotools can paint.

    Args:
        polygon: [x1, y1, x2, y2, ...], at least three points.
        reach: Limit of the absolute value of a coordinate, in pixels.
    """
    if isinstance(polygon, list) and len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} coordinates: each point has two")
    if not isinstance(polygon, list) or len(polygon) < 6:
        raise ValueError("a polygon of fewer than three points")
    for x in polygon:
        if type(x) not in (int, float):
            raise ValueError(f"{shown(x)} is no coordinate of a polygon")
        if not abs(x) < reach:  # written so that NaN fails it
            raise ValueError("a polygon far outside the image")
    # The memory for painting grows with the outline. Few polygons can exceed the limit at all.
    if len(polygon) * reach > LONGEST_OUTLINE:
        points = np.array(polygon, float).reshape(-1, 2)  # (points, 2)
        steps = np.diff(points, axis=0, append=points[:1])
        if np.abs(steps).max(axis=1).sum() > LONGEST_OUTLINE:
            raise ValueError("a polygon with an outline too long")
