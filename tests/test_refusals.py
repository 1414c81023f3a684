"""What a command refuses is refused for its reason, before anything is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import eval_miou
from coco14.annotations import read_annotations
from data import boundary, convert_cams, folder, masks_to, saliency
from data.class_names import check_class_names
from data.labels import csv_rows
from data.transforms import RandomScale, TrainTransform
from network import export
from network.walk.random_walk import random_walk
from tool.crf.dense import PRESETS
from tool.crf.masking import MaskMaker
from tool.download import fetch
from tool.formats.cam import load_cam
from tool.formats.cvat import save_cvat
from tool.formats.labelme import load_labelme
from tool.formats.mask import load_mask
from tool.infer.flags import OutputFlags
from tool.report import seg, table


def image(**changes: Any) -> dict:
    return {"id": 7, "file_name": "a.jpg", "height": 4, "width": 4} | changes


def annotation(**changes: Any) -> dict:
    square = [[0, 0, 2, 0, 2, 2]]
    return {
        "id": 1, "image_id": 7, "category_id": 1, "area": 2.0, "segmentation": square,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"annotations": [annotation(area=float("nan"))]}, "has the area"),
        ({"annotations": [annotation(area="2")]}, "has the area '2'"),
        ({"annotations": [annotation(iscrowd=2)]}, "has iscrowd 2: 0 and 1 are possible"),
        ({"annotations": []}, "1 images and no object"),
        ({"images": [image(), image(file_name="b.jpg")]}, "has the id 7 of 'a'"),
        ({"images": [image(height=0)]}, "'a' is 4x0"),
        ({"images": [image(width=10**9)]}, "'a' is 1000000000x4"),
        ({"categories": [{"id": 1, "name": "dog"}]}, "category 1 is 'dog', in COCO 'person'"),
    ],
)
def test_coco_instances(tmp_path: Path, content: dict, words: str) -> None:
    path = tmp_path / "instances.json"
    whole = {"images": [image()], "annotations": [annotation()]}
    path.write_text(json.dumps(whole))
    assert len(read_annotations(path)) == 1
    path.write_text(json.dumps(whole | content))
    with pytest.raises(ValueError, match=words):
        read_annotations(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,class\na,cat\n", "must begin with the header 'image_id,classes', not with 'id,class'"),
        ("image_id,classes\na,cat,dog\n", "row 2 is not 'image_id,class;class': 'a,cat,dog'"),
        ("image_id,classes\n ,cat\n", "row 2 is not 'image_id,class;class'"),
        ("image_id,classes\na,cat\na,dog\n", "'a'"),
        ('image_id,classes\n"a,cat\n', "is not a CSV file"),
    ],
)
def test_rows_of_labels(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        csv_rows(tmp_path / "labels.csv")


@pytest.mark.parametrize("count", [0, 255])
def test_the_number_of_classes(count: int) -> None:
    with pytest.raises(ValueError, match=rf"here lists {count} classes: 1 to 254 are possible"):
        check_class_names([f"c{n}" for n in range(count)], Path("here"))


def test_a_class_that_the_class_file_lacks(folder_dataset: Path, capsys) -> None:
    (folder_dataset / "classes.txt").write_text("other\n")
    (folder_dataset / "lists" / "train.txt").unlink()
    with pytest.raises(ValueError, match=r"classes\.txt lacks .*, in labels\.csv"):
        folder.main(["--root", str(folder_dataset)])


def test_settings_that_no_method_has() -> None:
    with pytest.raises(ValueError, match="--window 4: an odd number of pixels"):
        boundary.Rules(window=4)
    with pytest.raises(ValueError, match=r"scale 2.0\.\.1.0: give the smaller factor first"):
        RandomScale(2.0, 1.0)
    with pytest.raises(ValueError, match="crop 0 is not a positive size"):
        TrainTransform(crop=0, resize=RandomScale(1.0, 2.0))
    with pytest.raises(argparse.ArgumentTypeError, match="'3/3' is not I/N with I below N"):
        saliency.shard("3/3")
    with pytest.raises(ValueError, match="steps -1 is negative"):
        random_walk(torch.zeros(1, 2, 2), torch.zeros(2, 2), radius=2, beta=1.0, steps=-1)
    with pytest.raises(ValueError, match="a seed needs a preset on labels"):
        MaskMaker(preset=PRESETS["psa80"], alpha=4.0, seeds=(0.3, 0.1))
    with pytest.raises(ValueError, match="give --out for CAMs, --masks or --argmax for masks"):
        OutputFlags()


def test_commands_refuse_before_they_read(tmp_path: Path) -> None:
    root = ["--dataset", "folder", "--root", str(tmp_path)]
    cases = [
        (
            masks_to.main,
            ["labelme", *root, "--pred-dir", "p", "--out", "a.zip"],
            "labelme is a",
        ),
        (masks_to.main, ["cvat", *root, "--pred-dir", "p", "--out", "a"], r"cvat is a \.zip file"),
        (export.main, ["c.pth", "--out", "a.pt"], r"must end in \.safetensors or"),
        (
            convert_cams.main,
            ["--cam-dir", str(tmp_path), "--to", "irn", "--out", "o"],
            r"has no \.npy files",
        ),
        (table.main, [str(tmp_path)], r"no METHOD-seedN/miou\.json in .*: run scripts/compare\.sh"),
    ]
    for main, argv, words in cases:
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            main(argv)
    assert list(tmp_path.iterdir()) == []


def test_the_curve_does_not_overwrite_the_figures(folder_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "cam").mkdir(exist_ok=True)
    for name in (folder_dataset / "lists" / "train.txt").read_text().splitlines():
        size = np.asarray(Image.open(folder_dataset / "masks" / f"{name}.png")).shape
        np.save(
            tmp_path / "cam" / f"{name}.npy",
            {"keys": np.array([1]), "cam": np.zeros((1, *size)), "high_res": np.zeros((1, *size))},
        )
    flags = ["--dataset", "folder", "--root", folder_dataset, "--list", "train", "--sweep"]
    flags += ["--pred-dir", tmp_path / "cam", "--json", tmp_path / "a.png"]
    with pytest.raises(ValueError, match=r"--sweep writes its curve there; name it \.json"):
        eval_miou.main([*map(str, flags)])
    assert not (tmp_path / "a.png").exists()


def test_classes_of_a_cam_ascend(tmp_path: Path) -> None:
    maps = np.ones((2, 3, 4), np.float32)
    for keys, words in (([5, 5], "do not ascend"), ([0.5, 2.0], r"are not integers in 0\.\.254")):
        np.save(tmp_path / "a.npy", {"keys": np.array(keys), "cam": maps, "high_res": maps})
        with pytest.raises(ValueError, match=words):
            load_cam(tmp_path / "a.npy")


def test_masks_of_other_programs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold the class 'a:b'"):
        save_cvat(tmp_path / "a.zip", [], ["a:b"])
    (tmp_path / "a.json").write_text(json.dumps({"shapes": [3]}))
    with pytest.raises(ValueError, match="3 is no shape"):
        load_labelme(tmp_path / "a.json", ["cat"], (4, 4))
    for kind in ("JPEG", "WEBP"):
        Image.new("L", (4, 4)).save(tmp_path / "a.png", kind)
        with pytest.raises(ValueError, match=f"{kind} changes class indices, a mask is a PNG"):
            load_mask(tmp_path / "a.png")


def test_a_folder_with_two_downloads(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="leave only the download there"):
        fetch.find(tmp_path, None)


def test_a_run_of_segmentation_has_a_name_and_a_score(tmp_path: Path) -> None:
    (tmp_path / "fbr-seed0").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no miou-val-crf\.json in .*: run script_seg\.sh"):
        seg.main([str(tmp_path / "fbr-seed0")])
