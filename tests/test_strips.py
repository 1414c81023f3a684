"""`data.strips`: a picture of images of a run, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_refused, run

from data.catalog import open_catalog
from data.strips import spaced, stacked
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import save_mask
from tool.provenance import MADE_FROM, PLAIN


@pytest.fixture
def made(folder_root, tmp_path) -> tuple[Path, Path]:
    """Return a dataset and a run with CAMs, those before the gate, and masks of `train`."""
    catalog = open_catalog("folder", folder_root)
    for image_id in catalog.ids("train"):
        truth = np.asarray(catalog.read_mask(image_id))
        index = np.flatnonzero(catalog.label(image_id)) + 1
        maps = np.stack([truth == k for k in index]) if index.size else np.zeros((0, *truth.shape))
        maps = maps.astype(np.float32)
        save_cam(tmp_path / "run" / "cam" / f"{image_id}.npy", Cam(index, maps))
        save_cam(tmp_path / "run" / "cam" / PLAIN / f"{image_id}.npy", Cam(index, maps * 0.8))
        save_mask(tmp_path / "run" / "mask" / f"{image_id}.png", truth.astype(np.uint8))
    for folder in ("cam", f"cam/{PLAIN}"):
        (tmp_path / "run" / folder / MADE_FROM).write_text("{}")
    return folder_root, tmp_path / "run"


def strips(root: Path, folder: Path, out: Path, *flags: object):
    data = ["--dataset", "folder", "--root", root, "--list", "train"]
    return run("data/strips.py", folder, *data, "--side", 40, "--out", out, *flags)


def test_a_row_has_a_panel_per_map_mask_and_truth(made, tmp_path) -> None:
    root, folder = made
    out = tmp_path / "picture.png"
    result = strips(root, folder, out, "--ids", "a1", "my photo", "empty")
    assert result.returncode == 0, result.stderr
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # image, CAM, gate, gated CAM, mask, truth; the image without a class has three of them
    assert pixels.shape[1] == 6 * 40
    rows = np.array_split(pixels[: 3 * ((len(pixels) + 4) // 3) - 4], [62, 124])
    assert (rows[2][:, 3 * 40 :] == 255).all()
    assert (rows[0][:, 5 * 40 :] != 255).any()
    # mask and truth are the same here
    panels = [rows[0][20:58, i * 40 : (i + 1) * 40] for i in range(6)]
    np.testing.assert_array_equal(panels[4], panels[5])
    assert np.abs(panels[0] - panels[1]).max() > 20


def test_without_the_cams_before_the_gate_there_is_one_map(made, tmp_path) -> None:
    root, folder = made
    for path in (folder / "cam" / PLAIN).iterdir():
        path.unlink()
    (folder / "cam" / PLAIN).rmdir()
    out = tmp_path / "picture.png"
    assert strips(root, folder, out, "--count", 2).returncode == 0
    with Image.open(out) as picture:
        assert picture.width == 4 * 40


def test_refusals(made, tmp_path) -> None:
    root, folder = made
    out = tmp_path / "picture.png"
    assert_refused(strips(root, folder, out, "--ids", "nobody"), "--ids nobody", "no such image")
    (folder / "mask" / "a1.png").unlink()
    assert_refused(strips(root, folder, out, "--ids", "a1"), "a1.png", "crf_postprocess.py")
    assert not out.exists()


@pytest.mark.parametrize(("length", "count"), [(240, 3), (1, 3), (2, 2), (7, 7), (10, 1)])
def test_places_are_evenly_spaced(length: int, count: int) -> None:
    places = spaced(length, count)
    assert len(places) == len(set(places)) == min(length, count)
    assert all(0 <= place < length for place in places)
    assert places[0] == pytest.approx(length - 1 - places[-1], abs=1)


def test_rows_of_any_width_lie_below_each_other() -> None:
    rows = [np.zeros((5, width, 3), np.uint8) for width in (10, 4)]
    page = stacked(rows, 10)
    assert page.shape == (5 + 4 + 5, 10, 3)
    assert (page[9:, 4:] == 255).all()
    assert not page[9:, :4].any()
