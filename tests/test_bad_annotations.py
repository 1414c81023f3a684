"""`coco14.prepare` on damaged annotations: one line that names the file and the image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from devkits import image, prepare_coco, write_coco
from runs import assert_refused


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "COCO")


BAD_FILES = {
    "no json": "{",
    "no images": "{}",
    "a list": "[]",
    "no text": b"\xff\xfe",
    "images of text": '{"images": ["x"], "annotations": []}',
    "images by name": '{"images": {"x": 1}, "annotations": []}',
    "nested too deep": "[" * 100_000,
    "a number of 5000 digits": "9" * 5000,
}
BAD_ANNOTATIONS = {
    "an unknown category": {"category_id": 12},
    "a category of another type": {"category_id": [1]},
    "a category that is true": {"category_id": True},
    "an area of nothing": {"area": None},
    "an area of text": {"area": "16"},
    "an area that is true": {"area": True},
    "an area without end": {"area": float("inf")},
    "an area that is no number": {"area": float("nan")},
    "an area below zero": {"area": -1},
    "a huge area": {"area": 10**400},
    "a crowd of text": {"iscrowd": "0"},
    "an odd polygon": {"segmentation": [[1, 2, 3, 4, 5, 6, 7]]},
    "a huge polygon": {"segmentation": [[1, 2, 3e9, 4, 5, 6]]},
    "a huger polygon": {"segmentation": [[1, 2, 10**400, 4, 5, 6]]},
    "not a number": {"segmentation": [[1, 2, float("nan"), 4, 5, 6]]},
    "a coordinate that is true": {"segmentation": [[1, 2, True, 4, 5, 6]]},
    "a coordinate of text": {"segmentation": [[1, 2, "3", 4, 5, 6]]},
    "a polygon of polygons": {"segmentation": [[[1, 2]] * 6]},
    "a polygon too long": {"segmentation": [[-70, -70, 70, 70] * 20_000]},
    "text": {"segmentation": "x"},
    "no segmentation": {"segmentation": None},
    "packed run lengths of nothing": {"segmentation": {"size": [12, 20], "counts": ""}},
    "packed run lengths too short": {"segmentation": {"size": [12, 20], "counts": "0"}},
    "run lengths of another size": {"segmentation": {"size": [3, 3], "counts": [9]}},
    "run lengths of no size": {"segmentation": {"counts": [240]}},
    "run lengths too long": {"segmentation": {"size": [12, 20], "counts": [0, 2**31]}},
    "run lengths too short": {"segmentation": {"size": [12, 20], "counts": [0, 239]}},
    "negative run lengths": {"segmentation": {"size": [12, 20], "counts": [-1, 241]}},
    "broken run lengths": {"segmentation": {"size": [12, 20], "counts": [0.5, 239.5]}},
    "no run lengths": {"segmentation": {"size": [12, 20]}},
    "run lengths of text": {"segmentation": {"size": [12, 20], "counts": ["a"]}},
    "run lengths of nothing": {"segmentation": {"size": [12, 20], "counts": None}},
}
BAD_IMAGES = {
    "no id": {"id": None},
    "an id that is true": {"id": True},
    "a height without end": {"height": float("inf")},
    "a height that is no number": {"height": float("nan")},
    "no height": {"height": 0},
    "a width below zero": {"width": -20},
    "a width of text": {"width": "20"},
    "a width that is true": {"width": True},
    "a huge width": {"width": 10**400},
}


def change(coco: Path, what: str, number: int, fields: dict, split: str = "train") -> None:
    """Change the entry `number` of the `images` or the `annotations`."""
    path = coco / f"annotations/instances_{split}2014.json"
    content = json.loads(path.read_text())
    content[what][number] |= fields
    path.write_text(json.dumps(content))


def assert_untouched(coco: Path) -> None:
    assert sorted(path.name for path in coco.iterdir() if path.name != "masks") == [
        "annotations",
        "train2014",
        "val2014",
    ]
    assert not list(coco.glob("masks/*/*"))


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_annotations_is_named(coco, what: str) -> None:
    content = BAD_FILES[what]
    path = coco / "annotations/instances_train2014.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(prepare_coco(coco), str(path), "not a COCO instances file")
    assert_untouched(coco)


@pytest.mark.parametrize("short", [[], [5, 5], [5, 5, 6, 6]])
def test_polygons_of_fewer_than_three_points_are_left_out_and_counted(coco, short: list) -> None:
    assert prepare_coco(coco).returncode == 0
    masks = {path: path.read_bytes() for path in coco.glob("masks/*/*.png")}
    assert masks
    path = coco / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    polygons = next(one for one in content["annotations"] if isinstance(one["segmentation"], list))
    polygons["segmentation"].append(short)
    content["annotations"].append({**polygons, "id": 10**6, "segmentation": [short, short]})
    path.write_text(json.dumps(content))
    result = prepare_coco(coco, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert "left out polygons of fewer than three points: 3, of" in result.stdout
    protocol = json.loads((coco / "protocol.json").read_text())
    assert protocol["polygons_left_out"] == {"train": 3}
    assert {path: path.read_bytes() for path in masks} == masks


@pytest.mark.parametrize("what", BAD_ANNOTATIONS)
def test_bad_annotations_name_the_file_and_the_image(coco, what: str) -> None:
    change(coco, "annotations", 1, BAD_ANNOTATIONS[what])
    result = prepare_coco(coco)
    assert_refused(result, "instances_train2014.json", "COCO_train2014_000000000009")
    assert len(result.stderr.splitlines()[-1]) < 400
    assert_untouched(coco)


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_bad_images_are_named(coco, what: str) -> None:
    change(coco, "images", 1, BAD_IMAGES[what])
    assert_refused(prepare_coco(coco), "instances_train2014.json", "COCO_train2014_000000000003")
    assert_untouched(coco)


@pytest.mark.parametrize(
    "name", [None, 3, "", ".jpg", "a\nb.jpg", " a.jpg", "\ud800.jpg", "a\0.jpg", "../a.jpg"]
)
def test_file_names_that_no_list_can_hold(coco, name) -> None:
    change(coco, "images", 1, {"file_name": name})
    assert_refused(prepare_coco(coco), "instances_train2014.json", "file_name")


@pytest.mark.parametrize("number", [4, True, None, 10**400])
def test_an_annotation_of_no_image(coco, number) -> None:
    change(coco, "annotations", 1, {"image_id": number})
    assert_refused(prepare_coco(coco), "instances_train2014.json", "annotation")


def test_images_that_are_there_twice(coco) -> None:
    three, nine = (f"COCO_train2014_{n:012d}" for n in (3, 9))
    path = coco / "annotations/instances_train2014.json"
    content = path.read_text()
    for again in (f"{nine}.jpg", f"{nine}.png"):
        change(coco, "images", 1, {"file_name": again})
        assert_refused(prepare_coco(coco), str(path), "two images have the file name", nine)
    path.write_text(content)
    change(coco, "images", 1, {"id": 9})
    assert_refused(prepare_coco(coco), str(path), three, "the id 9 of", nine)
    path.write_text(content)
    change(coco, "images", 0, {"file_name": f"{nine}.jpg"}, split="val")
    assert_refused(prepare_coco(coco), str(path), "instances_val2014.json", "two images", nine)
    assert_untouched(coco)


@pytest.mark.parametrize("images", [[], [image("val", 1)]])
def test_a_split_with_nothing_to_list(coco, images: list) -> None:
    path = coco / "annotations/instances_val2014.json"
    path.write_text(json.dumps({"images": images, "annotations": []}))
    assert_refused(prepare_coco(coco), str(path), "no object")
    assert_untouched(coco)


def test_categories_of_another_data_set(coco) -> None:
    path = coco / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    for number, name, code in ((12, "stop sign", 2), (2, "car", 2), (13, "stop sign", 0)):
        content["categories"] = [{"id": 1, "name": "person"}, {"id": number, "name": name}]
        path.write_text(json.dumps(content))
        result = prepare_coco(coco)
        assert result.returncode == code
        assert code == 0 or f"category {number} is {name!r}" in result.stderr


def test_an_id_does_not_leave_the_root(coco) -> None:
    path = coco / "annotations/instances_train2014.json"
    path.write_text(path.read_text().replace("COCO_train2014_000000000009", "../../evil"))
    assert_refused(prepare_coco(coco), "evil")
