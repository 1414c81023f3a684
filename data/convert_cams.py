"""Convert CAM files to the layout of another codebase, or to this project's own.

Without --root every file of the folder is converted. With it the files of the list are, and its
labels resolve keys that are ambiguous.

`psa` (PSA, SEAM, EPS, PPC) is a pickled {0-based class: (H, W) float32}, without background. `irn`
(IRN, AMN, BES, SBE) is a pickled {keys, cam at stride 4, high_res}; a background row is written as
AMN's. `sfc` (SIPE, SFC) is a pickled {keys with 0, IS_CAM}; without a background row it is 1 - the
best class. `native` is this project's own layout.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.flags import DatasetFlags, catalog_from
from tool.bar import counted
from tool.cli import run_stage
from tool.crf.post import post_of
from tool.files import locked, spelled, write_npy
from tool.flags import flag, parse_flags
from tool.formats.cam import Cam, Label, load_cam, save_cam
from tool.formats.predictions import require_files
from tool.provenance import POST, claim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        cam_dir: Folder of .npy files of any layout.
        out: Folder that receives the converted files.
        to: Layout to write: psa, irn or sfc, as the released code of these methods reads it, or
            native, this project's own.
    """

    data: DatasetFlags
    cam_dir: Path
    out: Path
    to: str = flag(choices=lambda: tuple(WRITERS))


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the files of a list, or all of a folder."""
    command = parse_flags(
        Command, argv, example="--cam-dir out/toy-fbr-seed0/cam --to irn --out out/for-irn"
    )
    out, source, layout = command.out.resolve(), command.cam_dir.resolve(), command.to
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise ValueError(f"--out {command.out} and the folder of the CAMs overlap: choose another")
    images = list(images_of(command))
    with locked(out):
        post = post_of(source)
        if layout == "sfc":  # has a background row, of which seeds are factors: those of SFC
            post = dataclasses.replace(post, seeds=(1.0, 0.5))
        made_from = {"layout": layout, "cams": str(source)}
        claim(out, made_from, remarks={POST: post.as_note()})
        for image_id, label in counted(images, len(images), layout, unit="image"):
            cam = load_cam(spelled(source, f"{image_id}.npy"), label=label)
            WRITERS[layout](out / f"{image_id}.npy", cam)
    print(f"{len(images)} CAMs in the layout {layout} in {command.out}")


def images_of(command: Command) -> Iterator[tuple[str, Label]]:
    """Yield image ids, each with a function that returns its label, or with None.

    There are labels if a dataset is named. They resolve integer keys from 0, which are ambiguous.

    Raises:
        FileNotFoundError: The folder has no .npy files, or one of the list is missing.
    """
    folder = command.cam_dir
    if command.data.root is None:
        paths = sorted(folder.rglob("*.npy"))
        if not paths:
            raise FileNotFoundError(f"{folder} has no .npy files (--cam-dir)")
        yield from ((path.relative_to(folder).as_posix()[:-4], None) for path in paths)
        return
    catalog, name = catalog_from(command.data)
    ids = catalog.ids(name)
    require_files(folder, ids, ".npy", what="CAMs", stage="infer_cam.py")
    yield from ((image_id, functools.partial(catalog.label, image_id)) for image_id in ids)


def save_psa(path: Path, cam: Cam) -> None:
    """Write a CAM in the layout `psa` (CAM-B), without a background row."""
    rows = cam.foreground()
    _save(path, {int(i) - 1: m for i, m in zip(rows.class_index, rows.cam, strict=True)})


def save_irn(path: Path, cam: Cam) -> None:
    """Write a CAM in the layout `irn` (CAM-A).

    Keys and small maps are torch tensors, as other code expects; the full-size maps are an array.
    """
    import torch
    import torch.nn.functional as F

    height, width = cam.size
    maps = torch.from_numpy(np.ascontiguousarray(cam.cam))
    size = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    small = maps.new_zeros((0, *size))
    if len(maps):
        small = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    keys = torch.from_numpy(cam.foreground().class_index.astype(np.int64) - 1)
    _save(path, {"keys": keys, "cam": small, "high_res": cam.cam})


def save_sfc(path: Path, cam: Cam) -> None:
    """Write a CAM in the layout `sfc` (CAM-C), with the background in the first row."""
    maps = cam.cam
    if not cam.has_background:
        best = maps.max(axis=0, initial=0.0)
        maps = np.concatenate([1 - best[None], maps])
    keys = np.concatenate([[0], cam.foreground().class_index]).astype(np.int64)
    _save(path, {"keys": keys, "IS_CAM": maps})


WRITERS: dict[str, Callable[[Path, Cam], None]] = {
    "psa": save_psa,
    "irn": save_irn,
    "sfc": save_sfc,
    "native": save_cam,
}


def _save(path: Path, content: dict[Any, Any]) -> None:
    write_npy(path, np.array(content, object), allow_pickle=True)


if __name__ == "__main__":
    run_stage(main)
