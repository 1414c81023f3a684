"""Augmentation up to the crop: one draw, applied to every field of a sample, 8 bits throughout.

Images stay PIL until the crop: resizing 8-bit PIL images costs a third of what it costs as tensors.
Colour and normalisation follow on the device (`data.colour`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from data.colour import draw_jitter, jitter_matrix
from tool.infer.scales import scaled_size


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


class RandomScale(RandomLongSide):
    """Resize by a factor that is uniform in [low, high): bicubic, masks nearest."""

    def __init__(self, low: float, high: float) -> None:
        v2.Transform.__init__(self)
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"scale {low}..{high} is not a range of positive factors")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[object]) -> dict[str, list[int]]:
        """Draw the factor; the new (height, width) is the same for all fields."""
        drawn = self.low + (self.high - self.low) * float(torch.rand(()))
        return {"size": list(scaled_size(*v2.query_size(flat_inputs), drawn))}


class TrainTransform:
    """Resize, flip, random crop, and the draw of the colour jitter.

    Source: FBR's recipe, augmentation row. Draws from torch's CPU generator.
    Differs from the release: the jitter is that of the crop, not of the image around it.
    """

    def __init__(self, *, crop: int, resize: v2.Transform, jitter: bool = True) -> None:
        if crop < 1:
            raise ValueError(f"crop {crop} is not a positive size")
        self.jitter = jitter
        self.shape = v2.Compose([resize, v2.RandomHorizontalFlip(0.5)])
        self.crop = v2.RandomCrop(crop, pad_if_needed=True)

    def __call__(self, fields: dict[str, object]) -> dict[str, Tensor]:
        """Transform a sample.

        Args:
            fields: "image" PIL RGB; optionally "saliency" PIL L, "seed" a tv_tensors.Mask
                (1, H, W) uint8 and others as tv_tensors, all of one size (H, W).

        Returns:
            "image" (3, crop, crop) uint8, 0 on padding; "valid" (1, crop, crop) bool, False on
            padding; "saliency" (1, crop, crop) uint8, 0 on padding; "seed" (1, crop, crop) uint8,
            255 on padding; "jitter" (3, 6) of `draw_jitter`; the others.
        """
        fields = dict(self.shape(fields))
        width, height = fields["image"].size
        fields["valid"] = tv_tensors.Mask(torch.ones(1, height, width, dtype=torch.bool))
        fields = self.crop(fields)
        valid = fields["valid"].as_subclass(Tensor)
        jitter = draw_jitter() if self.jitter else jitter_matrix()
        result = fields | {"valid": valid, "jitter": jitter}
        if "seed" in fields:
            result["seed"] = fields["seed"].as_subclass(Tensor).masked_fill(~valid, 255)
        for name in {"image", "saliency"} & set(fields):
            result[name] = functional.pil_to_tensor(fields[name])
        return result
