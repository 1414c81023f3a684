"""The keys of a training batch that are read from files: one row per key.

A row says how the file of a key is found and read, how it is padded, and how it is finished on the
device. A new key is one new row here, and one in `tool.infer.previous.KINDS` if its files come from
a previous stage.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from data.catalog import Catalog
from tool.formats.cam import Cam, strided_size
from tool.infer.previous import (
    CAM_STRIDE,
    KINDS,
    PreviousOutputs,
    add_previous_flags,
    class_cells,
)

TRUTH = Path("truth")  # `--mask-dir truth`: the dataset's own masks


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the files of the fields are.

    Attributes:
        catalog: Of the dataset.
        previous: Folders of files of previous stages.
    """

    catalog: Catalog
    previous: PreviousOutputs

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Return (H, W) of an image."""
        width, height = self.catalog.image_size(image_id)
        return height, width


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of a training batch.

    Attributes:
        key: As in the batch, and as in `Method.inputs`.
        require: Takes the sources and image ids; raises if files are missing, without reading one.
        read: Takes the sources, an image id and the (width, height) of the decoded image. Returns a
            PIL image or a tv_tensor of that size, which is augmented with the image, and a note.
        pad: Value of the padding.
        pack: Takes the augmented tensor (C, H, W) and the note; returns what is stacked into the
            batch.
        finish: Takes the stacked batch on the device; returns what methods see.
    """

    key: str
    require: Callable[[Sources, Sequence[str]], None]
    read: Callable[[Sources, str, tuple[int, int]], tuple[Image.Image | tv_tensors.TVTensor, Any]]
    pad: float
    finish: Callable[[Tensor], Tensor]
    pack: Callable[[Tensor, Any], Tensor] = lambda values, note: values


def _require_saliency(sources: Sources, ids: Sequence[str]) -> None:
    catalog = sources.catalog
    if not catalog.has_saliency:
        where = catalog.saliency_root
        raise ValueError(f"method needs saliency: pass --saliency-root ({where} is no folder)")
    all_found(ids, catalog.saliency_path)


def _read_saliency(
    sources: Sources, image_id: str, size: tuple[int, int]
) -> tuple[Image.Image, None]:
    saliency = sources.catalog.read_saliency(image_id)
    return saliency.resize(size, Image.Resampling.BILINEAR), None


def _require_previous(key: str) -> Callable[[Sources, Sequence[str]], None]:
    return lambda sources, ids: sources.previous.require((key,), ids)


def _require_masks(sources: Sources, ids: Sequence[str]) -> None:
    if sources.previous.folders.get("mask") == TRUTH:
        all_found(ids, sources.catalog.mask_path)
    else:
        sources.previous.require(("mask",), ids)


def _as_mask(mask: np.ndarray, size: tuple[int, int]) -> tuple[tv_tensors.Mask, None]:
    resized = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    return tv_tensors.Mask(np.array(resized)[None]), None


def _read_seed(
    sources: Sources, image_id: str, size: tuple[int, int], *, key: str = "seed"
) -> tuple[tv_tensors.Mask, None]:
    mask = sources.previous.read_mask(
        key,
        image_id,
        size=sources.image_size(image_id),
        num_classes=sources.catalog.num_classes,
    )
    return _as_mask(mask, size)


def _read_mask(
    sources: Sources, image_id: str, size: tuple[int, int]
) -> tuple[tv_tensors.Mask, None]:
    if sources.previous.folders.get("mask") == TRUTH:
        return _as_mask(sources.catalog.read_mask(image_id), size)
    return _read_seed(sources, image_id, size, key="mask")


def _read_boundary(
    sources: Sources, image_id: str, size: tuple[int, int]
) -> tuple[tv_tensors.Mask, None]:
    shape = sources.image_size(image_id)
    label = sources.previous.read_mask("boundary", image_id, size=shape, num_classes=None)
    return _as_mask(label, size)


def _read_cam(
    sources: Sources, image_id: str, size: tuple[int, int]
) -> tuple[tv_tensors.Image, tuple[np.ndarray, int]]:
    """Return the rows of the present classes, (P, H, W) float32, their mask values, and K.

    Without a present class there is one row of zeros, because an empty image cannot be resized.
    """
    catalog = sources.catalog
    rows = sources.previous.read_cam(
        image_id,
        size=sources.image_size(image_id),
        label=lambda: catalog.label(image_id),
        num_classes=catalog.num_classes,
    )
    maps = torch.from_numpy(rows.cam).float() if len(rows.cam) else torch.zeros(1, 1, 1)
    resized = torch.nn.functional.interpolate(
        maps[None], size=size[::-1], mode="bilinear", align_corners=False
    )
    return tv_tensors.Image(resized[0]), (rows.class_index, catalog.num_classes)


def _pack_cam(values: Tensor, note: tuple[np.ndarray, int]) -> Tensor:
    """Return the rows (P, H, W) as (K, h, w) maps in cells of `CAM_STRIDE` pixels."""
    index, num_classes = note
    kept = values.as_subclass(Tensor)[: len(index)].clamp(0, 1)
    cells = strided_size(tuple(values.shape[-2:]), CAM_STRIDE)
    return class_cells(Cam(index, kept.numpy()), num_classes, cells)


def _class_map(values: Tensor) -> Tensor:
    """(N, 1, H, W) uint8 -> (N, H, W) int64."""
    return values[:, 0].long()


def _scaled(values: Tensor) -> Tensor:
    """Scale 0..255 to [0, 1]."""
    return values.float().div_(255)


FIELDS = {
    field.key: field
    for field in (
        Field("saliency", _require_saliency, _read_saliency, 0, _scaled),
        Field("seed", _require_previous("seed"), _read_seed, 255, _class_map),
        Field("mask", _require_masks, _read_mask, 255, _class_map),
        Field("boundary", _require_previous("boundary"), _read_boundary, 255, lambda v: v[:, 0]),
        Field("cam", _require_previous("cam"), _read_cam, 0, lambda v: v, pack=_pack_cam),
    )
}


def add_field_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the folders of the fields, but for `--saliency-root`."""
    add_previous_flags(parser, tuple(KINDS))


def all_found(ids: Sequence[str], find: Callable[[str], object]) -> None:
    """Check that a file is found for every id.

    Args:
        find: Takes an id; raises `FileNotFoundError` if the file is missing.

    Raises:
        FileNotFoundError: Files are missing; names the first few, and how many.
    """
    missing: list[tuple[str, FileNotFoundError]] = []
    for image_id in ids:
        try:
            find(image_id)
        except FileNotFoundError as error:
            missing.append((image_id, error))
    if missing:
        others = ", ".join(repr(image_id) for image_id, _ in missing[1:3])
        more = f"; missing in all: {len(missing)}, also {others}" if others else ""
        raise FileNotFoundError(f"{missing[0][1]}{more}")
