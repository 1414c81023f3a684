"""`infer_cam.py --max-side`: large photographs are reduced; their masks have their own size."""

from __future__ import annotations

import json
import shutil
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
from data.layouts import LAYOUTS
from network.methods import build_method
from tool.crf.post import max_side_of
from tool.formats.cam import (
    Cam,
    at_size,
    cam_mask,
    check_maps,
    load_cam,
    resized_cam,
    save_cam,
    strided_size,
)
from tool.formats.image import MAX_SIDE, reduced, reduced_size
from tool.formats.mask import load_mask, resized, save_mask
from tool.infer.flags import ViewFlags
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views

pytestmark = pytest.mark.usefixtures("trial_methods")
SIDE = 60  # larger are all images but two
SMALL = [name for name, (_, size, _) in FOLDER_IMAGES.items() if max(size) <= SIDE]


def stage_3(flags: list[object], cam: Path, out: Path, *how: object) -> Result:
    root = flags[flags.index("--root") + 1]
    return run("crf_postprocess.py", *data(root), "--cam-dir", cam, "--out", out, *how)


@pytest.mark.parametrize(
    ("backbone", "limit"),
    [("resnet38d", 512), ("resnet38d_slim", MAX_SIDE), ("resnet50", MAX_SIDE)],
)
def test_a_wide_backbone_has_a_lower_limit_unless_the_user_says_otherwise(
    backbone: str, limit: int
) -> None:
    with torch.device("meta"):
        method = build_method(
            {
                "method": "cam",
                "backbone": backbone,
                "output_stride": 8 if "38" in backbone else 16,
                "num_classes": 2,
                "pretrained": False,
                "method_config": {},
            }
        )
    assert method.inference_views(ViewFlags(), max_side=MAX_SIDE).max_side == limit
    assert method.inference_views(ViewFlags(max_side=2000), max_side=MAX_SIDE).max_side == 2000
    assert method.inference_views(ViewFlags()).max_side is None, "a benchmark has no limit"


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
        expected = resized(cam_mask(rows, 0.22), (height, width))
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
    note = json.loads((tmp_path / "whole" / "made_from.json").read_text())
    assert note["max_side"] == MAX_SIDE, "the default of photographs of one's own"


def test_only_photographs_of_ones_own_are_reduced_by_default() -> None:
    sides = {name: layout.max_side for name, layout in LAYOUTS.items()}
    assert sides == dict.fromkeys(sides, None) | {"folder": MAX_SIDE}
    assert {"toy", "voc12", "coco14"} < set(sides)
    flags, views = ViewFlags(max_side=70), Views((0.5,))
    assert flags.changed(views, max_side=MAX_SIDE).max_side == 70
    assert ViewFlags().changed(views, max_side=MAX_SIDE).max_side == MAX_SIDE
    assert ViewFlags().changed(views).max_side is None


@pytest.fixture
def wide_root(folder_root: Path, tmp_path: Path) -> Path:
    """A dataset whose image a1 is longer than the default limit, and cheap all the same."""
    root = shutil.copytree(folder_root, tmp_path / "wide")
    for name, mode in (("images/a1.jpg", "RGB"), ("masks/a1.png", None)):
        with Image.open(root / name) as image:
            palette = image.getpalette()
            wide = (image.convert(mode) if mode else image).resize((1500, 40), 0)
        if palette and not mode:
            wide.putpalette(palette)
        wide.save(root / name)
    (root / "lists" / "train.txt").write_text("a1\nb-4\n")
    return root


