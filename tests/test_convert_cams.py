"""`data.convert_cams`: the field's code reads ours, ours reads what it wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs import assert_refused, run

from data.catalog import open_catalog
from tool.formats.cam import Cam, load_cam, save_cam

MAPS = np.random.default_rng(0).random((3, 9, 14)).astype(np.float16).astype(np.float32)


@pytest.fixture
def cams(tmp_path: Path, folder_root: Path) -> Path:
    """A native CAM of every image of the `folder` dataset."""
    catalog = open_catalog("folder", folder_root)
    for image_id in catalog.ids("train"):
        index = np.flatnonzero(catalog.label(image_id)).astype(np.uint8) + 1
        save_cam(tmp_path / "cam" / f"{image_id}.npy", Cam(index, MAPS[index - 1]))
    return tmp_path / "cam"


def convert(source: Path, out: Path, layout: str, *flags: object):
    return run("data/convert_cams.py", "--cam-dir", source, "--out", out, "--to", layout, *flags)


def field(path: Path) -> dict:
    """As the field's code opens its files."""
    return np.load(path, allow_pickle=True).item()


@pytest.mark.parametrize("layout", ["psa", "irn", "sfc"])
def test_there_and_back_again(cams, folder_root, tmp_path, layout: str) -> None:
    result = convert(cams, tmp_path / "there", layout)
    assert result.returncode == 0, result.stderr
    data = ["--dataset", "folder", "--root", folder_root]
    result = convert(tmp_path / "there", tmp_path / "back", "native", *data)
    assert result.returncode == 0, result.stderr
    for path in sorted(cams.glob("*.npy")):
        before, after = load_cam(path), load_cam(tmp_path / "back" / path.name).foreground()
        assert after.class_index.tolist() == before.class_index.tolist()
        if before.cam.size:
            np.testing.assert_array_equal(after.cam, before.cam)


def test_psa_is_a_dictionary_of_0_based_classes(cams, tmp_path) -> None:
    convert(cams, tmp_path / "psa", "psa")
    content = field(tmp_path / "psa" / "b-4.npy")  # disc and sky lark
    assert list(content) == [0, 2]
    assert all(type(key) is int and value.dtype == np.float32 for key, value in content.items())
    np.testing.assert_array_equal(content[2], MAPS[2])
    assert field(tmp_path / "psa" / "empty.npy") == {}


def test_irn_has_tensors_at_stride_4(cams, tmp_path) -> None:
    convert(cams, tmp_path / "irn", "irn")
    content = field(tmp_path / "irn" / "b-4.npy")
    assert content["keys"].dtype == torch.int64
    assert content["keys"].tolist() == [0, 2]
    assert np.pad(content["keys"] + 1, (1, 0), mode="constant").tolist() == [0, 1, 3]
    assert content["cam"].shape == (2, 3, 4)
    expected = F.interpolate(torch.from_numpy(MAPS[None]), (3, 4), mode="bilinear")[0, [0, 2]]
    assert torch.allclose(content["cam"], expected)
    np.testing.assert_array_equal(content["high_res"], MAPS[[0, 2]])
    assert field(tmp_path / "irn" / "empty.npy")["cam"].shape == (0, 3, 4)


def test_sfc_has_the_background_first(cams, tmp_path) -> None:
    convert(cams, tmp_path / "sfc", "sfc")
    content = field(tmp_path / "sfc" / "b-4.npy")
    assert content["keys"].tolist() == [0, 1, 3]
    np.testing.assert_array_equal(content["IS_CAM"][1:], MAPS[[0, 2]])
    np.testing.assert_array_equal(content["IS_CAM"][0], 1 - MAPS[[0, 2]].max(axis=0))
    assert (field(tmp_path / "sfc" / "empty.npy")["IS_CAM"] == 1).all()


@pytest.mark.parametrize(("layout", "channels"), [("psa", 2), ("irn", 3), ("sfc", 3)])
def test_a_background_row_goes_where_the_layout_has_one(tmp_path, layout, channels) -> None:
    cam = Cam(np.array([0, 1, 3], np.uint8), MAPS)
    save_cam(tmp_path / "cam" / "a.npy", cam)
    assert convert(tmp_path / "cam", tmp_path / "out", layout).returncode == 0
    content = field(tmp_path / "out" / "a.npy")
    maps = {"psa": list(content.values()), "irn": content.get("high_res")}
    maps["sfc"] = content.get("IS_CAM")
    np.testing.assert_array_equal(np.stack(list(maps[layout])), MAPS[-channels:])


def test_refusals(cams, folder_root, tmp_path) -> None:
    assert_refused(convert(tmp_path / "none", tmp_path / "out", "psa"), "none", "--cam-dir")
    for out in (cams, cams / "psa", cams.parent):
        assert_refused(convert(cams, out, "psa"), "--out", "overlap")
    assert convert(cams, tmp_path / "psa", "psa").returncode == 0
    assert_refused(convert(cams, tmp_path / "psa", "irn"), "layout", "--out")
    assert_refused(convert(tmp_path / "psa", tmp_path / "a", "native"), "label")
    (tmp_path / "psa" / "a1.npy").unlink()
    data = ["--dataset", "folder", "--root", folder_root]
    assert_refused(convert(tmp_path / "psa", tmp_path / "b", "native", *data), "a1", "infer_cam.py")
