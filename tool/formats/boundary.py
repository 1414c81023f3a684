"""Boundary labels: PNGs of what a pixel is, inside or boundary. One writer, one reader.

The label files of the released BES and SBE code are read, too; their values are others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tool.formats.mask import UNKNOWN, load_mask, save_mask

BACKGROUND = 0  # inside the background
OBJECT = 1  # boundary between an object and the background
CLASSES = 2  # boundary between objects of two classes
SALIENT = 3  # contour of the saliency map
FOREGROUND = 4  # inside an object
KNOWN = (BACKGROUND, OBJECT, CLASSES, SALIENT, FOREGROUND)
RELEASED = {50: FOREGROUND, 100: CLASSES, 150: OBJECT, 200: UNKNOWN, 250: SALIENT}

_NONE = 254  # in the table: no value of either kind
_TABLE = np.full(256, _NONE, np.uint8)
for _value, _meaning in (*zip(KNOWN, KNOWN, strict=True), (UNKNOWN, UNKNOWN), *RELEASED.items()):
    _TABLE[_value] = _meaning


def save_boundary(path: Path | str, boundary: np.ndarray) -> None:
    """Write a boundary label (H, W) uint8 as a palette PNG, whole or not at all."""
    save_mask(path, boundary)


def load_boundary(path: Path | str) -> np.ndarray:
    """Read a boundary label (H, W) uint8, with the values of this module, whoever wrote it.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no mask image, or has another value; names the file.
    """
    stored = load_mask(path)
    boundary = _TABLE[stored]
    wrong = stored[boundary == _NONE]
    if wrong.size:
        raise ValueError(
            f"{path} has the value {wrong[0]}: a boundary label has {', '.join(map(str, KNOWN))} "
            f"and {UNKNOWN}, or the released code's {', '.join(map(str, (0, *RELEASED)))}"
        )
    return boundary
