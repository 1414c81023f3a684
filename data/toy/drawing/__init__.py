"""Drawing of the embedded dataset: paint, objects, grounds, contexts, scenes and saliency.

This module has the types that all of them share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Rng = np.random.Generator
Range = tuple[float, float]  # least and most
Shape = tuple[int, int]  # height and width in pixels
Paint = np.ndarray  # a colour (3,) or a surface (H, W, 3), float32 RGB in 0..255


class Layer(NamedTuple):
    """A thing that can be painted over a picture.

    Attributes:
        paint: (H, W, 3) float32, RGB in 0..255.
        alpha: (H, W) in [0, 1], its opacity.
    """

    paint: np.ndarray
    alpha: np.ndarray


class Box(NamedTuple):
    """An axis-parallel box in a picture, in pixels; y points down."""

    left: float
    top: float
    right: float
    bottom: float
