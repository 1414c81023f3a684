"""`coco14.prepare`: lists, labels and masks out of annotations made here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from runs import assert_refused, run

import coco14
from coco14.annotations import ImageObjects, Object, draw_mask, read_annotations
from data.catalog import open_catalog
from tool.mask import load_mask

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data")) / "coco_mini"


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A rectangle as COCO's polygons; it covers the pixels left..right-1, top..bottom-1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(image: int, category: int, segmentation, *, area: float, crowd: int = 0) -> dict:
    return {
        "id": 7,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
    }


def image(split: str, number: int, width: int = 20, height: int = 12) -> dict:
    name = f"COCO_{split}2014_{number:012d}.jpg"
    return {"id": number, "file_name": name, "width": width, "height": height}


def runs_of(left: int, top: int, right: int, bottom: int) -> dict:
    """The same rectangle in a 20x12 image as COCO's uncompressed run lengths."""
    region = np.zeros((12, 20), np.uint8)
    region[top:bottom, left:right] = 1
    flat = region.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [12, 20], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "COCO"
    (root / "annotations").mkdir(parents=True)
    content = {
        "train": {
            "images": [image("train", 9), image("train", 3), image("train", 5)],
            "annotations": [
                annotation(9, 90, box(2, 2, 6, 6), area=16),
                annotation(9, 1, box(4, 4, 16, 10), area=72),
                annotation(9, 18, runs_of(0, 0, 20, 5), area=100, crowd=1),
                annotation(3, 13, box(0, 0, 20, 12), area=240),
            ],
        },
        "val": {"images": [image("val", 1)], "annotations": [annotation(1, 2, [], area=0)]},
    }
    for split, folder in coco14.SPLITS.items():
        (root / folder).mkdir()
        path = root / "annotations" / f"instances_{folder}.json"
        path.write_text(json.dumps(content[split]))
        for one in content[split]["images"]:
            size = (one["width"], one["height"])
            Image.new("RGB", size).save(root / folder / one["file_name"])
    return root


def prepare(root: Path, *flags: object):
    return run("coco14/prepare.py", "--root", root, "--workers", 1, "--partial", *flags)


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
    assert prepare(coco, "--overlap", overlap).returncode == 0
    catalog = open_catalog("coco14", coco)
    got = catalog.read_mask("COCO_train2014_000000000009")
    np.testing.assert_array_equal(got, expected_mask(overlap))
    assert (catalog.read_mask("COCO_train2014_000000000003") == 12).all()  # stop sign, COCO's 13
    assert (catalog.read_mask("COCO_val2014_000000000001") == 0).all()


def test_lists_labels_and_protocol(coco) -> None:
    result = prepare(coco)
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
    prepare(coco)
    folder = coco / "masks/train2014"
    broken, missing, kept = sorted(folder.glob("*.png"))
    time = kept.stat().st_mtime_ns
    broken.write_bytes(broken.read_bytes()[:40])
    missing.unlink()
    result = prepare(coco)
    assert "2 masks written, 1 were there" in result.stdout
    assert kept.stat().st_mtime_ns == time
    assert load_mask(broken).shape == load_mask(missing).shape == (12, 20)
    assert_refused(prepare(coco, "--overlap", "first"), "overlap", "masks/train2014")


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
    assert prepare(coco).returncode == 0
    (coco / "annotations/instances_train2014.json").unlink()
    assert_refused(prepare(coco), "instances_train2014.json")


def test_images_that_are_missing_or_of_another_size(coco) -> None:
    path = coco / "train2014/COCO_train2014_000000000009.jpg"
    Image.new("RGB", (12, 20)).save(path)
    assert_refused(prepare(coco), "COCO_train2014_000000000009", "12x20", "20x12")
    path.unlink()
    assert_refused(prepare(coco), "1 images of the lists", "COCO_train2014_000000000009")


BAD = {
    "no json": "{",
    "no images": "{}",
    "a list": "[]",
    "an unknown category": {"category_id": 12},
    "a category of another type": {"category_id": [1]},
    "an unknown image": {"image_id": 4},
    "no area": {"area": None},
    "two points": {"segmentation": [[1, 2, 3, 4]]},
    "an odd polygon": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "a huge polygon": {"segmentation": [[1, 2, 3e9, 4, 5, 6]]},
    "not a number": {"segmentation": [[1, 2, float("nan"), 4, 5, 6]]},
    "text": {"segmentation": "x"},
    "run lengths of another size": {"segmentation": {"size": [3, 3], "counts": [9]}},
    "run lengths too long": {"segmentation": {"size": [12, 20], "counts": [0, 2**31]}},
    "negative run lengths": {"segmentation": {"size": [12, 20], "counts": [-1, 241]}},
    "no run lengths": {"segmentation": {"size": [12, 20]}},
    "run lengths of text": {"segmentation": {"size": [12, 20], "counts": ["a"]}},
    "run lengths of nothing": {"segmentation": {"size": [12, 20], "counts": None}},
}


@pytest.mark.parametrize("what", BAD)
def test_bad_annotations_are_one_clear_line(coco, what: str) -> None:
    path, change = coco / "annotations/instances_train2014.json", BAD[what]
    if isinstance(change, dict):
        content = json.loads(path.read_text())
        content["annotations"][1] |= change
        path.write_text(json.dumps(content))
    else:
        path.write_text(change)
    assert_refused(prepare(coco))


def test_an_id_does_not_leave_the_root(coco) -> None:
    path = coco / "annotations/instances_train2014.json"
    path.write_text(path.read_text().replace("COCO_train2014_000000000009", "../../evil"))
    assert_refused(prepare(coco), "evil")


def test_compressed_run_lengths_give_the_same_mask() -> None:
    region = runs_of(3, 2, 9, 8)
    packed = coco_mask.frPyObjects(region, 12, 20)
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    masks = [
        draw_mask(ImageObjects("x", 12, 20, (Object(4, 36, False, form),)), overlap="small")
        for form in (region, packed, text, box(3, 2, 9, 8))
    ]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert masks[0].sum() == 4 * 36


@pytest.mark.skipif(not REAL.is_dir(), reason="no photographs here")
def test_real_annotations() -> None:
    images = read_annotations(REAL / "annotations/instances_val2014.json")
    assert len(images) == 43
    for one in images:
        mask = draw_mask(one, overlap="small")
        assert mask.shape == (one.height, one.width)
        assert set(np.unique(mask)) <= {0, *(each.value for each in one.objects)}
