"""Sizes at which an image passes through a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from tool.formats.cam import strided_size
from tool.formats.image import reduced, reduced_size


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return (height, width) times `scale`, rounded, each at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def at_scale(image: Image.Image, scale: float) -> Tensor:
    """Return a PIL RGB image of size (W, H) at a scale, resized by bicubic interpolation.

    Returns:
        (3, h, w) uint8, with (h, w) = `scaled_size(H, W, scale)`.
    """
    height, width = scaled_size(image.height, image.width, scale)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return functional.pil_to_tensor(image)


def at_side(image: Image.Image, side: int) -> Tensor:
    """Return a PIL RGB image resized bicubically to a square, (3, side, side) uint8."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return functional.pil_to_tensor(image)


@dataclasses.dataclass(frozen=True)
class Views:
    """The sizes of the copies of an image that pass through the network.

    Attributes:
        scales: Factors on the size of the image.
        sides: Sides of squares in pixels, in place of `scales`; the aspect ratio is lost.
        mirror: Whether the mirror of each copy passes through the network too.
        max_side: A larger image is reduced first, so that its longer side has this many pixels. The
            maps are those of the reduced image. None for no limit.

    Raises:
        ValueError: There is no scale or side, or a scale, side or `max_side` is not positive.
    """

    scales: tuple[float, ...] = (1.0,)
    sides: tuple[int, ...] | None = None
    mirror: bool = True
    max_side: int | None = None

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 1:
            raise ValueError(f"a largest side of {self.max_side} pixels is not positive")
        if self.sides is not None:
            if not self.sides or not all(side >= 1 for side in self.sides):
                raise ValueError(f"sides {list(self.sides)} are not positive sizes")
        elif not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"scales {list(self.scales)} are not positive numbers")

    def of(self, image: Image.Image) -> list[Tensor]:
        """Return the copies of a PIL RGB image, one (3, h, w) uint8 per scale or side."""
        image = reduced(image, self.max_side)
        if self.sides is not None:
            return [at_side(image, side) for side in self.sides]
        return [at_scale(image, scale) for scale in self.scales]

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size (H, W) to which an image of size (H, W) is reduced, if at all."""
        return reduced_size(size, self.max_side)

    def map_size(self, size: tuple[int, int], stride: int = 1) -> tuple[int, int]:
        """Return the size (H, W) of the maps of an image of size (H, W).

        With a stride it follows from the image's own size, so that the stages that read the maps
        can tell the stride from the two.
        """
        return self.seen_size(size) if stride == 1 else strided_size(size, stride)

    def note(self) -> dict[str, Any]:
        """Return the entries of a provenance note about the copies, in plain types."""
        sizes: dict[str, Any] = {"sides": list(self.sides or ())}
        if self.sides is None:
            sizes = {"scales": list(self.scales)}
        if self.max_side is not None:
            sizes["max_side"] = self.max_side
        return sizes if self.mirror else {**sizes, "mirror": False}

    @classmethod
    def noted(cls, note: Mapping[str, Any]) -> Views:
        """Return the copies that a provenance note describes.

        Args:
            note: A note with the entries of `note()`, and perhaps others.

        Raises:
            ValueError: The note has no sizes, or impossible ones.
        """
        try:
            sides = tuple(note["sides"]) if "sides" in note else None
            scales = tuple(note["scales"]) if sides is None else (1.0,)
            return cls(scales, sides, note.get("mirror", True), note.get("max_side"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"a note without the scales of its images: {error}") from error
