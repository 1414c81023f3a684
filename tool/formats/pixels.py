"""Turn the pixels of a decoded image, of any mode and depth, into a photograph or a map."""

from __future__ import annotations

import numpy as np
from PIL import Image

_DARK = 64  # of 256: a 16-bit image that stays below has fewer bits in use, and looks black
_COLOURED = 32  # of 255: a larger difference between the channels of a pixel is no JPEG loss


class UnfitError(ValueError):
    """An image that is whole but has values of another kind than it should."""


def as_photograph(image: Image.Image, *, is_deep: bool) -> Image.Image:
    """Return an image of any mode as RGB.

    Args:
        image: The decoded image.
        is_deep: Whether it has, or its file had, more than 8 bits per channel.

    Raises:
        UnfitError: Its values are no 8-bit colours, or use a small part of their 16 bits only.
    """
    is_lit = np.asarray(image).any() if is_deep else False
    image = _eight_bits(image)
    # Put transparent parts on white.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if is_deep:
        brightest = int(np.asarray(image).max())
        if is_lit and brightest < _DARK:
            raise UnfitError(
                f"its 16-bit values stay below {256 * (brightest + 1)} of 65536, so it would be "
                "almost black: scale them to the full range, or save 8 bits"
            )
    return image


def as_map(image: Image.Image) -> Image.Image:
    """Return a map as a grey image, in which 255 is the largest value.

    Args:
        image: The decoded image. If it is a cut-out, its alpha channel is the map.

    Raises:
        UnfitError: Its values are no 8-bit values, or it has colours.
    """
    # A cut-out has an alpha channel that is not opaque everywhere.
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if np.asarray(alpha).min() < 255:
            return alpha
    image = _eight_bits(image)
    # Grey saved as RGB has three nearly equal channels. A picture has not, and is no map.
    if image.mode not in ("1", "L"):
        colours = np.asarray(image.convert("RGB"), np.int16)  # (H, W, 3)
        if (colours.max(2) - colours.min(2)).max() > _COLOURED:
            raise UnfitError("it has colours: a map is a grey image, 255 is the most")
    return image.convert("L")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits per channel; of 16-bit grey the upper 8 bits are kept.

    Raises:
        UnfitError: The values are floating-point numbers, or integers beyond 16 bits.
    """
    # Pillow's own `convert` would clip 16-bit grey at 255.
    if image.mode == "F":
        raise UnfitError("its values are floating-point numbers: save 8 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.size and not 0 <= values.min() <= values.max() < 2**16:
        raise UnfitError(f"its values reach from {values.min()} to {values.max()}: save 8 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
