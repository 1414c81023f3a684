"""`infer_cam.py --max-side`: large photographs are reduced; their masks have their own size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FOLDER_IMAGES
from PIL import Image
from runs import Result, assert_refused, run
from test_argmax import CRF, data, files, given, infer
from untrained import SEGMENT

from data.catalog import open_catalog
from data.dataset import InferDataset
from tool.crf.post import max_side_of
from tool.formats.cam import Cam, at_size, cam_mask, check_maps, load_cam
from tool.formats.image import reduced, reduced_size
from tool.formats.mask import enlarged, load_mask
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views

pytestmark = pytest.mark.usefixtures("trial_methods")
SIDE = 60  # larger are all images but two
SMALL = [name for name, (_, size, _) in FOLDER_IMAGES.items() if max(size) <= SIDE]


def stage_3(flags: list[object], cam: Path, out: Path, *how: object) -> Result:
    root = flags[flags.index("--root") + 1]
    return run("crf_postprocess.py", *data(root), "--cam-dir", cam, "--out", out, *how)


@pytest.mark.parametrize("name", ["cam", SEGMENT])
def test_masks_have_their_own_size_in_one_pass_and_in_two(name, folder_root, tmp_path) -> None:
    flags = [*given(name, folder_root, tmp_path), "--max-side", SIDE]
    cam, crf, plain = (tmp_path / kind for kind in ("cam", "crf", "plain"))
    infer(flags, "--out", cam, "--masks", crf, "--argmax", plain, *CRF, "--crf-workers", 1)
    for folder, how in ((crf, CRF), (plain, ["--threshold", 0.22])):
        out = tmp_path / f"stage 3 {folder.name}"
        assert stage_3(flags, cam, out, "--workers", 1, *how).returncode == 0
        assert files(folder) == files(out)
    assert files(crf) != files(plain)
    for image_id, (_, (width, height), _) in FOLDER_IMAGES.items():
        rows = load_cam(cam / f"{image_id}.npy")
        assert rows.size == reduced_size((height, width), SIDE)
        for folder in (crf, plain):
            assert load_mask(folder / f"{image_id}.png").shape == (height, width)
        expected = enlarged(cam_mask(rows, 0.22), (height, width))
        np.testing.assert_array_equal(load_mask(plain / f"{image_id}.png"), expected)
    for folder in (cam, crf, plain):
        assert json.loads((folder / "made_from.json").read_text())["max_side"] == SIDE
    assert json.loads((out / "crf.json").read_text())["max_side"] == SIDE
    other = run("infer_cam.py", *flags[:-1], SIDE - 1, "--argmax", plain)
    assert_refused(other, "another max_side")
    truth = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    for folder in (cam, plain):
        assert run("eval_miou.py", "--pred-dir", folder, *truth).returncode == 0


def test_smaller_images_are_as_without_it(folder_root, tmp_path) -> None:
    flags = given(SEGMENT, folder_root, tmp_path)
    for folder, more in (("whole", []), ("reduced", ["--max-side", SIDE])):
        infer(flags, "--out", tmp_path / folder, *more)
    whole, less = (files(tmp_path / folder, ".npy") for folder in ("whole", "reduced"))
    assert len(SMALL) == 2
    assert {name for name in whole if whole[name] == less[name]} == {f"{s}.npy" for s in SMALL}
    assert "max_side" not in json.loads((tmp_path / "whole" / "made_from.json").read_text())


def test_the_crf_of_a_gpu_enlarges_too(folder_root, tmp_path, monkeypatch) -> None:
    flags = [*given("cam", folder_root, tmp_path), "--max-side", SIDE]
    infer(flags, "--out", tmp_path / "cam")
    more = [*CRF, "--workers", 1, "--backend", "torch"]
    assert stage_3(flags, tmp_path / "cam", tmp_path / "cpu", *more).returncode == 0
    monkeypatch.setattr("tool.crf.flags.pick_backend", lambda name: ("torch", "cpu:0"))
    assert stage_3(flags, tmp_path / "cam", tmp_path / "gpu", *more).returncode == 0
    assert files(tmp_path / "gpu") == files(tmp_path / "cpu")


def test_batches_are_of_images_whose_maps_have_one_size(folder_root) -> None:
    catalog = open_catalog("folder", folder_root)
    ids = ["a1", "b-4", "my photo", "2007_000032"]  # 80x64, 80x48, 72x48, 64x80
    dataset = InferDataset(catalog, ids, views=Views((1.0, 0.5), max_side=30))
    assert dataset.batches(range(4), 2) == [[0], [1], [2], [3]]
    assert [dataset[index]["size"] for index in range(4)] == [
        (24, 30),
        (18, 30),
        (20, 30),
        (30, 24),
    ]
    tiny = InferDataset(catalog, ids, views=Views(max_side=3))
    assert tiny.batches(range(4), 4) == [[0, 1, 2], [3]]
    views = dataset[0]["images"]
    assert [tuple(view.shape) for view in views] == [(3, 24, 30), (3, 12, 15)]
    photograph = catalog.read_image("a1").resize((30, 24), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
    assert torch.equal(views[0], expected)


def test_what_cannot_be_is_refused_in_one_line(folder_root, tmp_path) -> None:
    flags = [*given("cam", folder_root, tmp_path), "--max-side", SIDE, "--out", tmp_path / "cam"]
    assert_refused(run("infer_cam.py", *flags, "--cam-stride", 4), "--max-side", "--cam-stride")
    assert run("infer_cam.py", *flags[:-3], 0, *flags[-2:]).returncode == 2
    catalog = open_catalog("folder", folder_root)
    with pytest.raises(ValueError, match="--max-side"):
        InferDataset(
            catalog,
            ["a1"],
            views=Views(max_side=9),
            inputs=("image", "cam"),
            previous=PreviousOutputs({"cam": tmp_path}),
        )
    with pytest.raises(ValueError, match="not positive"):
        Views(max_side=0)
    (tmp_path / "made_from.json").write_text('{"max_side": "wide"}')
    with pytest.raises(ValueError, match="wide"):
        max_side_of(tmp_path)
    assert max_side_of(tmp_path / "none") is None


def test_the_note_brings_the_views_back() -> None:
    for views in (Views((0.5,), max_side=900), Views(sides=(16,), mirror=False, max_side=7)):
        assert Views.noted(json.loads(json.dumps(views.note()))) == views


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((3000, 4000), 1000, (750, 1000)),
        ((4000, 3000), 1000, (1000, 750)),
        ((375, 500), 500, (375, 500)),
        ((375, 500), None, (375, 500)),
        ((1, 5000), 100, (1, 100)),
        ((333, 500), 100, (67, 100)),
    ],
)
def test_reduced_sizes(size, longest, expected) -> None:
    assert reduced_size(size, longest) == expected
    image = Image.new("RGB", size[::-1])
    assert reduced(image, longest).size == expected[::-1]
    cam = Cam(np.array([1], np.uint8), np.zeros((1, *expected), np.float32))
    check_maps(cam, size)
    assert at_size(cam, size).size == size


def test_maps_of_other_proportions_are_refused() -> None:
    for size in ((750, 999), (751, 1000), (1000, 750), (3000, 4001), (6000, 8000)):
        cam = Cam(np.array([1], np.uint8), np.zeros((1, *size), np.float32))
        with pytest.raises(ValueError, match="its image is 4000x3000"):
            check_maps(cam, (3000, 4000))


def test_a_mask_is_enlarged_by_the_nearest_pixel() -> None:
    mask = np.array([[1, 2], [3, 255]], np.uint8)
    np.testing.assert_array_equal(enlarged(mask, (4, 6)), mask.repeat(2, 0).repeat(3, 1))
    assert enlarged(mask, (5, 3)).dtype == np.uint8
    assert enlarged(mask, (2, 2)) is mask
