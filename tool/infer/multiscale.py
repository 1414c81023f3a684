"""Multi-scale and flip: images at several scales with their mirrors, merged by their method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tool.formats.cam import Cam


@torch.inference_mode()
def infer_images(
    method: nn.Module,
    samples: Sequence[dict[str, Any]],
    *,
    device: torch.device,
    size: tuple[int, int] | None = None,
    amp: bool = False,
) -> list[dict[str, Tensor]]:
    """The merged maps of images of one size, all together through the network.

    Args:
        method: in `eval()`, on `device`.
        samples: of `data.dataset.InferDataset`, at least one: `images`, one (3, h, w) uint8 a
            scale, `size`, and what else the method asked for.
        size: (H, W) of the maps; None: the images'.
        amp: bf16 autocast.

    Returns:
        {name: (C, H, W)} on the device, one a sample.
    """
    batch: dict[str, Any] = {"image_id": [sample["image_id"] for sample in samples]}
    for name, value in samples[0].items():
        if isinstance(value, Tensor):
            batch[name] = torch.stack([sample[name] for sample in samples]).to(device)
    scores = []
    for images in zip(*(sample["images"] for sample in samples), strict=True):
        eight_bit = torch.stack(images).to(device, non_blocking=True)
        pairs = mirrored_pairs(eight_bit, method.backbone.mean, method.backbone.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            scores.append(method.score(batch | {"image": pairs}).float())
    merged = []
    for i in range(len(samples)):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        one["size"] = size or tuple(samples[i]["size"])
        merged.append(method.merge([score[2 * i : 2 * i + 2] for score in scores], one))
    return merged


def mirrored_pairs(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images and their mirrors as a network takes them.

    Args:
        image: (B, 3, h, w) uint8.
        mean: of the network's input, of 3, in [0, 1].
        std: likewise.

    Returns:
        (2B, 3, h, w) float32, (x / 255 - mean) / std, channels_last: each image, then its mirror.
    """
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (mean, std))
    straight = image.float().div_(255).sub_(mean).div_(std)
    pairs = torch.stack([straight, straight.flip(-1)], dim=1).flatten(0, 1)
    return pairs.contiguous(memory_format=torch.channels_last)


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
