"""Small pictures as data URIs, for a page that loads nothing."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tool.formats.image import reduced_size
from tool.formats.mask import resized

LONGEST = 256  # pixels of a photograph and of its masks
CELLS = 96  # of a map, which has no finer detail


def photograph(image: Image.Image) -> str:
    """Return an RGB image, reduced."""
    small = image.resize(reduced_size(image.size, LONGEST), Image.Resampling.LANCZOS)
    return _uri(small, "webp", quality=70, method=2)


def grey_map(values: np.ndarray) -> str:
    """Return a map (H, W) in [0, 1], reduced; values beyond are clipped."""
    grey = Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))
    small = grey.resize(reduced_size(grey.size, CELLS), Image.Resampling.BOX)
    return _uri(small.convert("RGB"), "webp", quality=80, method=2)


def class_indices(mask: np.ndarray) -> str:
    """Return a mask (H, W) uint8, reduced; the grey values of the picture are its values."""
    height, width = reduced_size(mask.shape, LONGEST)  # type: ignore[arg-type]
    return _uri(Image.fromarray(resized(mask, (height, width))), "png")


def _uri(image: Image.Image, kind: str, **settings: int) -> str:
    """Return an image file as a data URI."""
    content = io.BytesIO()
    image.save(content, kind.upper(), **settings)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
