"""The papers' networks at their real crop: a few steps and one photograph, on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import run

from network.methods import find_method
from tool.formats.mask import load_mask, save_mask


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A dataset of one photograph of VOC's size."""
    root = tmp_path / "dataset"
    for folder in ("images", "lists"):
        (root / folder).mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    Image.fromarray(noise).save(root / "images" / "one.png")
    mask = np.zeros((375, 500), np.uint8)
    mask[100:250, 100:300] = 2
    save_mask(root / "masks" / "one.png", mask)
    (root / "lists" / "train.txt").write_text("one\n")
    (root / "classes.txt").write_text("cat\ncow\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "backbone"), [("deeplab2", "resnet101"), ("deeplab1", "resnet38d")]
)
def test_three_steps_and_a_mask(method: str, backbone: str, photograph: Path, tmp_path) -> None:
    recipe, out = find_method(method).recipe, tmp_path / "run"
    assert recipe.backbone == backbone
    data = ["--dataset", "folder", "--root", photograph, "--list", "train"]
    network = ["--backbone", backbone, "--weights", "none", "--device", "cpu"]
    few = ["--steps", 3, "--batch-size", 1, "--accumulate", 1, "--log-every", 1]
    few += ["--num-workers", 0, "--picture-every", 0, "--mask-dir", "truth", "--out", out]
    result = run("train_fbr.py", "--method", method, *data, *network, *few)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["crop"], config["output_stride"]) == (recipe.crop, 8)
    more = ["--checkpoint", out / "checkpoint.pth", "--scales", 1, "--no-mirror"]
    result = run("infer_cam.py", *data, *more, "--argmax", tmp_path / "mask", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    mask = load_mask(tmp_path / "mask" / "one.png")
    assert mask.shape == (375, 500)
    assert mask.max() <= 2
