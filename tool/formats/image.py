"""Images of a dataset, and what all images share; the error for a broken file names it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

Item = TypeVar("Item")

# What Pillow raises for a broken file.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# Of each channel of an RGB image in [0, 1]: how networks trained on ImageNet take their input.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decode(path: Path, mode: str, *, long_side: int | None = None) -> Image.Image:
    """Return a fully decoded image.

    Args:
        path: The image file.
        mode: "RGB" or "L".
        long_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side stays no
            shorter than this. None decodes the full size.

    Raises:
        ValueError: The file is missing, broken or truncated; names it.
    """
    try:
        with Image.open(path) as image:
            if long_side is not None:
                longest = max(image.size)
                image.draft(None, [max(1, side * long_side // longest) for side in image.size])
            image.load()
            if image.mode.startswith("I"):  # `convert` would clip 16-bit grey at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert(mode)
    except BROKEN as error:
        raise _broken(path, error) from error


def reduced_size(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """Return a size whose longer side is at most `longest`, in the same proportions, rounded.

    Args:
        size: (H, W), or (W, H).
        longest: Pixels; None leaves the size as it is, and so does a size that is small enough.
    """
    if longest is None or max(size) <= longest:
        return size
    first, second = (max(1, round(side * longest / max(size))) for side in size)
    return first, second


def reduced(image: Image.Image, longest: int | None) -> Image.Image:
    """Return an image of `reduced_size`, bicubic."""
    size = reduced_size(image.size, longest)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def batches_of_one_size(
    items: Iterable[Item], size: Callable[[Item], Hashable], limit: int
) -> list[list[Item]]:
    """Split items into lists of at most `limit`, each of one size, in the order of the items."""
    same: dict[Hashable, list[Item]] = {}
    for item in items:
        same.setdefault(size(item), []).append(item)
    return [
        group[first : first + limit]
        for group in same.values()
        for first in range(0, len(group), limit)
    ]


def size_of(path: Path) -> tuple[int, int]:
    """Return (W, H) from the header of an image.

    Raises:
        ValueError: The file is missing or broken; names it.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except BROKEN as error:
        raise _broken(path, error) from error


def check_size(what: object, size: tuple[int, ...], other: object, wanted: tuple[int, ...]) -> None:
    """Check that two things have one size.

    Args:
        what: The first thing, such as its path, as the message names it.
        size: Its (H, W).
        other: The second thing.
        wanted: Its (H, W).

    Raises:
        ValueError: The sizes differ; names both things and both sizes, as WxH.
    """
    if tuple(size) != tuple(wanted):
        raise ValueError(f"{what} is {size[1]}x{size[0]}, {other} is {wanted[1]}x{wanted[0]}")


def _broken(path: Path, error: Exception) -> ValueError:
    """Return the error that names a broken file."""
    if isinstance(error, FileNotFoundError):
        return ValueError(f"image {path} does not exist")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is broken or no image: {reason}")
