"""Read the images of a dataset and check their sizes; the error for a broken file names it."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tool.cli import BROKEN_IMAGE
from tool.formats.pixels import UnfitError, as_map, as_photograph
from tool.limits import raise_if_limit

Item = TypeVar("Item")

# The errors that Pillow raises for a broken file, of any of its decoders.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
BROKEN += (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)
# The most pixels of an image. A small file can announce any number, each of which takes memory.
MAX_PIXELS = 100_000_000
_LIMIT = "FBR_MAX_PIXELS"  # an environment variable, because worker processes inherit it
Image.MAX_IMAGE_PIXELS = None  # `opened` checks, instead of a warning at another number
# Each scan of a JPEG goes over all of its pixels, and takes a few bytes. Progressive ones have 10.
MAX_SCANS = 20  # of an image with the most pixels; a smaller one may have more
_SCAN = b"\xff\xda"  # how one begins
# The longer side to which photographs of one's own are reduced before a network sees them. Networks
# are trained on 448 to 768 pixels. Memory grows with the area: 12 megapixels would take 26 GB.
MAX_SIDE = 1024
# Recognised by the bytes, not by the suffix. Pillow's other decoders run foreign programs, such as
# Ghostscript, or are old and seldom used.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# EXIF's orientation -> the transposition that turns the stored pixels upright; 1 is upright.
_TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,
    )
)
_SIDEWAYS = 5  # from this orientation on, width and height are exchanged
# Per channel of an RGB image in [0, 1]: the normalisation of networks trained on ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def allow_pixels(most: int) -> None:
    """Set the most pixels of an image, for this process and those that it starts from now on."""
    os.environ[_LIMIT] = str(most)


def most_pixels() -> int:
    """Return the most pixels of an image; see `allow_pixels`."""
    return int(os.environ.get(_LIMIT, MAX_PIXELS))


@contextlib.contextmanager
def opened(
    file: Path | str | BinaryIO, *, formats: Sequence[str] = FORMATS, header: bool = False
) -> Iterator[ImageFile.ImageFile]:
    """Open an image of one of our formats, without decoding it.

    Args:
        file: Its path, or its bytes as an open file.
        formats: The formats, some of `FORMATS`.
        header: Whether it will not be decoded, so that no more than its header is read.

    Raises:
        ValueError: It has more pixels than `allow_pixels` allows, or goes over them too often.
        Exception: One of `BROKEN`: it is of another format, or broken.
    """
    with Image.open(file, formats=formats) as image:
        most = most_pixels()
        if image.width * image.height > most:
            size = f"{image.width}x{image.height}"
            raise UnfitError(f"it has {size} pixels, more than {most} (--max-pixels)")
        if image.format == "JPEG" and not header:
            scans = _scans(image)
            if scans * image.width * image.height > MAX_SCANS * most:
                raise UnfitError(f"it has {scans} scans, which would take minutes")
        yield image


def _scans(image: Image.Image) -> int:
    """Return in how many scans an opened JPEG holds its pixels; a thumbnail in it adds its own."""
    place = image.fp.tell()
    image.fp.seek(0)
    count = image.fp.read().count(_SCAN)
    image.fp.seek(place)
    return count


def decode(
    path: Path, mode: str, *, long_side: int | None = None, upright: bool = False
) -> Image.Image:
    """Return a fully decoded image.

    Args:
        path: The image file.
        mode: "RGB" for a photograph, whose transparent parts become white. "L" for a map, which is
            the image's alpha channel if it has one that is not 255 everywhere.
        long_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side stays no
            shorter than this. None decodes the full size.
        upright: Turn the image by the orientation in its EXIF data.

    Returns:
        The image in the mode `mode`.

    Raises:
        ValueError: The file is missing, broken, truncated or of another format, its values are no
            8-bit colours, or a map has colours; names it.
    """
    try:
        with opened(path) as image:
            turn = _TURNS.get(_orientation(image)) if upright else None
            # A JPEG decoder can reduce for free. Other decoders ignore the draft.
            if long_side is not None:
                longest = max(image.size)
                image.draft(None, [max(1, side * long_side // longest) for side in image.size])
            is_deep = _is_deep(image)
            image.load()
            decoded = as_map(image) if mode == "L" else as_photograph(image, is_deep=is_deep)
            return decoded if turn is None else decoded.transpose(turn)
    except BROKEN as error:
        raise _broken(path, error) from error


def photograph_of(image: Image.Image) -> Image.Image:
    """Return a PIL image as `decode` returns the photograph in its file: RGB, upright.

    Raises:
        ValueError: The image is truncated, or its values are no 8-bit colours.
    """
    try:
        turn, is_deep = _TURNS.get(_orientation(image)), _is_deep(image)
        image.load()
        decoded = as_photograph(image, is_deep=is_deep)
        return decoded if turn is None else decoded.transpose(turn)
    except BROKEN as error:
        raise ValueError(f"the photograph cannot be used: {error}") from error


def _orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF data of an opened image; 1, upright, if it has none."""
    if image.format == "TIFF":  # Pillow itself turns it upright
        return 1
    try:
        # The base class's method, because PNG's own method decodes the image first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except BROKEN:  # only the EXIF data are broken; the image itself is readable
        return 1


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image, of a file not decoded yet or in memory, has more than 8 bits."""
    # Pillow reduces 16-bit RGB to 8 bits in `load`. Before that the tile names the depth.
    return image.mode.startswith("I") or "16" in str(getattr(image, "tile", ())[:1])


def reduced_size(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    """Return a size whose longer side is at most `longest`, in the same proportions, rounded.

    Args:
        size: (H, W), or (W, H).
        longest: Pixels; None for no limit. A size within the limit is returned unchanged.

    Returns:
        The size in the same order, each side at least 1.
    """
    if longest is None or max(size) <= longest:
        return size
    first, second = (max(1, round(side * longest / max(size))) for side in size)
    return first, second


def reduced(image: Image.Image, longest: int | None) -> Image.Image:
    """Return an image reduced to `reduced_size` by bicubic interpolation."""
    size = reduced_size(image.size, longest)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def batches_of_one_size(
    items: Iterable[Item], size: Callable[[Item], Hashable], limit: int
) -> list[list[Item]]:
    """Group items by size into lists of at most `limit`.

    Args:
        items: The items.
        size: A function that returns the size of an item.
        limit: The largest number of items per list.

    Returns:
        The lists, those of the size that came first before the others. Within one size the items
        keep their order.
    """
    same: dict[Hashable, list[Item]] = {}
    for item in items:
        same.setdefault(size(item), []).append(item)
    return [
        group[first : first + limit]
        for group in same.values()
        for first in range(0, len(group), limit)
    ]


def size_of(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return (W, H) from the header of an image, without decoding it.

    Args:
        path: The image file.
        upright: As for `decode`; the size is that of the turned image.

    Raises:
        ValueError: The file is missing or broken; names it.
    """
    try:
        with opened(path, header=True) as image:
            width, height = image.size
            sideways = upright and _orientation(image) in range(_SIDEWAYS, 9)
            return (height, width) if sideways else (width, height)
    except BROKEN as error:
        raise _broken(path, error) from error


