"""`coco14.prepare`: lists, labels and masks out of annotations made here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from devkits import prepare_coco, write_coco
from PIL import Image
from runs import SMALL, assert_refused, run

import coco14
from coco14.annotations import draw_mask, read_annotations
from data.catalog import open_catalog
from tool.formats.mask import load_mask

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data")) / "coco_mini"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "COCO")


def expected_mask(overlap: str) -> np.ndarray:
    """Of image 9: toothbrush (80) and person (1) overlap, a crowd of dogs lies below."""
    mask = np.zeros((12, 20), np.uint8)
    mask[:5] = 255
    brush, person = np.s_[2:6, 2:6], np.s_[4:10, 4:16]
    boxes = [(brush, 80), (person, 1)]
    for place, value in boxes if overlap == "later" else boxes[::-1]:
        mask[place] = value
    return mask


@pytest.mark.parametrize("overlap", ["small", "later", "first"])
def test_masks_follow_the_overlap_rule(coco, overlap: str) -> None:
    assert prepare_coco(coco, "--overlap", overlap).returncode == 0
    catalog = open_catalog("coco14", coco)
    got = catalog.read_mask("COCO_train2014_000000000009")
    np.testing.assert_array_equal(got, expected_mask(overlap))
    assert (catalog.read_mask("COCO_train2014_000000000003") == 12).all()  # stop sign, COCO's 13
    assert (catalog.read_mask("COCO_val2014_000000000001") == 0).all()


def test_lists_labels_and_protocol(coco) -> None:
    result = prepare_coco(coco)
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("coco14", coco)
    three, five, nine = (f"COCO_train2014_{n:012d}" for n in (3, 5, 9))
    assert catalog.ids("train") == [three, nine]
    assert catalog.ids("train_all") == [three, five, nine]
    assert catalog.ids("val") == ["COCO_val2014_000000000001"]
    for labels in ("labels.csv", "cls_labels.npy"):
        catalog = open_catalog("coco14", coco, labels=coco / labels)
        assert np.flatnonzero(catalog.label(nine)).tolist() == [0, 16, 79]
        assert catalog.label(five).sum() == 0
    assert catalog.num_classes == 80
    protocol = json.loads((coco / "protocol.json").read_text())
    assert protocol["overlap"] == "small"
    assert protocol["lists"]["train"] == protocol["lists"]["train"] | {
        "images": 2,
        "official": 82_081,
    }


def test_a_restart_writes_only_what_is_missing(coco) -> None:
    prepare_coco(coco)
    folder = coco / "masks/train2014"
    broken, missing, kept = sorted(folder.glob("*.png"))
    time = kept.stat().st_mtime_ns
    broken.write_bytes(broken.read_bytes()[:40])
    missing.unlink()
    result = prepare_coco(coco)
    assert "2 masks written, 1 were there" in result.stdout
    assert kept.stat().st_mtime_ns == time
    assert load_mask(broken).shape == load_mask(missing).shape == (12, 20)
    assert_refused(prepare_coco(coco, "--overlap", "first"), "overlap", "masks/train2014")


def test_the_benchmarks_facts() -> None:
    assert len(coco14.CATEGORIES) == len(set(coco14.CLASS_NAMES)) == 80
    assert list(coco14.CATEGORIES) == sorted(coco14.CATEGORIES)
    assert coco14.MASK_VALUES[1] == 1
    assert coco14.MASK_VALUES[90] == 80
    assert coco14.LIST_SIZES["train_all"] + coco14.LIST_SIZES["val_all"] == 123_287


def test_the_whole_benchmark_is_wanted_unless_said(coco) -> None:
    result = run("coco14/prepare.py", "--root", coco, "--workers", 1)
    assert_refused(result, "train has 2 images, the benchmark 82081", "--partial")
    (coco / "annotations/instances_val2014.json").unlink()
    result = run("coco14/prepare.py", "--root", coco, "--workers", 1)
    assert_refused(result, "instances_val2014.json")
    assert prepare_coco(coco).returncode == 0
    (coco / "annotations/instances_train2014.json").unlink()
    assert_refused(prepare_coco(coco), "instances_train2014.json")


def test_images_that_are_missing_or_of_another_size(coco) -> None:
    path = coco / "train2014/COCO_train2014_000000000009.jpg"
    Image.new("RGB", (12, 20)).save(path)
    assert_refused(prepare_coco(coco), "COCO_train2014_000000000009", "12x20", "20x12")
    assert not (coco / "lists").exists()
    path.unlink()
    assert_refused(prepare_coco(coco), "image of 'COCO_train2014_000000000009'", "--root")


@pytest.mark.skipif(not REAL.is_dir(), reason="no photographs here")
def test_real_annotations() -> None:
    images = read_annotations(REAL / "annotations/instances_val2014.json")
    assert len(images) == 43
    for one in images:
        mask = draw_mask(one, overlap="small")
        assert mask.shape == (one.height, one.width)
        assert set(np.unique(mask)) <= {0, *(each.value for each in one.objects)}


def test_fbr_with_80_classes_goes_through_all_four_stages(coco, tmp_path) -> None:
    assert prepare_coco(coco).returncode == 0
    (coco / "saliency").mkdir()
    data = ["--dataset", "coco14", "--root", coco, "--list", "train"]
    for image_id in open_catalog("coco14", coco).ids("train"):
        Image.new("L", (20, 12), 200).save(coco / "saliency" / f"{image_id}.png")
    out = tmp_path / "run"
    small = ["--method", "fbr", "--bank-size", 300, "--num-negatives", 16, "--steps", 2, *SMALL]
    stages = [
        ("train_fbr.py", [*data, "--out", out, *small]),
        (
            "infer_cam.py",
            ["--checkpoint", out / "checkpoint.pth", *data, "--out", out / "cam", "--scales", 4],
        ),
        ("crf_postprocess.py", ["--cam-dir", out / "cam", *data, "--out", out / "mask"]),
        ("eval_miou.py", ["--pred-dir", out / "mask", *data, "--json", out / "miou.json"]),
    ]
    for script, flags in stages:
        result = run(script, *flags, *(["--workers", 1] if script.startswith("crf") else []))
        assert result.returncode == 0, result.stderr
    assert json.loads((out / "miou.json").read_text())["images"] == 2
    model = torch.load(out / "checkpoint.pth", weights_only=True)["model"]
    assert model["classifier.weight"].shape[0] == 81
