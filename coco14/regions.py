"""COCO's segmentations: polygons and run lengths, checked and painted."""

from __future__ import annotations

from itertools import pairwise
from reprlib import repr as shown
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

LONGEST_OUTLINE = 2**22  # pixels; pycocotools needs some 100 bytes for each


def check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """`ValueError` unless it is COCO's polygons or run lengths of an image of this size."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, reach=4 * max(height, width))
    elif isinstance(segmentation, dict):
        run_lengths(segmentation, height, width)
    else:
        raise ValueError(f"{shown(segmentation)} is neither polygons nor run lengths")


def region_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of polygons, or of run lengths as a list or compressed.

    Raises:
        ValueError: see `check_segmentation`.
    """
    if isinstance(segmentation, dict):
        counts = run_lengths(segmentation, height, width)
        inside = np.arange(len(counts)) % 2 == 1
        return np.repeat(inside, counts).reshape(width, height).T
    check_segmentation(segmentation, height, width)
    if not segmentation:
        return np.zeros((height, width), bool)
    runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return coco_mask.decode(runs).astype(bool)


def run_lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """The run lengths, down the columns, of outside and inside in turn; they fill the image.

    Differs from pycocotools, which leaves the pixels after the last run as they are in memory.

    Raises:
        ValueError: they are of another size, do not fill the image, or are no run lengths.
    """
    if segmentation.get("size") != [height, width]:
        raise ValueError(
            f"run lengths of the size {shown(segmentation.get('size'))} (height, width) for an "
            f"image of {[height, width]}"
        )
    counts = segmentation.get("counts")
    if isinstance(counts, str | bytes):
        counts = _unpacked(
            counts if isinstance(counts, bytes) else counts.encode("utf-8", "surrogatepass")
        )
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
    """COCO's compressed run lengths: signed numbers of 5 bits a character, differences from the
    fourth on.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError("compressed run lengths that are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more to come
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are cut off")
    return counts


def _check_polygon(polygon: Any, *, reach: int) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon of fewer than three points")
    for x in polygon:
        if type(x) not in (int, float):
            raise ValueError(f"{shown(x)} is no coordinate of a polygon")
        if not abs(x) < reach:  # nor when it is NaN
            raise ValueError("a polygon far outside the image")
    if len(polygon) * reach > LONGEST_OUTLINE and _outline(polygon) > LONGEST_OUTLINE:
        raise ValueError("a polygon with an outline too long")


def _outline(polygon: list[float]) -> float:
    points = [*zip(polygon[::2], polygon[1::2], strict=True), (polygon[0], polygon[1])]
    return sum(max(abs(c - a), abs(d - b)) for (a, b), (c, d) in pairwise(points))
