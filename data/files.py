"""Image ids and image files: an id stays in its folder, a broken file is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def check_id(image_id: str, where: str = "image id") -> str:
    """`image_id` itself; `ValueError` when it is empty or, as a path, leaves its folder."""
    parts = image_id.split("/")
    if "\0" in image_id or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{where}: {image_id!r} is no image id: it must stay in the dataset root")
    return image_id


def find_file(
    folders: list[Path], image_id: str, suffixes: tuple[str, ...], *, what: str, flag: str
) -> Path:
    """The first folder/id + suffix that is a file.

    Args:
        folders: in order of preference, at least one.
        image_id: may hold dots and inner slashes.
        suffixes: in order of preference.
        what: the kind of file, for the message.
        flag: the flag that says where it is, for the message.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the id leaves its folder.
    """
    check_id(image_id)
    for folder in folders:
        for suffix in suffixes:
            path = folder / f"{image_id}{suffix}"
            if path.is_file():
                return path
    first = folders[0] / f"{image_id}{suffixes[0]}"
    raise FileNotFoundError(f"{what} of {image_id!r} does not exist: {first} ({flag})")


def decode(path: Path, mode: str, *, long_side: int | None = None) -> Image.Image:
    """A fully decoded image.

    Args:
        path: the file.
        mode: "RGB" or "L".
        long_side: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its longer side stays no
            shorter than this. None: the full size.

    Raises:
        ValueError: a broken or truncated file, named.
    """
    try:
        with Image.open(path) as image:
            if long_side is not None:
                longest = max(image.size)
                image.draft(None, [max(1, side * long_side // longest) for side in image.size])
            image.load()
            if image.mode.startswith("I"):  # 16-bit grey, which `convert` would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return image.convert(mode)
    except BROKEN as error:
        raise _broken(path, error) from error


def size_of(path: Path) -> tuple[int, int]:
    """(W, H) out of the header; `ValueError` names a broken file."""
    try:
        with Image.open(path) as image:
            return image.size
    except BROKEN as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is broken or no image: {reason}")
