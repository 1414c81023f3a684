"""Augmentation: one draw, applied to every field of a sample.

Images stay PIL until the crop: resizing and colour jitter of 8-bit PIL images cost a third of what
they cost as tensors.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}


class RandomLongSide(v2.Transform):
    """Resize so that the longer side is uniform in {low, ..., high}: bicubic, masks nearest."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        if not 1 <= low <= high:
            raise ValueError(f"long side {low}..{high} is not a range of positive sizes")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[object]) -> dict[str, list[int]]:
        """Draw the long side; the new (height, width) is the same for all fields."""
        height, width = v2.query_size(flat_inputs)
        drawn = int(torch.randint(self.low, self.high + 1, ()))
        return {"size": list(scaled_size(height, width, drawn / max(height, width)))}

    def transform(self, inpt: object, params: dict[str, list[int]]) -> object:
        """Resize one field."""
        return self._call_kernel(
            functional.resize, inpt, params["size"], interpolation=InterpolationMode.BICUBIC
        )


class TrainTransform:
    """Long side, flip, colour jitter, normalisation, random crop; padding is the mean colour.

    Source: FBR's recipe, augmentation row. Draws from torch's CPU generator.
    """

    def __init__(
        self,
        *,
        crop: int,
        long_side: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        if crop < 1:
            raise ValueError(f"crop {crop} is not a positive size")
        self.mean, self.std = list(mean), list(std)
        self.shape = v2.Compose([RandomLongSide(*long_side), v2.RandomHorizontalFlip(0.5)])
        self.colour = v2.ColorJitter(**JITTER)
        self.crop = v2.RandomCrop(crop, pad_if_needed=True)

    def __call__(self, fields: dict[str, object]) -> dict[str, Tensor]:
        """Transform a sample.

        Args:
            fields: "image" PIL RGB; optionally "saliency" PIL L and others as tv_tensors, all of
                one size (H, W).

        Returns:
            "image" (3, crop, crop) float32 normalised, 0 on padding; "valid" (1, crop, crop) bool,
            False on padding; "saliency" (1, crop, crop) float32 [0, 1], 0 on padding; the others.
        """
        fields = dict(self.shape(fields))
        fields["image"] = self.colour(fields["image"])
        width, height = fields["image"].size
        fields["valid"] = tv_tensors.Mask(torch.ones(1, height, width, dtype=torch.bool))
        fields = self.crop(fields)
        valid = fields["valid"].as_subclass(Tensor)
        image = normalised(fields["image"], self.mean, self.std) * valid
        result = fields | {"image": image, "valid": valid}
        if "saliency" in fields:
            result["saliency"] = unit_range(fields["saliency"])
        return result


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, rounded, at least one pixel."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def unit_range(image: Image.Image) -> Tensor:
    """A PIL image as (channels, H, W) float32 in [0, 1]."""
    return functional.pil_to_tensor(image).to(torch.float32).div_(255)


def normalised(image: Image.Image, mean: list[float], std: list[float]) -> Tensor:
    """A PIL RGB image as (3, H, W) float32, (x / 255 - mean) / std."""
    return functional.normalize(unit_range(image), mean, std, inplace=True)


def mirrored_pair(image: Image.Image, scale: float, mean: list[float], std: list[float]) -> Tensor:
    """The image at a scale and its horizontal mirror.

    Args:
        image: PIL RGB, (W, H).
        scale: factor on both sides; bicubic.
        mean: of the backbone's input, of 3.
        std: likewise.

    Returns:
        (2, 3, h, w) float32 normalised, h = round(H * scale), w = round(W * scale), at least 1.
    """
    height, width = scaled_size(image.height, image.width, scale)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    straight = normalised(image, mean, std)
    return torch.stack([straight, straight.flip(-1)])
