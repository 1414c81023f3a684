"""Multi-scale inference with mirrors: score the copies of images, then merge their maps."""

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
        method: The method in evaluation mode, on `device`.
        samples: B samples of `data.dataset.InferDataset`, at least one. Each has `images`, one
            (3, h, w) uint8 per scale, `size`, and the other inputs of the method. All have the same
            sizes.
        device: The device that computes.
        size: (H, W) of the maps; None for the size of each image.
        amp: Whether to use bf16 autocast.
        mirror: Whether to infer the mirror of each image too.
        refine: A function of an image's id, its features, its merged maps and its label (K,), which
            returns the maps. The features are one (D, h, w) per scale of at least 1, or that of
            the largest scale if all are smaller. They come from the same forward passes as the
            maps. None to leave the merged maps unchanged.

    Returns:
        One {name: (C, H, W)} per sample, on the device.

    Raises:
        ValueError: `merge` returned other maps than the method declares, or maps of another shape.
            Or `refine` is given and the method has no features.
    """
    # Stack the inputs that all scales share. The images themselves are a list, not a tensor.
    batch: dict[str, Any] = {"image_id": [sample["image_id"] for sample in samples]}
    for name, value in samples[0].items():
        if isinstance(value, Tensor):
            batch[name] = torch.stack([sample[name] for sample in samples]).to(device)
    copies = 2 if mirror else 1
    used = _used_scales(samples[0]) if refine is not None else []
    scores, features = [], []
    # Score all images at one scale after the other, with the features where they are needed.
    for index, images in enumerate(zip(*(sample["images"] for sample in samples), strict=True)):
        eight_bit = torch.stack(images).to(device, non_blocking=True)  # (B, 3, h, w)
        views = network_input(
            eight_bit, method.backbone.mean, method.backbone.std, mirror=mirror
        )  # (2B, 3, h, w) or (B, 3, h, w)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            if index in used:
                score, feature = score_and_embed(method, batch | {"image": views})
                # Keep a copy, because a view would keep the features of the mirrors in memory too.
                features.append(feature[::copies].clone())  # (B, D, h, w)
            else:
                score = method.score(batch | {"image": views})  # (2B, C, h, w) or (B, C, h, w)
            scores.append(score.float())
    # Merge the scales and mirrors of each image, and refine the maps.
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
    """Return the merged maps of an image, in the order of `method.maps`.

    Args:
        method: The method, whose `merge` is called.
        scores: One (2, C, h, w) per scale, the image and its mirror; (1, C, h, w) without mirrors.
        batch: The inputs of this image, with `size`, the (H, W) of the maps, and `sizes`, the sizes
            of its scales.

    Returns:
        {name: (C, H, W)}.

    Raises:
        ValueError: `merge` returned other maps than the method declares, or maps of another shape.
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
    """Return the indices of the copies that are no smaller than the image.

    If all are smaller, return the index of the largest one.
    """
    sides = [max(image.shape[-2:]) for image in sample["images"]]
    whole = [index for index, side in enumerate(sides) if side >= max(sample["size"])]
    return whole or [sides.index(max(sides))]


def score_and_embed(method: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the scores and the embedding of a batch from one pass of the backbone.

    Args:
        method: The method.
        batch: The batch that `method.score` and `method.embed` take.

    Returns:
        (2B, C, h, w) and (2B, D, h, w); without mirrors B in place of 2B.

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
    """Return images and their mirrors as the input of a network.

    Args:
        image: (B, 3, h, w) uint8.
        mean: The mean of each channel, for values in [0, 1].
        std: The standard deviation of each channel, for values in [0, 1].
        mirror: Whether each image is followed by its mirror.

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
    """Return the CAM of the maps: the background row if there is one, and the present classes.

    Args:
        maps: (K, H, W), or (K+1, H, W) with background first.
        label: (K,) {0, 1}, image-level; None keeps every class.
        has_background: Whether the maps begin with the background.

    Returns:
        The CAM in float16, as a file stores it. That halves the memory of CAMs that wait to be
        written.
    """
    # The mask value of each map.
    first = 0 if has_background else 1
    index = torch.arange(first, first + len(maps))
    # Keep the background and the classes of the label.
    if label is not None:
        present = label.nonzero()[:, 0].cpu() + 1
        index = torch.cat([present.new_zeros(int(has_background)), present])
        maps = maps[index - first]
    return Cam(index.numpy().astype("uint8"), maps.half().cpu().numpy())
