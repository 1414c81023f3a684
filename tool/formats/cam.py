"""CAM files: one writer, and one reader that also knows the layouts of the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tool.files import write_npy
from tool.formats.npy import load_npy

Label = np.ndarray | Callable[[], np.ndarray] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Cam:
    """The activation maps of one image.

    Attributes:
        class_index: (P,) uint8, ascending mask values; 0 (background) only as the first.
        cam: (P, H, W) float32, finite, each in [0, 1] where this project wrote it. An empty pickled
            dictionary has no size: (0, 0, 0).
    """

    class_index: np.ndarray
    cam: np.ndarray

    @property
    def has_background(self) -> bool:
        return bool(self.class_index.size) and int(self.class_index[0]) == 0

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.cam.shape[1], self.cam.shape[2]

    def foreground(self) -> Cam:
        """The same without the background row."""
        first = int(self.has_background)
        return Cam(self.class_index[first:], self.cam[first:])


def at_size(cam: Cam, size: tuple[int, int]) -> Cam:
    """The CAM at the image's size (H, W): as it is, or enlarged from a stored stride.

    Maps of stride s, s in 2..32, have ceil(H / s) x ceil(W / s) cells (`infer_cam.py
    --cam-stride`); they are enlarged bilinearly.

    Raises:
        ValueError: another size.
    """
    check_size(cam, size)
    if cam.size == size or not cam.class_index.size:
        return cam
    import cv2

    flip = (size[1], size[0])
    maps = [cv2.resize(row, flip, interpolation=cv2.INTER_LINEAR) for row in cam.cam]
    return Cam(cam.class_index, np.stack(maps))


def check_size(cam: Cam, size: tuple[int, int]) -> None:
    """`ValueError` unless the maps have the image's size (H, W), or a stored stride of it."""
    if not cam.class_index.size or cam.size == size:
        return
    if not any(cam.size == strided_size(size, stride) for stride in range(2, 33)):
        raise ValueError(
            f"the CAM is {cam.size[1]}x{cam.size[0]}, its image is {size[1]}x{size[0]}"
        )


def strided_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The cells (h, w) of maps that store one value per `stride` pixels."""
    return -(-size[0] // stride), -(-size[1] // stride)


def as_stored(cam: Cam) -> Cam:
    """What `load_cam` reads of a CAM that `save_cam` wrote: float16 values."""
    return Cam(cam.class_index, cam.cam.astype(np.float16).astype(np.float32))


def save_cam(path: Path | str, cam: Cam) -> None:
    """Write the native layout (float16), whole or not at all.

    Raises:
        ValueError: classes that do not ascend, shapes that differ, NaN, or values beyond float16.
    """
    _check(path, cam.class_index, cam.cam)
    with np.errstate(over="ignore"):
        half = cam.cam.astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"{path}: a CAM has a value beyond float16")
    dtype = np.dtype([("class_index", "u1"), ("cam", "<f2", cam.size)])
    rows = np.zeros(len(cam.class_index), dtype)
    rows["class_index"] = cam.class_index
    rows["cam"] = half
    write_npy(path, rows)


def load_cam(path: Path | str, *, label: Label = None) -> Cam:
    """Read a CAM in the native layout or in one of the field's pickled dictionaries.

    CAM-A {keys, cam, high_res}, CAM-B {0-based class: map}, CAM-C {keys, IS_CAM}, and the CRF's
    {0: background, class: map}. The last and CAM-B both have integer keys from 0 and are told apart
    by the image's label.

    Args:
        path: the `.npy` file.
        label: (K,) {0, 1}, or a function that returns it, called only where the layout needs it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another layout, an ambiguous one without `label`, one that disagrees with
            `label`, NaN or infinity, or anything that `load_npy` refuses.
    """
    content = load_npy(path)
    try:
        index, maps = _rows(content, label)
        maps = np.asarray(maps, np.float32)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a CAM file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check(path, index, maps)
    return Cam(index, maps)


def _rows(content: np.ndarray | dict, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Mask values and maps of any layout."""
    if isinstance(content, np.ndarray):
        if content.dtype.names != ("class_index", "cam") or content.ndim != 1:
            raise ValueError(f"an array {content.shape} of {content.dtype} is not a CAM file")
        return _class_index(content["class_index"]), content["cam"]
    if "keys" in content and "IS_CAM" in content:
        return _class_index(content["keys"]), content["IS_CAM"]
    if "keys" in content and "high_res" in content:
        return _irn_rows(np.asarray(content["keys"]), np.asarray(content["high_res"]))
    if all(isinstance(key, int | np.integer) and not isinstance(key, bool) for key in content):
        return _keyed_rows({int(key): item for key, item in content.items()}, label)
    raise ValueError(f"a dictionary with {_first_keys(content)} is no known CAM layout")


