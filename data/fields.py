"""The keys of a training batch that are read from files: one row per key.

A row describes how the file of a key is found and read, how it is padded, and how it is finished on
the device. To add a key, add a row here. If its files come from a previous stage, add also a row in
`tool.infer.previous.KINDS` and a flag in `FieldFlags`.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from data.catalog import Catalog
from data.files import all_found
from data.saliency_maps import require_saliency
from tool.cli import printable
from tool.formats.cam import Cam, strided_size
from tool.formats.predictions import colour_warning
from tool.infer.previous import CAM_STRIDE, PreviousFlags, PreviousOutputs, class_cells
from tool.parallel import dist

TRUTH = Path("truth")  # `--mask-dir truth`: the dataset's own masks


@dataclasses.dataclass(frozen=True)
class Sources:
    """The places of the files of the fields.

    Attributes:
        catalog: The dataset.
        previous: The folders of files of previous stages.
    """

    catalog: Catalog
    previous: PreviousOutputs

    @property
    def trains_on_truth(self) -> bool:
        """Whether the masks are the dataset's own."""
        return self.previous.folders.get("mask") == TRUTH

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
    require_saliency(sources.catalog, ids)


def _read_saliency(
    sources: Sources, image_id: str, size: tuple[int, int]
) -> tuple[Image.Image, None]:
    saliency = sources.catalog.read_saliency(image_id)
    return saliency.resize(size, Image.Resampling.BILINEAR), None


def _require_previous(sources: Sources, ids: Sequence[str], *, key: str) -> None:
    if key == "mask" and sources.trains_on_truth:
        all_found(ids, sources.catalog.mask_path)
        warning = colour_warning(map(sources.catalog.mask_path, ids)) if dist.is_main() else None
        if warning is not None:
            print(printable(warning), file=sys.stderr)
    else:
        sources.previous.require((key,), ids)


def read_labels(sources: Sources, image_id: str, *, key: str, are_classes: bool) -> np.ndarray:
    """Return a label map (H, W) uint8 at its image's size: a seed, mask or boundary label.

    Args:
        sources: Where the files are.
        image_id: The image.
        key: The batch key.
        are_classes: Values are 0..K and 255.

    Raises:
        ValueError: The file is broken, of another size than its image, or has a class above K.
    """
    catalog = sources.catalog
    if key == "mask" and sources.trains_on_truth:
        return catalog.read_mask(image_id)
    highest = catalog.num_classes if are_classes else None
    shape = sources.image_size(image_id)
    return sources.previous.read_mask(key, image_id, size=shape, num_classes=highest)


def _sized_labels(
    sources: Sources, image_id: str, size: tuple[int, int], *, key: str, are_classes: bool
) -> tuple[tv_tensors.Mask, None]:
    """Return a label map of another size (width, height); it is not smoothed."""
    labels = read_labels(sources, image_id, key=key, are_classes=are_classes)
    resized = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return tv_tensors.Mask(np.array(resized)[None]), None


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


def _label_map(
    key: str, finish: Callable[[Tensor], Tensor] = _class_map, *, are_classes: bool = True
) -> Field:
    """Return the row of a label map, which is 255 on padding."""
    require = functools.partial(_require_previous, key=key)
    read = functools.partial(_sized_labels, key=key, are_classes=are_classes)
    return Field(key, require, read, 255, finish)


_require_cam = functools.partial(_require_previous, key="cam")
FIELDS = {
    field.key: field
    for field in (
        Field("saliency", _require_saliency, _read_saliency, 0, _scaled),
        _label_map("seed"),
        _label_map("mask"),
        _label_map("boundary", lambda values: values[:, 0], are_classes=False),
        Field("cam", _require_cam, _read_cam, 0, lambda values: values, pack=_pack_cam),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldFlags(PreviousFlags):
    """The flags that name the folders of the fields, but for `--saliency-root`.

    Attributes:
        mask_dir: Folder of pseudo masks, from crf_postprocess.py. With `truth` they are the
            dataset's own masks, which gives an upper bound and is no weak supervision.
        boundary_dir: Folder of boundary labels, from data.boundary: PNGs of the images' sizes.
    """

    mask_dir: Path | None = None
    boundary_dir: Path | None = None
