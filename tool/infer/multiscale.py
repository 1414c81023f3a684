"""Multi-scale and flip: copies of images at several sizes and their mirrors, then merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tool.formats.cam import Cam

Refine = Callable[[str, Sequence[Tensor], dict[str, Tensor], Tensor], dict[str, Tensor]]


@torch.inference_mode()
def infer_images(
    method: nn.Module,
    samples: Sequence[dict[str, Any]],
    *,
    device: torch.device,
    size: tuple[int, int] | None = None,
    amp: bool = False,
    mirror: bool = True,
    refine: Refine | None = None,
) -> list[dict[str, Tensor]]:
    """Return the merged maps of images of one size, which pass through the network together.

    Args:
        method: In `eval()`, on `device`.
        samples: Of `data.dataset.InferDataset`, at least one: `images`, one (3, h, w) uint8 per
            scale, `size`, and what else the method needs.
        size: (H, W) of the maps; None for the images'.
        amp: Use bf16 autocast.
        mirror: Infer the mirror of each image too.
        refine: Takes the id of an image, its features at the scales of at least 1 (else at the
            largest), each (D, h, w), its merged maps in the order of `method.maps`, and its label
            (K,); returns the maps. The features come from the forward passes of the maps. None for
            the merged maps as they are.

    Returns:
        One {name: (C, H, W)} on the device per sample.

    Raises:
        ValueError: `merge` returned other maps than the method declares, or of another shape.
    """
    batch: dict[str, Any] = {"image_id": [sample["image_id"] for sample in samples]}
    for name, value in samples[0].items():
        if isinstance(value, Tensor):
            batch[name] = torch.stack([sample[name] for sample in samples]).to(device)
    copies = 2 if mirror else 1
    used = _used_scales(samples[0]) if refine is not None else []
    scores, features = [], []
    for index, images in enumerate(zip(*(sample["images"] for sample in samples), strict=True)):
        eight_bit = torch.stack(images).to(device, non_blocking=True)
        views = network_input(
            eight_bit, method.backbone.mean, method.backbone.std, mirror=mirror
        )  # (2B, 3, h, w) or (B, 3, h, w)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            if index in used:
                score, feature = score_and_embed(method, batch | {"image": views})
                # A copy: a view would keep the features of the mirrors in memory, too.
                features.append(feature[::copies].clone())
            else:
                score = method.score(batch | {"image": views})
            scores.append(score.float())
    merged = []
    for i, sample in enumerate(samples):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        one["size"] = size or tuple(sample["size"])
        one["sizes"] = [tuple(image.shape[-2:]) for image in sample["images"]]
        maps = merged_maps(method, [score[copies * i : copies * (i + 1)] for score in scores], one)
        if refine is not None:
            views = [feature[i] for feature in features]
            maps = refine(sample["image_id"], views, maps, one["label"][0])
        merged.append(maps)
    return merged


def merged_maps(
    method: nn.Module, scores: list[Tensor], batch: dict[str, Any]
) -> dict[str, Tensor]:
    """Return what `merge` makes of an image, in the order of `method.maps`.

    Raises:
        ValueError: They are other maps than the method declares, or of another shape.
    """
    maps = method.merge(scores, batch)
    if set(maps) != set(method.maps):
        raise ValueError(f"merge returned the maps {sorted(maps)}, not {sorted(method.maps)}")
    expected = (method.num_classes + method.has_background, *batch["size"])
    for name, values in maps.items():
        if tuple(values.shape) != expected:
            raise ValueError(
                f"merge returned the map {name!r} of shape {tuple(values.shape)}, not {expected}"
            )
    return {name: maps[name] for name in method.maps}


def _used_scales(sample: dict[str, Any]) -> list[int]:
    """Return the indices of the copies that are no smaller than the image, else of the largest."""
    sides = [max(image.shape[-2:]) for image in sample["images"]]
    whole = [index for index, side in enumerate(sides) if side >= max(sample["size"])]
    return whole or [sides.index(max(sides))]


def score_and_embed(method: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the scores and the embedding of a batch, for which the backbone runs once.

    Raises:
        ValueError: The method has no embedding.
    """
    with method.backbone.one_pass():
        score, feature = method.score(batch), method.embed(batch)
    if feature is None:
        raise ValueError("the gate needs features, and this method has none: pass --gate none")
    return score, feature


def network_input(
    image: Tensor, mean: Sequence[float], std: Sequence[float], *, mirror: bool = True
) -> Tensor:
    """Return images, and their mirrors, as a network takes them.

    Args:
        image: (B, 3, h, w) uint8.
        mean: Of each channel of the network's input, in [0, 1].
        std: Of each channel of the network's input, in [0, 1].
        mirror: Put the mirror of each image behind it.

    Returns:
        (2B, 3, h, w), or (B, 3, h, w) without mirrors: float32, (x / 255 - mean) / std,
        channels_last.
    """
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (mean, std))
    views = image.float().div_(255).sub_(mean).div_(std)
    if mirror:
        views = torch.stack([views, views.flip(-1)], dim=1).flatten(0, 1)
    return views.contiguous(memory_format=torch.channels_last)


def present_rows(maps: Tensor, label: Tensor | None, *, has_background: bool) -> Cam:
    """Return the rows that a CAM file holds: the background if there is one, and present classes.

    Args:
        maps: (K, H, W), or (K+1, H, W) with background.
        label: (K,) image-level; None keeps every class.

    Returns:
        The CAM in float16, as a file stores it: many rows wait for their turn to be written.
    """
    first = 0 if has_background else 1
    index = torch.arange(first, first + len(maps))
    if label is not None:
        present = label.nonzero()[:, 0].cpu() + 1
        index = torch.cat([present.new_zeros(int(has_background)), present])
        maps = maps[index - first]
    return Cam(index.numpy().astype("uint8"), maps.half().cpu().numpy())