def _irn_rows(keys: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CAM-A: 0-based foreground keys; AMN's maps have the background first, its keys do not."""
    index = _class_index(keys.reshape(-1).astype(np.int64) + 1)
    if maps.ndim == 3 and len(maps) == len(index) + 1:
        index = np.concatenate([np.zeros(1, np.uint8), index])
    return index, maps


def _keyed_rows(content: dict[int, np.ndarray], label: Label) -> tuple[np.ndarray, np.ndarray]:
    """CAM-B (0-based, no background) or the CRF's dictionary (0 = background)."""
    keys = sorted(content)
    shift = 1 - int(_is_crf_layout(keys, label))
    maps = [np.asarray(content[key], np.float32) for key in keys]
    if any(item.ndim != 2 or item.shape != maps[0].shape for item in maps):
        raise ValueError("the maps are not (H, W), all of one size")
    stacked = np.stack(maps) if maps else np.zeros((0, 0, 0), np.float32)
    return _class_index(np.array(keys, np.int64) + shift), stacked


def _is_crf_layout(keys: list[int], label: Label) -> bool:
    """Whether integer keys count the background as 0; ValueError where that cannot be told."""
    if 0 not in keys:
        return False
    if label is None:
        raise ValueError(
            f"integer keys {keys} are a CAM or a CRF dictionary: only the image's label can tell"
        )
    label = label() if callable(label) else label
    present = np.flatnonzero(label).tolist()
    if keys in (present, list(range(len(label)))):
        return False
    if keys in ([0, *(k + 1 for k in present)], list(range(len(label) + 1))):
        return True
    raise ValueError(f"integer keys {keys} do not fit the image's label, classes {present}")


def _class_index(values: np.ndarray) -> np.ndarray:
    """Mask values as uint8; ValueError outside 0..254 (255 is "unknown")."""
    values = np.asarray(values).reshape(-1)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 254):
        raise ValueError(f"class indices {values.tolist()[:8]} are not integers in 0..254")
    return values.astype(np.uint8)


def _check(path: Path | str, index: np.ndarray, maps: np.ndarray) -> None:
    if maps.ndim != 3 or len(index) != len(maps):
        raise ValueError(f"{path}: {len(index)} classes with maps of shape {maps.shape}")
    if (np.diff(index.astype(np.int64)) <= 0).any():
        raise ValueError(f"{path}: class indices {index.tolist()} do not ascend")
    if not np.isfinite(maps).all():
        raise ValueError(f"{path}: a CAM has NaN or infinite values")


def _first_keys(content: dict) -> str:
    names = [repr(key) for key in list(content)[:4]]
    return f"keys {', '.join(names)}{', ...' if len(content) > 4 else ''}"


def best_foreground(cam: Cam) -> tuple[np.ndarray, np.ndarray]:
    """The best foreground class of each pixel, ties to the lower index.

    Returns:
        `score` (H, W) float32 and `class_index` (H, W) uint8; -inf and 0 where there is no class.
    """
    cam = cam.foreground()
    score = np.full(cam.size, -np.inf, np.float32)
    best = np.zeros(cam.size, np.uint8)
    for index, row in zip(cam.class_index, cam.cam, strict=True):
        better = row > score
        np.maximum(score, row, out=score)
        best[better] = index
    return score, best


def background_limit(cam: Cam, threshold: float) -> np.ndarray | np.float32:
    """What a foreground score must exceed: the background row (H, W) if any, else `threshold`.

    The threshold is rounded to float32, the type of the scores, so that a score that was stored as
    exactly 0.22 is not above 0.22.
    """
    return cam.cam[0] if cam.has_background else np.float32(threshold)


def cam_mask(cam: Cam, threshold: float) -> np.ndarray:
    """The mask (H, W) uint8 of a CAM without CRF (fbr.md, section 6).

    Foreground where the best class is above `threshold` (or above the CAM's own background row),
    ties to the background, then to the lower class index.
    """
    score, best = best_foreground(cam)
    return np.where(score > background_limit(cam, threshold), best, np.uint8(0))


def is_whole(path: Path | str) -> bool:
    """Whether a CAM file is there and readable, so that a restarted stage may skip it."""
    try:
        load_cam(path)
    except (FileNotFoundError, ValueError):
        return False
    return True
