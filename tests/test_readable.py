"""`--skip-bad-images`: every stage leaves the same images out, counts and lists them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_refused, run, train_flags

BROKEN = "2007_000032"


@pytest.fixture
def damaged(folder_dataset: Path) -> Path:
    """A dataset with a truncated JPEG."""
    path = folder_dataset / "images" / f"{BROKEN}.jpg"
    path.write_bytes(path.read_bytes()[:400])
    return folder_dataset


def test_the_chain_goes_through_with_the_flag_and_stops_without(damaged, tmp_path) -> None:
    out = tmp_path / "out"
    train = train_flags(damaged, out, method="eps", steps=2)
    assert_refused(run("train_fbr.py", *train), f"{BROKEN}.jpg")
    result = run("train_fbr.py", *train, "--skip-bad-images")
    assert result.returncode == 0, result.stderr
    assert f"skipped {BROKEN}: " in result.stderr
    assert "1 of 8 images skipped" in result.stderr
    data = ["--dataset", "folder", "--root", damaged, "--list", "train"]
    infer = ["--checkpoint", out / "checkpoint.pth", *data, "--out", out / "cam", "--scales", 1]
    infer += ["--num-workers", 0, "--device", "cpu"]
    crf = ["--cam-dir", out / "cam", *data, "--out", out / "mask", "--workers", 1]
    score = ["--pred-dir", out / "mask", *data, "--json", out / "miou.json"]
    for script, flags in (
        ("infer_cam.py", infer),
        ("crf_postprocess.py", crf),
        ("eval_miou.py", score),
    ):
        assert_refused(run(script, *flags), BROKEN)
        result = run(script, *flags, "--skip-bad-images")
        assert result.returncode == 0, result.stderr
        assert "1 of 8 images skipped" in result.stderr
    assert len(list((out / "mask").glob("*.png"))) == 7


def test_what_a_stage_reads_counts(folder_dataset, tmp_path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder_dataset / "saliency" / "a1.png")
    (folder_dataset / "images" / "c5.jpg").unlink()
    data = ["--dataset", "folder", "--root", folder_dataset, "--skip-bad-images"]
    result = run("data/fill.py", *data, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "skipped a1: " in result.stderr
    assert "skipped c5: " in result.stderr
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_a_list_without_a_good_image_is_refused(folder_dataset, tmp_path) -> None:
    for path in (folder_dataset / "images").iterdir():
        path.write_bytes(b"")
    flags = train_flags(folder_dataset, tmp_path, method="cam", steps=1)
    assert_refused(run("train_fbr.py", *flags, "--skip-bad-images"), "none of the 8 images")
