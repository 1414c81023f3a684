"""Runs for the tests of the report: CAMs and masks that are made, not trained."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from conftest import FOLDER_IMAGES

from data.catalog import Catalog, open_catalog
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import save_mask


def catalog_of(root: Path) -> Catalog:
    """The catalog of the dataset of `conftest.write_folder`."""
    return open_catalog("folder", root)


def write_run(root: Path, out: Path, *, shift: int = 0, plain: bool = False) -> Path:
    """Write a run: masks are the truth, `shift` pixels to the right; CAMs are blurred masks.

    `d6` has no foreground in its mask, so that it is the worst image.
    """
    catalog = catalog_of(root)
    for image_id in FOLDER_IMAGES:
        mask = np.roll(catalog.read_mask(image_id), shift, axis=1)
        if image_id == "d6":
            mask[:] = 0
        save_mask(out / "mask" / f"{image_id}.png", mask)
        index = np.flatnonzero(catalog.label(image_id)) + 1
        maps = [cv2.GaussianBlur((mask == k).astype(np.float32), (0, 0), 3) for k in index]
        if not maps:
            continue
        cam = Cam(index.astype(np.uint8), np.stack(maps))
        save_cam(out / "cam" / f"{image_id}.npy", cam)
        if plain:
            save_cam(out / "cam" / "plain" / f"{image_id}.npy", cam)
    config = {"method": "fbr", "batch_size": 4, "steps": 40}
    flags = {"dataset": "folder", "root": str(root), "list": "train", "method": "fbr"}
    (out / "config.json").write_text(json.dumps({"config": config, "flags": flags}))
    rows = [{"step": s, "loss": 2 - s / 40, "cls": 1.0, "images_per_s": 2.0} for s in (20, 40)]
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out
