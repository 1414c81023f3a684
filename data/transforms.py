"""Augmentation up to the crop, with one draw for all fields of a sample, in 8 bits throughout.

Images stay PIL images until the crop, because resizing 8-bit PIL images takes a third of the time
that it takes for tensors. Colour and normalisation follow on the device (`data.colour`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from data.colour import draw_jitter, jitter_matrix
from tool.infer.scales import scaled_size


class Resize(v2.Transform):
    """A random resize, bicubic for images and nearest for masks.

    torchvision calls `make_params` once per sample, with all of its fields, and then `transform`
    with each field.

    Attributes:
        longest_side: Upper limit of the longer side of a result, in pixels. A larger JPEG may be
            decoded at a reduced size. None if the limit depends on the size of the image.
    """

    longest_side: int | None = None

    def transform(self, inpt: object, params: dict[str, list[int]]) -> object:
        """Resize one field to `params["size"]`, (height, width)."""
        return self._call_kernel(
            functional.resize, inpt, params["size"], interpolation=InterpolationMode.BICUBIC
        )


class RandomLongSide(Resize):
    """A resize whose longer side is uniform in {low, ..., high}.

    Args:
        low: In pixels.
        high: In pixels.

    Raises:
        ValueError: The range is empty, or not positive.
    """

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        if not 1 <= low <= high:
            raise ValueError(f"long side {low}..{high}: give the smaller size first, at least 1")
        self.low, self.high = low, high
        self.longest_side = high

    def make_params(self, flat_inputs: list[object]) -> dict[str, list[int]]:
        """Draw the longer side in low..high; return {"size": [height, width]} for all fields.

        Raises:
            ValueError: The fields have different sizes.
        """
        height, width = v2.query_size(flat_inputs)
        drawn = int(torch.randint(self.low, self.high + 1, ()))
        return {"size": list(scaled_size(height, width, drawn / max(height, width)))}


class RandomScale(Resize):
    """A resize by a factor that is uniform in [low, high).

    Args:
        low: The smallest factor.
        high: The limit of the factors.

    Raises:
        ValueError: The range is empty, not positive or not finite.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"scale {low}..{high}: give the smaller factor first, above 0")
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[object]) -> dict[str, list[int]]:
        """Draw the factor in [low, high); return {"size": [height, width]} for all fields.

        Raises:
            ValueError: The fields have different sizes.
        """
        drawn = self.low + (self.high - self.low) * float(torch.rand(()))
        return {"size": list(scaled_size(*v2.query_size(flat_inputs), drawn))}


class ScaleChoice(Resize):
    """A resize by one of several factors, all equally likely.

    Args:
        factors: At least one.

    Raises:
        ValueError: There is no factor, or one is not positive or not finite.
    """

    def __init__(self, *factors: float) -> None:
        super().__init__()
        if not factors or not all(0 < factor < float("inf") for factor in factors):
            raise ValueError(f"scales {list(factors)} are not positive factors")
        self.factors = factors

    def make_params(self, flat_inputs: list[object]) -> dict[str, list[int]]:
        """Draw the factor; return {"size": [height, width]} for all fields of the sample."""
        drawn = self.factors[int(torch.randint(len(self.factors), ()))]
        return {"size": list(scaled_size(*v2.query_size(flat_inputs), drawn))}


def resize_of(scale: Sequence[float] | None, long_side: tuple[int, int]) -> Resize:
    """Return the resize of a recipe.

    Args:
        scale: Two factors are a range, any other number of them are choices; None for `long_side`.
        long_side: Range of the longer side, in pixels.

    Raises:
        ValueError: A factor or side is not possible.
    """
    if scale is None:
        return RandomLongSide(*long_side)
    return RandomScale(*scale) if len(scale) == 2 else ScaleChoice(*scale)


class TrainTransform:
    """The augmentation of a sample: resize, flip, random crop, and the draw of the colour jitter.

    All draws come from torch's CPU generator.

    Args:
        crop: Side of the crop, in pixels.
        resize: The resize before the flip.
        jitter: Draw a colour jitter; otherwise colours stay as they are.
        flip: Mirror every other image.

    Raises:
        ValueError: The crop is not positive.

    Source: FBR's recipe, augmentation row.
    Differs from the release: the jitter is that of the crop, not of the image around it.
    """

    def __init__(
        self, *, crop: int, resize: v2.Transform, jitter: bool = True, flip: bool = True
    ) -> None:
        if crop < 1:
            raise ValueError(f"crop {crop} is not a positive size")
        self.jitter = jitter
        self.shape = v2.Compose([resize, v2.RandomHorizontalFlip(0.5)] if flip else [resize])
        self.crop = v2.RandomCrop(crop, pad_if_needed=True)

    def __call__(
        self, fields: dict[str, object], *, pad: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Transform a sample.

        Args:
            fields: "image" as a PIL image in RGB, and others as PIL images or tv_tensors, all of
                one size (H, W).
            pad: Value of each field on padding; 0 for fields that it does not name.

        Returns:
            "image" (3, crop, crop) uint8, 0 on padding; "valid" (1, crop, crop) bool, False on
            padding; "jitter" (3, 6), as from `draw_jitter`; the other fields, (C, crop, crop).
        """
        # Resize and flip all fields together.
        names = [name for name in fields if name != "image"]
        fields = dict(self.shape(fields))
        # The crop pads the mask of valid pixels with 0, which marks the padding.
        width, height = fields["image"].size
        fields["valid"] = tv_tensors.Mask(torch.ones(1, height, width, dtype=torch.bool))
        fields = self.crop(fields)
        valid = fields["valid"].as_subclass(Tensor)
        # Tensors of all fields, with the padding of each.
        jitter = draw_jitter() if self.jitter else jitter_matrix()
        result = fields | {"valid": valid, "jitter": jitter}
        for name in ("image", *names):
            value = fields[name]
            value = value if isinstance(value, Tensor) else functional.pil_to_tensor(value)
            value = value.as_subclass(Tensor)
            padding = (pad or {}).get(name, 0)
            result[name] = value.masked_fill(~valid, padding) if padding else value
        return result
