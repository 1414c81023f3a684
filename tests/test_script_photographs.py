"""Own photographs in one command: folders of classes become masks, a report and a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FOLDER_IMAGES
from PIL import ExifTags, Image
from runs import REPOSITORY, run
from test_scripts import script

SMALL = "--crop 48 --batch-size 4 --num-workers 0 --picture-every 0 --device cpu"
SETTINGS = {"DATASET": "folder", "BACKBONE": "resnet38d_slim", "WEIGHTS": "none", "STEPS": 2}
SETTINGS |= {"SEG_BACKBONE": "resnet38d_slim", "SEG_WEIGHTS": "none", "SEG_STEPS": 2}
SETTINGS |= {"TRAIN_FLAGS": SMALL, "SEG_FLAGS": SMALL, "SEG_SCALES": 1, "SCALES": 1}


def calls_of(root: Path, folder: Path, **settings: object) -> list[str]:
    done, calls = script(
        "script_contrast.sh", folder, DATASET="folder", ROOT=root, OUT=folder / "out", **settings
    )
    assert done.returncode == 0, done.stderr
    return [" ".join(call) for call in calls]


def test_the_command_makes_labels_maps_masks_and_a_network(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "cat").mkdir(parents=True)
    calls = calls_of(root, tmp_path)
    programs = [call.split()[call.startswith("-m ")] for call in calls]
    stages = ["train_fbr.py", "infer_cam.py", "crf_postprocess.py", "data.report"]
    wanted = [
        "data.folder",
        "data.saliency",
        *stages,
        "train_fbr.py",
        "infer_cam.py",
        "data.report",
    ]
    assert [name for name in programs if name in wanted] == wanted
    assert f"--root {root} --list photographs --if-missing" in calls[1]
    trained = [call for call in calls if call.startswith("train_fbr.py")]
    assert all("--list train " in call for call in trained), "what came later is not trained on"
    inferred = [call for call in calls if call.startswith(("infer_cam.py", "crf_post"))]
    assert "--list photographs " in inferred[0]
    assert "--list photographs " in inferred[1]


def test_parts_of_the_command_can_be_left_out(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    calls = calls_of(root, tmp_path, SEG=0, METHOD="cam")
    assert not any("data.saliency" in call for call in calls)
    assert sum(call.startswith("train_fbr.py") for call in calls) == 1


def test_a_list_that_is_given_gets_the_masks(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    (root / "cls_labels.npy").write_bytes(b"labels in the field's layout")
    calls = calls_of(root, tmp_path, MASK_LIST="some", SEG=0)
    assert not any("data.folder" in call for call in calls)
    assert any("infer_cam.py" in call and "--list some " in call for call in calls)


def journey(root: Path, out: Path, **settings: object) -> str:
    given = {**SETTINGS, "ROOT": root, "OUT": out, "PYTHON_READY": sys.executable, **settings}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {k: str(v) for k, v in given.items()}
    command = ["bash", str(REPOSITORY / "scripts" / "script_contrast.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_folders_to_a_network_and_only_what_is_new(folder_root: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "Fotos für Anna", tmp_path / "out"
    for number, (name, (classes, _, suffix)) in enumerate(FOLDER_IMAGES.items()):
        for one in classes:
            path = root / one / f"Größe, {name}{suffix.upper() if number % 2 else suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((folder_root / "images" / f"{name}{suffix}").read_bytes())
    first = journey(root, out, METHOD="cam")
    assert "7 images, 3 classes" in first
    assert "7 masks" not in first
    made = sorted(path.relative_to(out / "mask") for path in (out / "mask").rglob("*.png"))
    assert len(made) == 7
    assert made[0].parent.name == "disc"
    for path in (out / "report.html", out / "seg" / "report.html"):
        assert path.is_file()
    network = out / "seg" / "checkpoint.pth"
    assert f"--checkpoint {network}" in first.splitlines()[-1]
    # One more photograph, taken upright.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(folder_root / "images" / "a1.jpg") as image:
        image.save(root / "disc" / "neu.JPG", "JPEG", exif=exif)
    times = {path: path.stat().st_mtime_ns for path in (network, out / "mask" / made[0])}
    again = journey(root, out, METHOD="cam")
    assert "1 photographs are new: disc/neu" in again
    assert again.count("is complete") == 2
    assert again.count("7 of 8 images are done, 1 to go") == 2
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with Image.open(out / "mask" / "disc" / "neu.png") as mask:
        assert mask.size == (64, 80)
    # A photograph without a label.
    flags = ["--checkpoint", network, "--out", tmp_path / "new", "--device", "cpu"]
    result = run("network/predict/__main__.py", root / "disc" / "neu.JPG", *flags)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "new" / "mask" / "neu.png").is_file()