def check_size(what: object, size: tuple[int, ...], other: object, wanted: tuple[int, ...]) -> None:
    """Check that two maps or images have the same size.

    Args:
        what: The first one as the message names it, for example its path.
        size: Its (H, W).
        other: The second one as the message names it.
        wanted: Its (H, W).

    Raises:
        ValueError: The sizes differ; names both, with their sizes as WxH.
    """
    if tuple(size) != tuple(wanted):
        raise ValueError(f"{what} is {size[1]}x{size[0]}, {other} is {wanted[1]}x{wanted[0]}")


def _broken(path: Path, error: Exception) -> ValueError:
    """Return the error that names a broken file; one of the system's limits is raised again."""
    raise_if_limit(error)
    if isinstance(error, FileNotFoundError):
        return ValueError(f"image {path} does not exist")
    if isinstance(error, UnfitError):
        return ValueError(f"{path}: {error}")
    if isinstance(error, OSError) and error.errno is not None:
        return ValueError(f"{path} cannot be read: {error.strerror}")
    return ValueError(f"{path} {BROKEN_IMAGE}: {reason_of(error, path)}")


def reason_of(error: Exception, path: Path | str | None = None) -> str:
    """Return why Pillow does not read a file, in words that say more than its own.

    Args:
        error: What it raised.
        path: The file; None for a PNG in memory.
    """
    if not isinstance(error, UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__
    if path is None:
        return "it is no PNG"
    if os.path.getsize(path) == 0:
        return "it is empty"
    return "JPEG, PNG, WebP, BMP and TIFF are read"
