"""CAM files: one writer, and one reader that also reads the layouts of other projects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tool.files import write_npy
from tool.formats.cam_layouts import TOLERANCE, Label, numbers, rows_of
from tool.formats.image import check_size, reduced_size
from tool.formats.npy import load_npy


@dataclasses.dataclass(frozen=True, eq=False)
class Cam:
    """The activation maps of one image.

    Attributes:
        class_index: (P,) uint8, ascending mask values; 0 (background) can only be the first.
        cam: (P, H, W) float32, finite, in [0, 1] if this project wrote the file. It may be float16
            before it is written. The shape is (0, 0, 0) if the file is an empty pickled dictionary,
            which has no size.
    """

    class_index: np.ndarray
    cam: np.ndarray

    @property
    def has_background(self) -> bool:
        """Return whether the first row is the background."""
        return bool(self.class_index.size) and int(self.class_index[0]) == 0

    @property
    def size(self) -> tuple[int, int]:
        """Return the size (H, W) of the maps."""
        return self.cam.shape[1], self.cam.shape[2]

    def foreground(self) -> Cam:
        """Return the CAM without its background row, if it has one."""
        first = int(self.has_background)
        return Cam(self.class_index[first:], self.cam[first:])


def at_size(cam: Cam, size: tuple[int, int]) -> Cam:
    """Return the CAM at the image's size, enlarged bilinearly if its maps were stored smaller.

    Maps that were stored with stride s, in 2..32, have ceil(H / s) x ceil(W / s) cells
    (`infer_cam.py --cam-stride`). Maps of a reduced image have the size that `reduced_size` gives
    (`--max-side`).

    Args:
        cam: The maps, at the image's size, at one of these strides or at a reduced size. A CAM
            without classes is returned unchanged.
        size: (H, W) of the image.

    Returns:
        The CAM, its maps (P, H, W).

    Raises:
        ValueError: The maps have another size.
    """
    check_maps(cam, size)
    return resized_cam(cam, size)


def resized_cam(cam: Cam, size: tuple[int, int]) -> Cam:
    """Return the CAM at another size (H, W): enlarged bilinearly, or reduced by means of areas.

    A CAM without classes is returned as it is.
    """
    if cam.size == size or not cam.class_index.size:
        return cam
    import cv2

    kind = cv2.INTER_AREA if cam.size[0] > size[0] else cv2.INTER_LINEAR
    flip = (size[1], size[0])  # OpenCV takes (W, H)
    maps = [cv2.resize(row, flip, interpolation=kind) for row in cam.cam]
    return Cam(cam.class_index, np.stack(maps))


def check_maps(cam: Cam, size: tuple[int, int], path: Path | str = "the CAM") -> None:
    """Check that the maps have a size that `at_size` can enlarge to the image's.

    Args:
        cam: The maps. A CAM without classes always passes.
        size: (H, W) of the image.
        path: The file, as the message names it.

    Raises:
        ValueError: The maps have neither the image's size, nor that of a stride in 2..32, nor a
            reduced size.
    """
    strided = any(cam.size == strided_size(size, stride) for stride in range(1, 33))
    # A size is a reduced one if reducing the image to its longer side gives it.
    if cam.class_index.size and not strided and cam.size != reduced_size(size, max(cam.size)):
        check_size(path, cam.size, "its image", size)


def strided_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Return the number of cells (h, w) of maps that store one value per `stride` pixels.

    Args:
        size: (H, W) of the image.
        stride: Pixels per cell along each side; a partial cell at the end counts as one.
    """
    return -(-size[0] // stride), -(-size[1] // stride)


def as_stored(cam: Cam, path: Path | str = "the CAM") -> Cam:
    """Return the CAM as `load_cam` reads it after `save_cam`, with values rounded to float16.

    Args:
        cam: The CAM.
        path: The file that it would have, as the message names it.

    Raises:
        ValueError: As `save_cam`.
    """
    with np.errstate(over="ignore"):  # a value beyond float16 is infinite, which `_check` refuses
        half = cam.cam.astype(np.float16, copy=False)
    _check(path, cam.class_index, half)
    return Cam(cam.class_index, half.astype(np.float32))


def save_cam(path: Path | str, cam: Cam) -> None:
    """Write a CAM in the native layout (float16), whole or not at all.

    Args:
        path: The `.npy` file.
        cam: The CAM to write.

    Raises:
        ValueError: The classes do not ascend, the shapes differ, or a value is NaN, infinite or
            beyond the range of float16.
    """
    _check(path, cam.class_index, cam.cam)
    with np.errstate(over="ignore"):
        half = cam.cam.astype(np.float16, copy=False)
    if not np.isfinite(half).all():
        raise ValueError(f"{path}: a CAM has a value beyond float16")
    dtype = np.dtype([("class_index", "u1"), ("cam", "<f2", cam.size)])
    rows = np.zeros(len(cam.class_index), dtype)
    rows["class_index"] = cam.class_index
    rows["cam"] = half
    write_npy(path, rows)


def load_cam(path: Path | str, *, label: Label = None) -> Cam:
    """Read a CAM in the native layout or in one of the field's pickled dictionaries.

    The dictionaries are CAM-A {keys, cam, high_res}, CAM-B {0-based class: map}, CAM-C {keys,
    IS_CAM}, and the CRF's {0: background, class: map}. CAM-B and the CRF's dictionary both have
    integer keys from 0. Only the image's label can tell them apart.

    Args:
        path: The `.npy` file.
        label: (K,) {0, 1}, or a function that returns it. The function is called only if the
            layout needs the label.

    Returns:
        The CAM, its maps float32 and within `TOLERANCE` of [0, 1].

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The layout is unknown, is ambiguous without `label` or disagrees with it, the
            classes do not ascend, a value is no number in [0, 1], or `load_npy` refuses the file.
    """
    content = load_npy(path)
    try:
        index, maps = rows_of(content, label)
        maps = numbers(maps)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a CAM file: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check(path, index, maps)
    _check_range(path, maps)
    return Cam(index, maps)


def _check_range(path: Path | str, maps: np.ndarray) -> None:
    """Raise `ValueError` if values lie outside [0, 1], since scores or bytes pass any threshold."""
    low, high = (float(maps.min()), float(maps.max())) if maps.size else (0.0, 0.0)
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise ValueError(
            f"{path}: the values of a CAM lie in [0, 1], these in [{low:g}, {high:g}]: set what is "
            "negative to 0, and divide each map by its maximum (bytes by 255)"
        )


def _check(path: Path | str, index: np.ndarray, maps: np.ndarray) -> None:
    """Check that there is one map per class, that classes ascend, and that values are finite."""
    if maps.ndim != 3 or len(index) != len(maps):
        raise ValueError(f"{path}: {len(index)} classes with maps of shape {maps.shape}")
    if (np.diff(index.astype(np.int64)) <= 0).any():
        raise ValueError(f"{path}: class indices {index.tolist()} do not ascend")
    if not np.isfinite(maps).all():
        raise ValueError(
            f"{path}: a CAM has NaN or infinite values: its network is damaged or diverged"
        )


def best_foreground(cam: Cam) -> tuple[np.ndarray, np.ndarray]:
    """Return the best foreground class of each pixel, and its score.

    If several classes have the best score, the lowest index wins.

    Returns:
        The score (H, W) float32, and the class index (H, W) uint8. They are -inf and 0 if the CAM
        has no foreground class.
    """
    cam = cam.foreground()
    # A running maximum needs no copy of the maps. `>` keeps the lower index of equal scores.
    score = np.full(cam.size, -np.inf, np.float32)
    best = np.zeros(cam.size, np.uint8)
    for index, row in zip(cam.class_index, cam.cam, strict=True):
        better = row > score
        np.maximum(score, row, out=score)
        best[better] = index
    return score, best


def background_limit(cam: Cam, threshold: float) -> np.ndarray | np.float32:
    """Return the limit that a foreground score must exceed.

    It is the background row if the CAM has one, else `threshold`. The threshold is rounded to
    float32, the type of the scores. So the float32 score nearest to 0.22 is not above 0.22.

    Returns:
        (H, W) float32 if there is a background row, else a scalar float32.
    """
    return cam.cam[0] if cam.has_background else np.float32(threshold)


def cam_mask(cam: Cam, threshold: float) -> np.ndarray:
    """Return the mask (H, W) uint8 of a CAM without a CRF.

    A pixel is foreground if its best class is above the background. The background is the CAM's own
    row if it has one, else `threshold`. Of equal scores the background wins, then the lower class
    index.

    Args:
        cam: The CAM.
        threshold: In [0, 1]; not used if the CAM has a background row.

    Source: FBR (TCSVT 2024), inference.
    """
    score, best = best_foreground(cam)
    return np.where(score > background_limit(cam, threshold), best, np.uint8(0))


def is_whole(path: Path | str) -> bool:
    """Return whether a CAM file exists and is readable, so that a restarted stage may skip it."""
    try:
        load_cam(path)
    except (FileNotFoundError, ValueError):
        return False
    return True
