"""`python -m data.convert_cams --cam-dir A --out B --to psa`: CAM files in another layout.

`psa` (PSA, SEAM, EPS, PPC): a pickled {0-based class: (H, W) float32}, without background.
`irn` (IRN, AMN, BES, SBE): a pickled {keys, cam at stride 4, high_res}; a background row is written
as AMN's. `sfc` (SIPE, SFC): a pickled {keys with 0, IS_CAM}; where there is no background row it is
1 - the best class. `native`: ours, out of any of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.catalog import add_dataset_flags, catalog_from
from tool.cli import Parser, run_stage
from tool.crf.post import post_of
from tool.files import locked, write_npy
from tool.formats.cam import Cam, Label, load_cam, save_cam
from tool.formats.predictions import require_files
from tool.provenance import claim


def main(argv: Sequence[str] | None = None) -> None:
    """Convert the files of a list, or all of a folder."""
    args = parse(argv)
    out, source = args.out.resolve(), args.cam_dir.resolve()
    if out.is_relative_to(source) or source.is_relative_to(out):
        raise ValueError(f"--out {args.out} and the folder of the CAMs overlap: choose another")
    images = list(images_of(args))
    with locked(args.out):
        made_from = {"layout": args.to, "cams": str(args.cam_dir.resolve())}
        post = post_of(args.cam_dir)
        if args.to == "sfc":  # has a background row, of which seeds are factors: those of SFC
            post = dataclasses.replace(post, seeds=(1.0, 0.5))
        claim(args.out, made_from, post=post.as_note())
        for image_id, label in tqdm(images, desc=args.to, mininterval=1.0):
            cam = load_cam(args.cam_dir / f"{image_id}.npy", label=label)
            WRITERS[args.to](args.out / f"{image_id}.npy", cam)
    print(f"{len(images)} CAMs in the layout {args.to} in {args.out}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(prog="data.convert_cams", description=__doc__)
    add = parser.add_argument
    add("--cam-dir", type=Path, required=True, help="folder of .npy files of any layout")
    add("--out", type=Path, required=True, help="folder for the converted files")
    add("--to", choices=tuple(WRITERS), required=True, help="layout to write")
    add_dataset_flags(parser)
    return parser.parse_args(argv)


def images_of(args: argparse.Namespace) -> Iterator[tuple[str, Label]]:
    """Yield image ids, each with a function that returns its label, or with None.

    There are labels if a dataset is named. They resolve integer keys from 0, which are ambiguous.

    Raises:
        FileNotFoundError: The folder has no .npy files, or one of the list is missing.
    """
    if args.root is None:
        paths = sorted(args.cam_dir.rglob("*.npy"))
        if not paths:
            raise FileNotFoundError(f"{args.cam_dir} has no .npy files (--cam-dir)")
        yield from ((path.relative_to(args.cam_dir).as_posix()[:-4], None) for path in paths)
        return
    catalog = catalog_from(args)
    ids = catalog.ids(args.list)
    require_files(args.cam_dir, ids, ".npy", what="CAMs", stage="infer_cam.py")
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
    array = np.empty((), object)
    array[()] = content
    write_npy(path, array, allow_pickle=True)


if __name__ == "__main__":
    run_stage(main)
