"""Images of a dataset; the error for a broken file names it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


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


def _broken(path: Path, error: Exception) -> ValueError:
    """Return the error that names a broken file."""
    if isinstance(error, FileNotFoundError):
        return ValueError(f"image {path} does not exist")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is broken or no image: {reason}")