@pytest.mark.parametrize("stride", [1, 3])
def test_by_default_a_large_photograph_is_reduced_in_all_stages(
    wide_root, tmp_path, stride
) -> None:
    """With a stride, which counts pixels of the photograph itself, stages 3 and 4 take the CAM."""
    flags = [*given("cam", wide_root, tmp_path), "--cam-stride", stride]
    cam, crf, out = (tmp_path / kind for kind in ("cam", "crf", "stage 3"))
    infer(flags, "--out", cam, "--masks", crf, *CRF, "--crf-workers", 1)
    own = (40, 1500)
    expected = reduced_size(own, MAX_SIDE) if stride == 1 else strided_size(own, stride)
    assert load_cam(cam / "a1.npy").size == expected
    assert stage_3(flags, cam, out, "--workers", 1, *CRF).returncode == 0
    assert files(crf) == files(out)
    assert load_mask(out / "a1.png").shape == own
    assert json.loads((out / "crf.json").read_text())["max_side"] == MAX_SIDE
    truth = ["--dataset", "folder", "--root", wide_root, "--list", "train"]
    result = run("eval_miou.py", "--pred-dir", cam, *truth)
    assert result.returncode == 0, result.stderr


def test_stage_3_reduces_foreign_cams_of_full_size(wide_root, tmp_path) -> None:
    random = np.random.default_rng(0)
    for image_id, size in (("a1", (40, 1500)), ("b-4", (48, 80))):
        rows = random.random((1, size[0] // 8, size[1] // 4), dtype=np.float32)
        save_cam(tmp_path / "cam" / f"{image_id}.npy", resized_cam(Cam(np.array([1]), rows), size))
    masks = {}
    for side in (None, 700, 5000):
        out = tmp_path / f"mask {side}"
        more = [] if side is None else ["--max-side", side]
        flags = ["--root", wide_root]
        result = stage_3(flags, tmp_path / "cam", out, "--workers", 1, *CRF, *more)
        assert result.returncode == 0, result.stderr
        assert json.loads((out / "crf.json").read_text())["max_side"] == (side or MAX_SIDE)
        masks[side] = load_mask(out / "a1.png")
        assert masks[side].shape == (40, 1500)
        assert len(np.unique(masks[side])) == 2
    assert not np.array_equal(masks[None], masks[5000])
    assert (masks[None] == masks[5000]).mean() > 0.9


def test_files_of_previous_stages_are_reduced_with_the_photograph(tmp_path) -> None:
    """A seed takes the nearest pixel, a CAM its cells; both files have the photograph's size."""
    seed = np.arange(24, dtype=np.uint8).reshape(4, 6) % 3
    save_mask(tmp_path / "a.png", seed.repeat(2, 0).repeat(2, 1))
    maps = np.random.default_rng(0).random((1, 8, 12), dtype=np.float32)
    save_cam(tmp_path / "a.npy", Cam(np.array([2]), maps))
    previous = PreviousOutputs({"seed": tmp_path, "cam": tmp_path})

    def read(whole: tuple[int, int], size: tuple[int, int]) -> dict[str, torch.Tensor]:
        more = {"label": lambda: np.ones(2), "num_classes": 2}
        return previous.read(("seed", "cam"), "a", whole=whole, size=size, **more)

    found = read((8, 12), (4, 6))
    np.testing.assert_array_equal(found["seed"].numpy(), seed)
    assert found["cam"].shape == (2, 1, 2)
    assert read((8, 12), (8, 12))["seed"].shape == (8, 12)
    for wrong in ((4, 6), (16, 24)):
        with pytest.raises(ValueError, match="its image"):
            read(wrong, (4, 6))


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
    assert tiny.batches(range(4), 4, stride=4) == [[0], [1], [2], [3]], "maps of other sizes"
    views = dataset[0]["images"]
    assert [tuple(view.shape) for view in views] == [(3, 24, 30), (3, 12, 15)]
    photograph = catalog.read_image("a1").resize((30, 24), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)
    assert torch.equal(views[0], expected)


def test_what_cannot_be_is_refused_in_one_line(folder_root, tmp_path) -> None:
    flags = [*given("cam", folder_root, tmp_path), "--max-side", SIDE, "--out", tmp_path / "cam"]
    assert run("infer_cam.py", *flags[:-3], 0, *flags[-2:]).returncode == 2
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
    np.testing.assert_array_equal(resized(mask, (4, 6)), mask.repeat(2, 0).repeat(3, 1))
    assert resized(mask, (5, 3)).dtype == np.uint8
    assert resized(mask, (2, 2)) is mask
