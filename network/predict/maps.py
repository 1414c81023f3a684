"""The maps of one image, and its mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from network.contrast.gate import NroiGate
from network.losses import resize
from network.methods import Method
from tool.formats.cam import as_stored, cam_mask
from tool.infer.multiscale import infer_images, present_rows
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views


def class_maps(
    method: Method,
    image_id: str,
    image: Image.Image,
    label: np.ndarray,
    previous: PreviousOutputs,
    device: torch.device,
    views: Views,
    gate: NroiGate | None,
    *,
    whole: tuple[int, int] | None = None,
) -> dict[str, torch.Tensor]:
    """Compute the maps of an image.

    Args:
        method: In `eval()`, on `device`.
        image_id: Name of the image's files from previous stages.
        image: RGB, of size (W, H); no larger than the views reduce it to.
        label: (K,) float32, 1 for the classes that are present.
        previous: Folders of files of previous stages.
        device: The device that computes.
        views: The sizes of the copies of the image.
        gate: The gate of the run; None for none.
        whole: (H, W) of the photograph, which files of previous stages have; None if `image` is it.

    Returns:
        `CAM` (C, H, W) float32 on the CPU, the first of the method's maps. If the method reads the
        label, the maps of absent classes are 0. With a gate also `gate` (K, H, W) and `gated CAM`
        (C, H, W).
    """
    size, inputs = (image.height, image.width), method.infer_inputs
    sample = {"image_id": image_id, "size": size, "images": views.of(image)}
    if "label" in inputs:
        sample["label"] = torch.from_numpy(label)
    sample |= previous.read(
        inputs,
        image_id,
        whole=whole or size,
        size=size,
        label=lambda: label,
        num_classes=len(label),
    )
    shown: dict[str, torch.Tensor] = {}

    def refine(
        image_id: str,
        features: Sequence[torch.Tensor],
        maps: dict[str, torch.Tensor],
        label: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the gated maps, and keep the CAM and the gate for the picture."""
        assert gate is not None
        cam = maps[method.maps[0]]
        values, present = gate.gate(image_id, features, cam, label)
        whole = cam.new_zeros(len(label), *values.shape[-2:]).index_copy_(0, present, values)
        shown.update({"CAM": cam, "gate": resize(whole[None], size)[0]})
        return gate(image_id, features, maps, label)

    maps = infer_images(
        method,
        [sample],
        device=device,
        mirror=views.mirror,
        refine=refine if gate is not None else None,
    )[0]
    found = shown | {"gated CAM" if gate else "CAM": maps[method.maps[0]]}
    return {name: values.float().cpu() for name, values in found.items()}


def mask_of(
    maps: torch.Tensor, label: torch.Tensor | None, method: Method, bg_threshold: float | None
) -> np.ndarray:
    """Return the mask (H, W) uint8 of an image, as `infer_cam.py --argmax` makes it.

    Args:
        maps: (K, H, W), or (K+1, H, W) with background.
        label: (K,), 1 for the classes that the mask may have; None for all.
        method: The method that made the maps.
        bg_threshold: Maps without background are foreground above it; None for the method's
            threshold.
    """
    rows = as_stored(present_rows(maps, label, has_background=method.has_background))
    threshold = method.recipe.post.threshold if bg_threshold is None else bg_threshold
    return cam_mask(rows, threshold)
