"""Background regions (NROIs) of images, and class prototypes: the file `nroi.npz` of the gate."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tool.documents import parsed
from tool.files import ZIP_DATE, as_json, atomic_path, zip_errors
from tool.formats.npy import MALFORMED, parse
from tool.limits import raise_if_limit

REGIONS = "nroi.npz"  # in a run directory
_ARRAYS = {"owner": ("int64", 1), "region": ("float32", 2), "prototype": ("float32", 2)}
_ABOUT = "about"  # UTF-8 JSON: the image ids, and what the file is made from
_BROKEN = (*MALFORMED, OSError)


@dataclasses.dataclass(frozen=True)
class Regions:
    """The NROIs of n images, and one prototype per class.

    Attributes:
        image_ids: The ids of the n images.
        owner: (R,) int64, the index of the image of each NROI; R is at least 1.
        region: (R, D) float32, the embedding of each NROI, of norm 1.
        prototype: (K, D) float32, the embedding of each class, of norm 1; zeros for a class that
            no image has.
    """

    image_ids: list[str]
    owner: np.ndarray
    region: np.ndarray
    prototype: np.ndarray


def save_regions(path: Path, regions: Regions, made_from: Mapping[str, Any]) -> None:
    """Write regions and a note of what they are made from, whole or not at all.

    Args:
        path: The `.npz` file. Equal content gives equal bytes.
        regions: The regions.
        made_from: The note; values that JSON does not know are stored as text.

    Raises:
        OSError: The file could not be written.
    """
    about = json.dumps({"image_ids": regions.image_ids, "made_from": as_json(dict(made_from))})
    arrays = {name: getattr(regions, name) for name in _ARRAYS}
    arrays[_ABOUT] = np.frombuffer(about.encode(), np.uint8)
    # `np.savez` would write the time into the archive, so each entry is written with a fixed date.
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", ZIP_DATE), content.getvalue())


def load_regions(path: Path, made_from: Mapping[str, Any]) -> tuple[Regions, dict[str, Any]]:
    """Read regions, after checking that they are made from what is expected.

    Args:
        path: The file.
        made_from: Entries that its note must have; the note may have others too.

    Returns:
        The regions and the whole note.

    Raises:
        ValueError: The file is missing, damaged or foreign, or made from something else; names what
            differs.
    """
    regions, noted = read_regions(path)
    differ = differing(noted, made_from)
    if differ:
        raise ValueError(
            f"{path} differs in {', '.join(differ)} from this run: remove it, and infer_cam.py "
            "makes it anew"
        )
    return regions, noted


def differing(noted: Mapping[str, Any], made_from: Mapping[str, Any]) -> list[str]:
    """Return the names in `made_from` whose values in a note differ or are missing."""
    wanted = as_json(dict(made_from))
    return [name for name in wanted if wanted[name] != noted.get(name)]


def read_regions(path: Path) -> tuple[Regions, dict[str, Any]]:
    """Read the regions of a file, and the note of what they are made from.

    Raises:
        ValueError: The file is missing, damaged or foreign; names it.
    """
    try:
        # The entries are stored uncompressed, so a file cannot unpack to more than its size.
        with zip_errors(), zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
            if len(set(archive.namelist())) < len(archive.namelist()):
                raise ValueError("it has an entry twice")
            # Our reader, because NumPy's takes the memory that an entry announces.
            entries = {name: parse(archive.read(f"{name}.npy")) for name in (*_ARRAYS, _ABOUT)}
        arrays = {name: np.array(entries[name]) for name in _ARRAYS}
        about = parsed(bytes(entries[_ABOUT]), {"image_ids": [str], "made_from": dict})
        regions = Regions(about["image_ids"], **arrays)
        _check(regions)
        return regions, about["made_from"]
    except _BROKEN as error:
        raise_if_limit(error)
        raise ValueError(
            f"{path} is no whole file of regions ({error}): remove it, and infer_cam.py makes it "
            "anew"
        ) from error


def _check(regions: Regions) -> None:
    """Raise `ValueError` unless the types, shapes and values of regions fit each other."""
    for name, (kind, axes) in _ARRAYS.items():
        array = getattr(regions, name)
        if array.dtype != kind or array.ndim != axes:
            raise ValueError(f"{name} is {array.shape} {array.dtype}")
        if axes == 2 and not np.isfinite(array).all():
            raise ValueError(f"{name} has values that are not finite")
    rows, width = regions.region.shape
    if rows < 1 or len(regions.owner) != rows or regions.prototype.shape[1] != width:
        raise ValueError("its arrays do not fit each other")
    if regions.owner.min() < 0 or regions.owner.max() >= len(regions.image_ids):
        raise ValueError("a region has no image")
