"""Boundary labels: PNGs that say whether a pixel is inside a region or on a boundary, and of what.

There is one writer and one reader. The reader also accepts the label files of the released BES and
SBE code, which use other values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tool.formats.mask import UNKNOWN, load_mask, save_mask

BACKGROUND = 0  # inside the background
OBJECT = 1  # boundary between an object and the background
CLASSES = 2  # boundary between objects of two classes
SALIENT = 3  # contour of the saliency map
FOREGROUND = 4  # inside an object
KNOWN = (BACKGROUND, OBJECT, CLASSES, SALIENT, FOREGROUND)
RULES = "rules"  # in the note of a folder of boundary labels, and in no other: how they were made
RELEASED = {50: FOREGROUND, 100: CLASSES, 150: OBJECT, 200: UNKNOWN, 250: SALIENT}

# The table from a value in a file to the value of this module. Both kinds of files have 0 for the
# background and share no other value, so that one table reads both.
_NONE = 254  # a value of neither kind
_TABLE = np.full(256, _NONE, np.uint8)
for _value, _meaning in (*zip(KNOWN, KNOWN, strict=True), (UNKNOWN, UNKNOWN), *RELEASED.items()):
    _TABLE[_value] = _meaning


def save_boundary(path: Path | str, boundary: np.ndarray) -> None:
    """Write a boundary label (H, W) uint8 as a palette PNG, whole or not at all.

    Raises:
        ValueError: The label has another shape or type.
    """
    save_mask(path, boundary)


def load_boundary(path: Path | str) -> np.ndarray:
    """Read a boundary label of this project or of the released BES and SBE code.

    Args:
        path: The PNG.

    Returns:
        (H, W) uint8, each value one of `KNOWN` or 255, unknown.

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


def inside_warning(paths: Iterable[Path], *, first: int = 200) -> str | None:
    """Return a warning if no label of the first ones has a pixel inside an object, else None.

    Masks or seeds of few classes can be read as boundary labels, and mostly have none.

    Args:
        paths: The labels. Files that cannot be read are skipped here; their reader reports them.
        first: The number of labels that are looked at. One with such a pixel ends the search.
    """
    seen = None
    for path in itertools.islice(paths, first):
        try:
            if (load_boundary(path) == FOREGROUND).any():
                return None
        except (ValueError, FileNotFoundError):
            continue
        seen = path
    if seen is None:
        return None
    return (
        f"warning: the boundary labels in {seen.parent} have no pixel inside an object (value "
        f"{FOREGROUND}): are they masks or seeds, or made from empty ones?"
    )
