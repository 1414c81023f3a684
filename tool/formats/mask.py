"""Mask files: palette PNGs of class indices, 0 background, 255 unknown. One writer, one reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile

from tool.files import atomic_path
from tool.formats.image import BROKEN, opened, reason_of
from tool.limits import raise_if_limit

UNKNOWN = 255


def palette() -> np.ndarray:
    """Return the colour map of PASCAL VOC, (256, 3) uint8.

    The bits of an index go to R, G and B in turn. The lowest bits of the index become the highest
    bits of the colours, so that neighbouring indices have different colours.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            # Bit 3 b + c of the index becomes bit 7 - b of channel c.
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colours


def named_values(class_names: Sequence[str], *, background: str, unknown: str) -> dict[str, int]:
    """Return the mask value of each name in the layout of another program, ascending.

    Args:
        class_names: The K foreground names.
        background: The layout's name of the background.
        unknown: The layout's name of pixels with the value `UNKNOWN`.

    Raises:
        ValueError: A class has one of the layout's own names.
    """
    for name in class_names:
        if name in (background, unknown):
            what = "the background" if name == background else "unknown pixels"
            raise ValueError(
                f"the class {name!r} has this layout's name of {what}: choose another name for it, "
                "or another layout"
            )
    return {name: value for value, name in enumerate((background, *class_names))} | {
        unknown: UNKNOWN
    }


def save_mask(path: Path | str, mask: np.ndarray) -> None:
    """Write `mask` (H, W) uint8 as a palette PNG, whole or not at all.

    Raises:
        ValueError: The mask has another shape or type.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write_mask(file, mask)


def write_mask(file: BinaryIO, mask: np.ndarray) -> None:
    """Write `mask` (H, W) uint8 as a palette PNG into an open file.

    Raises:
        ValueError: The mask has another shape or type.
    """
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"a mask is (H, W) uint8, not {mask.shape} {mask.dtype}")
    image = Image.fromarray(np.ascontiguousarray(mask))
    image.putpalette(palette().tobytes())
    image.save(file, format="PNG")


def resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (h, w) uint8 at the size (H, W), by the nearest pixel; itself if it fits."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def load_mask(path: Path | str) -> np.ndarray:
    """Read a mask (H, W) uint8 of class indices; 255 is unknown.

    The values of the pixels count, not the colours of the palette. They are not compared with a
    number of classes.

    Args:
        path: A PNG, BMP or TIFF, palette or grey, of at most 8 bits per pixel.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file cannot be read, is no such image, is truncated, has more pixels than
            `allow_pixels` allows, or is a JPEG, MPO or WebP, which change class indices; names it.
    """
    try:
        with opened(path) as image:
            if image.format in ("JPEG", "MPO", "WEBP"):
                raise ValueError(f"{image.format} changes class indices, a mask is a PNG")
            if image.mode not in ("P", "L"):
                raise ValueError(
                    f"its pixels are of mode {image.mode}, those of a mask are class indices in a "
                    "palette (P) or grey (L) PNG of 8 bits"
                )
            factor = _factor(image)
            return np.array(image) // factor
    except FileNotFoundError:
        raise
    except BROKEN as error:
        raise_if_limit(error)
        raise ValueError(f"{path}: not a whole mask image: {reason_of(error, path)}") from error


def _factor(image: ImageFile.ImageFile) -> int:
    """Return by what Pillow multiplies the stored values of an opened mask when it decodes them.

    Grey values of 2 or 4 bits are spread over 0..255, so that 15 of 15 becomes 255.

    Raises:
        ValueError: The values are stored as differences from white.
    """
    if image.mode == "P":
        return 1
    # "L", "L;2" or "L;4", with an I if 0 is white; alone, or first of the decoder's arguments.
    arguments = image.tile[0][3] or ""
    layout = (arguments if isinstance(arguments, str) else arguments[0]).partition(";")[2]
    if "I" in layout:
        raise ValueError("0 is white in it, so its values are no class indices: save a PNG")
    return {"2": 85, "4": 17}.get(layout[:1], 1)


def misplaced_colour(path: Path | str) -> tuple[int, int] | None:
    """Find a value of a mask that has the colour of another class in the benchmarks' palette.

    Software that reduces the number of colours may sort the palette anew. The mask then looks the
    same, but its values are no longer class indices.

    Args:
        path: The mask.

    Returns:
        The first such value, and the class index of its colour; None if there is no such value.
        Grey entries do not count, because grey palettes are common.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: As `load_mask`.
    """
    mask = load_mask(path)
    with opened(path) as image:
        entries = image.getpalette("RGB") if image.mode == "P" else None
    if entries is None:
        return None
    colours, own = np.array(entries, np.uint8).reshape(-1, 3), palette()
    # Only values that occur in the mask matter.
    for value in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)):
        colour = colours[value] if value < len(colours) else own[value]
        same = np.flatnonzero((own == colour).all(1))  # the class indices of this colour
        if np.ptp(colour) and same.size and same[0] != value:
            return int(value), int(same[0])
    return None


def is_whole(
    path: Path, size: tuple[int, ...], *, read: Callable[[Path], np.ndarray] = load_mask
) -> bool:
    """Return whether a mask exists, is readable and has a size, so that a restart may skip it.

    Args:
        path: The mask.
        size: The (H, W) that it must have.
        read: A function that reads the file and returns (H, W), or raises `ValueError` or
            `FileNotFoundError`.
    """
    try:
        return read(path).shape == size
    except (FileNotFoundError, ValueError):
        return False
