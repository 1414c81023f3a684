"""What is to be segmented: a photograph, and what is known about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tool.formats.image import decode, photograph_of

Source = str | Path | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True)
class Request:
    """A photograph to segment, and what is known about it.

    Attributes:
        image: A path, a PIL image, or an array (H, W, 3) uint8 in RGB.
        classes: Names of the classes that it may have; None or none to let the method choose.
        top: Number of classes that the method chooses, the likeliest; None for those of which it is
            sure.
        files: Batch key -> path of the photograph's file of a previous stage: `seed`, `cam`.
        explained: Whether to return the gate and the CAM before it too, which takes longer.
    """

    image: Source
    classes: Sequence[str] | None = None
    top: int | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    explained: bool = False


def as_photograph(source: Source) -> Image.Image:
    """Return a photograph as an RGB image, upright.

    Args:
        source: A path, a PIL image, or an array (H, W, 3) uint8 in RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read, or the array has another shape or type.
        TypeError: The source is something else.
    """
    if isinstance(source, (str, Path)):
        if not Path(source).is_file():
            raise FileNotFoundError(f"photograph {source} does not exist")
        return decode(Path(source), "RGB", upright=True)
    if isinstance(source, Image.Image):
        return photograph_of(source)
    if not isinstance(source, np.ndarray):
        raise TypeError(f"a photograph is a path, a PIL image or an array, not {type(source)}")
    if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
        raise ValueError(f"a photograph is (H, W, 3) uint8, not {source.shape} {source.dtype}")
    return Image.fromarray(source)
