"""Drawing of the embedded dataset: paint, objects, grounds, contexts, scenes and saliency.

Here are the types that all of them share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Rng = np.random.Generator
Range = tuple[float, float]  # least and most
Shape = tuple[int, int]  # height and width in pixels
Paint = np.ndarray  # a colour (3,) or a surface (H, W, 3), float32 RGB in 0..255


class Layer(NamedTuple):
    """Something to lay over a picture.

    Attributes:
        paint: (H, W, 3) in 0..255.
        alpha: (H, W) in [0, 1].
    """

    paint: np.ndarray
    alpha: np.ndarray


class Box(NamedTuple):
    """An upright box in a picture, in pixels."""

    left: float
    top: float
    right: float
    bottom: float
