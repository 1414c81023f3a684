"""`infer_cam.py --with-labels`: a method that infers without labels, restricted by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import assert_refused, run
from untrained import SEGMENT, untrained

from data.catalog import open_catalog
from tool.formats.cam import load_cam
from tool.formats.mask import load_mask

pytestmark = pytest.mark.usefixtures("trial_methods")


def infer(root: Path, checkpoint: Path, *more: object):
    few = ["--scales", 1, "--num-workers", 0, "--device", "cpu"]
    data = ["--dataset", "folder", "--root", root, "--list", "train"]
    return run("infer_cam.py", "--checkpoint", checkpoint, *data, *few, *more)


def test_masks_have_the_best_of_the_present_classes(folder_root: Path, tmp_path: Path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    cams, free, bound = (tmp_path / name for name in ("cam", "free", "bound"))
    assert infer(folder_root, checkpoint, "--out", cams, "--argmax", free).returncode == 0
    assert infer(folder_root, checkpoint, "--argmax", bound, "--with-labels").returncode == 0
    catalog, changed = open_catalog("folder", folder_root), 0
    for image_id in catalog.ids("train"):
        cam = load_cam(cams / f"{image_id}.npy")
        rows = [0, *(catalog.label(image_id).nonzero()[0] + 1)]
        expected = np.array(rows)[cam.cam[rows].argmax(axis=0)]
        mask = load_mask(bound / f"{image_id}.png")
        assert np.array_equal(mask, expected)
        changed += not np.array_equal(mask, load_mask(free / f"{image_id}.png"))
    assert changed, "some image had an absent class"


def test_folders_with_and_without_labels_do_not_mix(folder_root: Path, tmp_path: Path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    out = tmp_path / "masks"
    assert infer(folder_root, checkpoint, "--argmax", out).returncode == 0
    assert_refused(infer(folder_root, checkpoint, "--argmax", out, "--with-labels"), "with_labels")


def test_a_method_that_reads_labels_refuses_the_flag(folder_root: Path, tmp_path: Path) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    result = infer(folder_root, checkpoint, "--argmax", tmp_path / "masks", "--with-labels")
    assert_refused(result, "--with-labels")
