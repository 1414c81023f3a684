"""Images of a dataset, and what all images share; the error for a broken file names it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from tool.limits import raise_if_limit

Item = TypeVar("Item")

# What Pillow raises for a broken file.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# The longer side to which photographs of one's own are reduced before a network sees them. Networks
# are trained on 448 to 768 pixels. Memory grows with the area: 12 megapixels would take 26 GB.
MAX_SIDE = 1024
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")  # told by the bytes, whatever the suffix
# EXIF's orientation -> what turns the stored pixels upright; 1 is upright.
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
_SIDEWAYS = 5  # from this orientation on width and height change places
_DARK = 64  # of 256: a 16-bit image that stays below is of fewer bits, and black to the eye
_COLOURED = 32  # of 255, between the channels of a pixel: more than what is lost in a JPEG
# Of each channel of an RGB image in [0, 1]: how networks trained on ImageNet take their input.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def decode(
    path: Path, mode: str, *, long_side: int | None = None, upright: bool = False
) -> Image.Image:
    """Return a fully decoded image.

    Args:
        path: The image file.
        mode: "RGB" for a photograph, whose transparent parts become white; "L" for a map, which is
            the image's alpha channel if it has one that says something.
        long_side: A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side stays no
            shorter than this. None decodes the full size.
        upright: Turn the image as its EXIF data say.

    Raises:
        ValueError: The file is missing, broken, truncated or of another format, its values are no
            8-bit colours, or a map has colours; names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            turn = _TURNS.get(_orientation(image)) if upright else None
            if long_side is not None:
                longest = max(image.size)
                image.draft(None, [max(1, side * long_side // longest) for side in image.size])
            is_deep = "16" in str(image.tile[:1])
            image.load()
            decoded = _as_map(image) if mode == "L" else _as_photograph(image, is_deep=is_deep)
            return decoded if turn is None else decoded.transpose(turn)
    except _UnfitError as error:
        raise ValueError(f"{path}: {error}") from error
    except BROKEN as error:
        raise _broken(path, error) from error


class _UnfitError(ValueError):
    """A whole image whose values are not what they should be."""


def _orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF data of an opened image; 1, upright, if it has none."""
    if image.format == "TIFF":  # Pillow turns it
        return 1
    try:
        # Not PNG's own method, which decodes the image first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except BROKEN:  # of the EXIF data; the image is readable
        return 1


def _as_photograph(image: Image.Image, *, is_deep: bool) -> Image.Image:
    """Return an image of any mode as RGB; `is_deep`: its file has 16 bits per channel."""
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if is_deep:
        brightest = max(high for _, high in image.getextrema())
        if 0 < brightest < _DARK:
            raise _UnfitError(
                f"its 16-bit values stay below {256 * (brightest + 1)} of 65536, so it would be "
                "almost black: scale them to the full range, or save 8 bits"
            )
    return image


def _as_map(image: Image.Image) -> Image.Image:
    """Return a map as grey, 255 is the most; of a cut-out the alpha channel is the map."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:
            return alpha
    image = _eight_bits(image)
    if image.mode not in ("1", "L"):
        colours = np.asarray(image.convert("RGB"), np.int16)
        if (colours.max(2) - colours.min(2)).max() > _COLOURED:
            raise _UnfitError("it has colours: a map is a grey image, 255 is the most")
    return image.convert("L")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per channel; `convert` would clip 16-bit grey at 255."""
    if image.mode == "F":
        raise _UnfitError("its values are floating-point numbers: save 8 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise _UnfitError(f"its values reach from {values.min()} to {values.max()}: save 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


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


def size_of(path: Path, *, upright: bool = False) -> tuple[int, int]:
    """Return (W, H) from the header of an image; `upright` as for `decode`.

    Raises:
        ValueError: The file is missing or broken; names it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            sideways = upright and _orientation(image) in range(_SIDEWAYS, 9)
            return (height, width) if sideways else (width, height)
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
    """Return the error that names a broken file; one of the system's limits is raised again."""
    raise_if_limit(error)
    if isinstance(error, FileNotFoundError):
        return ValueError(f"image {path} does not exist")
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is broken or no image: {reason}")
