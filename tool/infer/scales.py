"""Images at a scale."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, rounded, at least one pixel."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def at_scale(image: Image.Image, scale: float) -> Tensor:
    """A PIL RGB image (W, H) at a scale, bicubic.

    Returns:
        (3, h, w) uint8, h = round(H * scale), w = round(W * scale), at least 1.
    """
    height, width = scaled_size(image.height, image.width, scale)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return functional.pil_to_tensor(image)
