"""The baseline without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import fill
from data.toy import write_toy
from tool.formats.mask import load_mask


def test_fill_takes_the_lowest_class_above_one_half() -> None:
    saliency = np.array([[0, 127, 128, 255]], np.uint8)
    label = np.array([0, 1, 0, 1], np.float32)
    mask = fill.fill_mask(saliency, label)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 2, 2]]
    assert label.tolist() == [0, 1, 0, 1]


def test_image_without_a_class_stays_background() -> None:
    assert not fill.fill_mask(np.full((3, 4), 255, np.uint8), np.zeros(5)).any()


def test_command_writes_a_mask_for_every_image_of_the_list(tmp_path: Path) -> None:
    root, out = tmp_path / "toy", tmp_path / "out"
    write_toy(root, train=3, val=1)
    fill.main(["--dataset", "toy", "--root", str(root), "--list", "train", "--out", str(out)])
    ids = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    assert sorted(path.name for path in out.iterdir()) == [f"{image_id}.png" for image_id in ids]
    for image_id in ids:
        truth = load_mask(root / "SegmentationClassAug" / f"{image_id}.png")
        saliency = np.asarray(Image.open(root / "saliency" / f"{image_id}.png"))
        first = min(value for value in np.unique(truth) if value)
        mask = load_mask(out / f"{image_id}.png")
        assert np.array_equal(mask, np.where(saliency > 127.5, first, 0))


def test_missing_saliency_is_named(tmp_path: Path) -> None:
    root = tmp_path / "toy"
    write_toy(root, train=2, val=1)
    (root / "saliency" / "toy_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy_000001.*--saliency-root"):
        fill.main(["--root", str(root), "--out", str(tmp_path / "out")])
