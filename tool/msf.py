"""Multi-scale and flip: one image at several scales with its mirror, merged by its method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tool.cam import Cam


@torch.inference_mode()
def infer_image(
    method: nn.Module,
    sample: dict[str, Any],
    *,
    device: torch.device,
    size: tuple[int, int] | None = None,
    amp: bool = False,
) -> dict[str, Tensor]:
    """The merged maps of one image.

    Args:
        method: in `eval()`, on `device`.
        sample: of `data.dataset.InferDataset`: `images`, one (2, 3, h, w) a scale, `size`, `label`
            (K,).
        size: (H, W) of the maps; None: the image's.
        amp: bf16 autocast.

    Returns:
        {name: (C, H, W)} on the device.
    """
    size = size or tuple(sample["size"])
    batch: dict[str, Any] = {"size": size, "image_id": [sample["image_id"]]}
    if "label" in sample:
        batch["label"] = sample["label"][None].to(device)
    scores = []
    for images in sample["images"]:
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            scores.append(method.score(batch | {"image": images}).float())
    return method.merge(scores, batch)


def present_rows(maps: Tensor, label: Tensor | None, *, has_background: bool) -> Cam:
    """The rows that a CAM file holds: background where there is one, and present classes.

    Args:
        maps: (K, H, W), or (K+1, H, W) with background.
        label: (K,) image-level; None keeps every class.
    """
    first = 0 if has_background else 1
    num_classes = len(maps) - (1 - first)
    present = range(num_classes) if label is None else label.nonzero()[:, 0].tolist()
    rows = [0] * has_background + [index + 1 for index in present]
    index = torch.tensor(rows, dtype=torch.long)
    return Cam(index.numpy().astype("uint8"), maps[index - first].float().cpu().numpy())
