"""The layouts of CAM files, this project's and those of others: which rows a file's content holds.

`tool.formats.cam` reads the file, checks the rows and makes a `Cam` of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TOLERANCE = 1e-2  # how far a value may lie outside [0, 1], for the rounding of other code
_LAYOUTS = "; python -m data.convert_cams --help describes the layouts that are read"
Label = np.ndarray | Callable[[], np.ndarray] | None


def rows_of(content: np.ndarray | dict, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask values and the maps of a file's content in any layout.

    Args:
        content: What `load_npy` returned.
        label: As for `load_cam`.

    Returns:
        (P,) uint8, and the maps, not checked yet.

    Raises:
        ValueError: The layout is unknown or does not fit the label.
    """
    # The native layout is a structured array.
    if isinstance(content, np.ndarray):
        if content.dtype.names != ("class_index", "cam") or content.ndim != 1:
            raise ValueError(
                f"an array {content.shape} of {content.dtype} is not a CAM file: it does not say "
                f"of which classes its maps are{_LAYOUTS}"
            )
        return _class_index(content["class_index"]), content["cam"]
    # CAM-C has mask values as keys, and CAM-A has 0-based foreground classes.
    if "keys" in content and "IS_CAM" in content:
        return _class_index(content["keys"]), content["IS_CAM"]
    if "keys" in content and "high_res" in content:
        return _irn_rows(np.asarray(content["keys"]), np.asarray(content["high_res"]))
    # CAM-B and the CRF's dictionary have integer keys. A bool is an int in Python and is no class.
    if all(isinstance(key, int | np.integer) and not isinstance(key, bool) for key in content):
        return _integer_rows({int(key): item for key, item in content.items()}, label)
    raise ValueError(f"a dictionary with {_first_keys(content)} is no CAM{_LAYOUTS}")


def numbers(values: object) -> np.ndarray:
    """Return maps as float32.

    Raises:
        ValueError: The type is not one of real numbers; it is text or complex, for example.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"maps of the type {array.dtype} are no CAM: its numbers are real")
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, which `load_cam` refuses
        return array.astype(np.float32, copy=False)


def _irn_rows(keys: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask values and the maps of CAM-A, which has 0-based foreground keys.

    AMN's maps begin with the background, which its keys leave out, so there is one map more.
    """
    index = _class_index(_class_index(keys).astype(np.int64) + 1)
    if maps.ndim == 3 and len(maps) == len(index) + 1:
        index = np.concatenate([np.zeros(1, np.uint8), index])
    return index, maps


def _integer_rows(content: dict[int, np.ndarray], label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask values and the maps of CAM-B or of the CRF's dictionary.

    CAM-B is 0-based and has no background, so its keys are shifted by 1. In the CRF's dictionary 0
    is the background.

    Raises:
        ValueError: The layout does not fit the label, or the maps differ in size.
    """
    keys = sorted(content)
    maps = [numbers(content[key]) for key in keys]
    if any(item.ndim != 2 or item.shape != maps[0].shape for item in maps):
        raise ValueError("the maps are not (H, W), all of one size")
    stacked = np.stack(maps) if maps else np.zeros((0, 0, 0), np.float32)
    shift = 1 - int(_is_crf_layout(keys, label, stacked))
    return _class_index(np.array(keys, np.int64) + shift), stacked


def _is_crf_layout(keys: list[int], label: Label, maps: np.ndarray) -> bool:
    """Return whether the integer keys of a dictionary are mask values, where 0 is the background.

    Args:
        keys: The keys, ascending.
        label: As for `load_cam`.
        maps: (P, H, W). They decide if the keys fit both layouts, as 0 and 1 do for an image of the
            first of two classes: the probabilities of a CRF sum to 1 at every pixel.

    Raises:
        ValueError: The label is needed and missing, or the keys do not fit it.
    """
    if 0 not in keys:
        _refuse_counted_from_1(keys, label)
        return False
    if label is None:
        raise ValueError(
            f"integer keys {keys} are a CAM or a CRF dictionary: only the image's label can tell"
        )
    label = label() if callable(label) else label
    present = np.flatnonzero(label).tolist()
    # Both layouts have either the present classes or all classes.
    is_cam = keys in (present, list(range(len(label))))
    is_crf = keys in ([0, *(k + 1 for k in present)], list(range(len(label) + 1)))
    if is_cam and is_crf:
        return bool(np.allclose(maps.sum(0), 1, atol=TOLERANCE))
    if not (is_cam or is_crf):
        raise ValueError(f"integer keys {keys} do not fit the image's label, classes {present}")
    return is_crf


def _refuse_counted_from_1(keys: list[int], label: Label) -> None:
    """Raise `ValueError` if keys without a 0 are the label's classes counted from 1.

    Every one of them would be taken for the class after it. Without a label nobody can tell.

    Args:
        keys: The keys, ascending.
        label: As for `load_cam`; one that does not exist or cannot be read counts as none.
    """
    try:
        label = label() if callable(label) else label
    except (FileNotFoundError, ValueError):
        return
    if label is None or not keys:
        return
    present = np.flatnonzero(label).tolist()
    if keys in ([k + 1 for k in present], list(range(1, len(label) + 1))):
        raise ValueError(
            f"integer keys {keys} are classes counted from 1, the image's label has {present} "
            "counted from 0: count them from 0, or add the background as 0"
        )


def _class_index(values: np.ndarray) -> np.ndarray:
    """Return mask values as uint8.

    Raises:
        ValueError: A value is not an integer in 0..254 (255 is "unknown").
    """
    values = np.asarray(values).reshape(-1)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 254):
        raise ValueError(f"class indices {values.tolist()[:8]} are not integers in 0..254")
    return values.astype(np.uint8)


def _first_keys(content: dict) -> str:
    """Return the first keys of a dictionary as text for a message."""
    names = [repr(key) for key in list(content)[:4]]
    return f"keys {', '.join(names)}{', ...' if len(content) > 4 else ''}"
