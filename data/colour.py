"""Colour jitter and normalisation of a batch of 8-bit crops, on whatever device holds it.

Brightness, contrast, saturation and hue are affine in RGB, so a whole jitter is one matrix an
image: one product a pixel in place of four passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1}
_LUMA = (0.299, 0.587, 0.114)
_GREY = torch.tensor(_LUMA, dtype=torch.float64).expand(3, 3)
_TO_YIQ = torch.tensor(
    [_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)], dtype=torch.float64
)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)


def draw_jitter() -> Tensor:
    """One image's jitter, drawn from torch's CPU generator: (3, 6) of `jitter_matrix`.

    The factors of brightness, contrast and saturation are uniform in 1 -+ `JITTER`, the turn of the
    hue in -+ `JITTER`.
    """
    draws = 2 * torch.rand(len(JITTER), dtype=torch.float64) - 1
    factors = {
        name: width * draw + (name != "hue")
        for (name, width), draw in zip(JITTER.items(), draws.tolist(), strict=True)
    }
    return jitter_matrix(**factors)


def jitter_matrix(
    *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """The four changes of colour as one matrix.

    Args:
        brightness: factor. contrast, saturation: factors of the distance to the mean grey of the
            image, and to the grey of the pixel.
        hue: turn in revolutions.

    Returns:
        (3, 6) float32 [A | B]: a pixel becomes A @ pixel + B @ (mean pixel of the image).

    Differs from torchvision's ColorJitter: nothing is rounded or clipped in between, and the hue
    turns about the grey axis of YIQ in place of HSV's hexagon. Then all four are affine and
    commute, so that there is no order to draw.
    """
    one = torch.eye(3, dtype=torch.float64)
    chroma = saturation * one + (1 - saturation) * _GREY
    turned = chroma @ _FROM_YIQ @ _chroma_rotation(hue) @ _TO_YIQ
    of_mean = brightness * (1 - contrast) * _GREY
    return torch.cat([brightness * contrast * turned, of_mean], dim=1).float()


def _chroma_rotation(turn: float) -> Tensor:
    cos, sin = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rows = [(1.0, 0.0, 0.0), (0.0, cos, sin), (0.0, -sin, cos)]
    return torch.tensor(rows, dtype=torch.float64)


def jittered(image: Tensor, valid: Tensor, jitter: Tensor) -> Tensor:
    """Jitter each image by its own matrix.

    Args:
        image: (N, 3, H, W) float in [0, 1].
        valid: (N, 1, H, W) bool: the pixels whose mean is the pivot of the contrast.
        jitter: (N, 3, 6) of `draw_jitter`.

    Returns:
        (N, 3, H, W), clipped to [0, 1].
    """
    inside = valid.to(image.dtype)
    mean = (image * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3)).clamp(min=1)
    offset = jitter[:, :, 3:] @ mean[:, :, None]
    pixels = torch.baddbmm(offset, jitter[:, :, :3], image.flatten(2))
    return pixels.clamp_(0, 1).view(image.shape)


class Finish:
    """What of the augmentation runs on the device: 8 bits to [0, 1], jitter, normalisation.

    Args:
        mean: of the backbone's input, of 3, in [0, 1].
        std: likewise.
        device: of the batches.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> None:
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, device=device).view(3, 1, 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The loader's batch as a method sees it; both are in `data.dataset.TrainDataset`."""
        finished = {key: value for key, value in batch.items() if key != "jitter"}
        image = jittered(batch["image"].float().div_(255), batch["valid"], batch["jitter"])
        normal = image.sub_(self.mean).div_(self.std).mul_(batch["valid"])
        finished["image"] = normal.contiguous(memory_format=torch.channels_last)
        if "saliency" in batch:
            finished["saliency"] = batch["saliency"].float().div_(255)
        if "seed" in batch:
            finished["seed"] = batch["seed"][:, 0].long()
        return finished
