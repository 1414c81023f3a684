"""`infer_cam.py --argmax`: masks without a CRF, beside the others or alone, from one pass."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Result, assert_refused, run, run_ranks
from untrained import SEGMENT, untrained, without_labels

import infer_cam
from tool.formats.cam import as_stored, load_cam, save_cam
from tool.formats.mask import load_mask, save_mask
from tool.infer.multiscale import present_rows

pytestmark = pytest.mark.usefixtures("trial_methods")
CRF = ["--preset", "dlv2", "--iterations", 2]


def data(root: Path) -> list[object]:
    return ["--dataset", "folder", "--root", root, "--list", "train"]


def given(name: str, root: Path, folder: Path) -> list[object]:
    """The flags of a method with random weights, on a dataset with the labels that it needs."""
    if name == SEGMENT:
        root = without_labels(root, folder / "unlabelled")
    checkpoint = untrained(name, root, folder / "checkpoint.pth")
    few = ["--scales", 0.5, 1, "--num-workers", 0, "--device", "cpu", "--gate", "none"]
    return ["--checkpoint", checkpoint, *data(root), *few]


def infer(flags: list[object], *more: object) -> Result:
    result = run("infer_cam.py", *flags, *more)
    assert result.returncode == 0, result.stderr
    return result


def files(folder: Path, suffix: str = ".png") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"*{suffix}"))}


@pytest.mark.parametrize("name", ["cam", SEGMENT])
def test_one_pass_writes_what_stage_3_makes_of_the_cams(name, folder_root, tmp_path) -> None:
    flags = given(name, folder_root, tmp_path)
    cam, crf, plain = (tmp_path / kind for kind in ("cam", "crf", "plain"))
    more = [*CRF, "--crf-workers", 2]
    infer(flags, "--out", cam, "--masks", crf, "--argmax", plain, *more)
    root = flags[flags.index("--root") + 1]
    for folder, how in ((crf, CRF), (plain, ["--threshold", 0.22])):
        out = tmp_path / f"stage 3 {folder.name}"
        stage = [*data(root), "--cam-dir", cam, "--out", out, "--workers", 1, *how]
        assert run("crf_postprocess.py", *stage).returncode == 0
        assert len(files(folder)) == 8
        assert files(folder) == files(out)
    values = [np.unique(load_mask(path)) for path in plain.glob("*.png")]
    assert len(np.unique(np.concatenate(values))) > 1, "the masks say something"
    assert files(crf) != files(plain)
    if name == SEGMENT:
        for path in plain.glob("*.png"):
            rows = load_cam(cam / f"{path.stem}.npy")
            assert rows.class_index.tolist() == [0, 1, 2, 3]
            np.testing.assert_array_equal(load_mask(path), rows.cam.argmax(0))


def test_alone_and_beside_the_others_it_is_the_same(folder_root, tmp_path) -> None:
    flags = given(SEGMENT, folder_root, tmp_path)
    combinations = (["argmax"], ["argmax", "out"], ["argmax", "masks"])
    for number, kinds in enumerate(combinations):
        folders = [item for kind in kinds for item in (f"--{kind}", tmp_path / f"{kind}{number}")]
        infer(flags, *folders, *CRF, "--crf-workers", 1)
    assert len(files(tmp_path / "argmax0")) == 8
    assert files(tmp_path / "argmax0") == files(tmp_path / "argmax1") == files(tmp_path / "argmax2")
    assert len(files(tmp_path / "out1", ".npy")) == len(files(tmp_path / "masks2")) == 8
    assert not list((tmp_path / "argmax0").glob("*.npy"))


@pytest.mark.parametrize("kind", ["cam", "crf", "plain"])
def test_a_restart_completes_the_images_that_lack_any_file(kind, folder_root, tmp_path) -> None:
    flags = given("cam", folder_root, tmp_path)
    folders = {name: tmp_path / name for name in ("cam", "crf", "plain")}
    flags += ["--out", folders["cam"], "--masks", folders["crf"], "--argmax", folders["plain"]]
    flags += ["--crf-workers", 1, "--iterations", 1]
    infer(flags)
    kept = [path for folder in folders.values() for path in folder.glob("b-4.*")]
    assert len(kept) == 3
    before = [path.stat().st_ino for path in kept]
    (lost,) = folders[kind].glob("a1.*")
    content = lost.read_bytes()
    lost.unlink()
    (broken,) = folders[kind].glob("d6.*")
    broken.write_bytes(broken.read_bytes()[:60])
    assert "6 of 8 images are done, 2 to go" in infer(flags).stdout
    assert lost.read_bytes() == content
    assert [path.stat().st_ino for path in kept] == before
    assert "8 of 8 images are done" in infer(flags).stdout


def test_the_threshold_is_the_methods_or_the_flags_and_is_noted(folder_root, tmp_path) -> None:
    flags = given("cam", folder_root, tmp_path)
    infer(flags, "--argmax", tmp_path / "own", "--out", tmp_path / "cam")
    infer(flags, "--argmax", tmp_path / "high", "--threshold", 0.6)
    for folder, threshold in (("own", 0.22), ("high", 0.6)):
        note = json.loads((tmp_path / folder / "made_from.json").read_text())
        assert note["threshold"] == threshold
        assert "preset" not in note
        best = load_cam(tmp_path / "cam" / "d6.npy").cam.max(0)
        mask = load_mask(tmp_path / folder / "d6.png")
        np.testing.assert_array_equal(mask > 0, best > np.float32(threshold))
    again = run("infer_cam.py", *flags, "--argmax", tmp_path / "own", "--threshold", 0.6)
    assert_refused(again, "another threshold", str(tmp_path / "own"))
    infer(flags, "--argmax", tmp_path / "x", "--masks", tmp_path / "seed", "--seeds", 0.3, 0.05)
    assert files(tmp_path / "x") == files(tmp_path / "own"), "seeds are not its matter"


def test_what_cannot_be_is_refused_in_one_line(folder_root, tmp_path) -> None:
    flags = given("cam", folder_root, tmp_path)
    one, other = tmp_path / "one", tmp_path / "x" / ".." / "one"
    for first, second in (("--out", "--argmax"), ("--masks", "--argmax"), ("--out", "--masks")):
        refused = run("infer_cam.py", *flags, first, one, second, other)
        assert_refused(refused, "different folders")
    assert_refused(run("infer_cam.py", *flags), "--out", "--masks", "--argmax")
    save_mask(one / "a1.png", np.zeros((64, 80), np.uint8))
    assert_refused(run("infer_cam.py", *flags, "--argmax", one), "did not make (a1.png)")
    infer(flags, "--masks", tmp_path / "crf", "--iterations", 1, "--crf-workers", 1)
    assert_refused(run("infer_cam.py", *flags, "--argmax", tmp_path / "crf"), "preset")


def test_an_error_of_a_writer_ends_the_run(folder_root, tmp_path, monkeypatch) -> None:
    flags = given(SEGMENT, folder_root, tmp_path)
    real = infer_cam.infer_images

    def poisoned(*args: object, **more: object) -> list[dict]:
        return [{name: maps / 0 for name, maps in one.items()} for one in real(*args, **more)]

    monkeypatch.setattr(infer_cam, "infer_images", poisoned)
    refused = run("infer_cam.py", *flags, "--argmax", tmp_path / "x")
    assert_refused(refused, "NaN or infinite")
    assert not files(tmp_path / "x")


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(folder_root, tmp_path) -> None:
    flags = given("cam", folder_root, tmp_path)
    infer(flags, "--argmax", tmp_path / "one")
    two = ["--argmax", tmp_path / "two"]
    result = run_ranks(2, tmp_path / "texts", "infer_cam.py", *flags, *two)
    assert result.returncode == 0, result.stderr
    assert len(files(tmp_path / "one")) == 8
    assert files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("background", [False, True])
def test_rows_wait_for_the_writer_as_a_file_stores_them(background: bool, tmp_path) -> None:
    maps = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0.0, 1, 0, 1] if background else [0.0, 1, 0, 1, 0])
    wanted = [0, 2, 4] if background else [2, 4]
    for given_label, index in (
        (label, wanted),
        (None, list(range(not background, 5 + (not background)))),
    ):
        rows = present_rows(maps, given_label, has_background=background)
        assert rows.cam.dtype == np.float16
        assert rows.class_index.dtype == np.uint8
        assert rows.class_index.tolist() == index
        save_cam(tmp_path / "x.npy", rows)
        for same in (as_stored(rows), load_cam(tmp_path / "x.npy")):
            assert same.cam.dtype == np.float32
            expected = maps.numpy()[np.array(index) - (not background)]
            np.testing.assert_array_equal(same.cam, expected.astype(np.float16))
