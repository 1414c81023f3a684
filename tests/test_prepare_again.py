"""`prepare` again, killed, on a full disk: nothing mixed or lost, and `protocol.json` is true."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from devkits import annotation, box, prepare_coco, prepare_voc, write_coco, write_devkit
from PIL import Image
from runs import REPOSITORY, Result, assert_refused, command, environment
from test_full_disk import assert_one_line, run_limited

import coco14
import voc12
from tool.formats.mask import load_mask

KILLED = """
import os, runpy, signal, sys
import tool.formats.mask
count, sys.argv = int(sys.argv[1]), sys.argv[2:]
save = tool.formats.mask.write_mask
def write(file, mask):
    global count
    count -= 1
    if count < 0:
        file.write(b"half of")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(file, mask)
tool.formats.mask.write_mask = write
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def prepare_killed(root: Path, *flags: object, after: int) -> None:
    """Run `coco14.prepare`, which dies in the middle of a mask, `after` whole ones."""
    argv = command("coco14/prepare.py", "--root", root, "--workers", 1, "--partial", *flags)
    code = [sys.executable, "-c", KILLED, str(after), *argv[1:]]
    result = subprocess.run(code, cwd=REPOSITORY, env=environment(), capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "COCO")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_devkit(tmp_path / "VOC2012")


def contents(root: Path) -> dict[str, bytes]:
    """Every file but locks and what a killed process left half written."""
    files = (path for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def fresh(tmp_path: Path, *flags: object) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    root = write_coco(tmp_path / "fresh")
    assert prepare_coco(root, *flags).returncode == 0
    return contents(root)


def test_another_overlap_is_refused_before_anything_changes(coco) -> None:
    prepare_coco(coco)
    before = contents(coco)
    result = prepare_coco(coco, "--overlap", "later")
    assert_refused(result, "masks/train2014", "overlap differ", "--overwrite")
    assert "--out" not in result.stderr
    assert contents(coco) == before


def test_a_conflict_in_the_last_file_is_found_before_the_first_is_written(coco, devkit) -> None:
    prepare_coco(coco)
    note = coco / "masks/val2014/made_from.json"
    for path in coco.glob("l*/*.txt"):
        path.unlink()
    for text in ("{}", "[]", "[" * 100_000, '{"overlap": "small", "more": 1}'):
        note.write_text(text)
        before = contents(coco)
        assert_refused(prepare_coco(coco), "masks/val2014", "--overwrite")
        assert contents(coco) == before
    (devkit / "cls_labels.npy").write_bytes(b"mine")
    before = contents(devkit)
    assert_refused(prepare_voc(devkit, "--partial"), "cls_labels.npy", "--overwrite")
    assert contents(devkit) == before


def test_overwrite_makes_everything_anew(coco, tmp_path) -> None:
    prepare_coco(coco)
    mask = next((coco / "masks/val2014").glob("*.png"))
    Image.new("L", (20, 12), 7).save(mask)  # whole, but not ours
    (coco / "lists/train.txt").write_text("mine\n")
    for flags in (["--overlap", "later"], ["--overlap", "first"], []):
        result = prepare_coco(coco, "--overwrite", *flags)
        assert result.returncode == 0, result.stderr
        assert contents(coco) == fresh(tmp_path / "-".join(flags), *flags)
        assert "0 were there" in result.stdout


def test_masks_of_unknown_origin_are_not_taken_for_ours(coco, tmp_path) -> None:
    mask = coco / "masks/train2014/COCO_train2014_000000000003.png"
    mask.parent.mkdir(parents=True)
    Image.new("L", (20, 12), 7).save(mask)
    before = contents(coco)
    assert_refused(prepare_coco(coco), "masks/train2014", "move them away", "--overwrite")
    assert contents(coco) == before
    assert prepare_coco(coco, "--overwrite").returncode == 0
    assert contents(coco) == fresh(tmp_path)


def test_a_killed_run_goes_on(coco, tmp_path) -> None:
    prepare_killed(coco, after=2)
    assert not (coco / "protocol.json").exists()
    masks = {path: path.stat().st_mtime_ns for path in coco.glob("masks/*/[!.]*.png")}
    assert len(masks) == 2
    result = prepare_coco(coco)
    assert "train2014: 1 masks written, 2 were there" in result.stdout
    assert all(path.stat().st_mtime_ns == time for path, time in masks.items())
    assert contents(coco) == fresh(tmp_path)


@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_killed_overwrite_mixes_nothing(coco, tmp_path, after: int) -> None:
    prepare_coco(coco)
    prepare_killed(coco, "--overlap", "later", "--overwrite", after=after)
    assert not (coco / "protocol.json").exists()
    assert_refused(prepare_coco(coco), "overlap differ", "--overwrite")
    result = prepare_coco(coco, "--overlap", "later")
    assert result.returncode == 0, result.stderr
    assert f"train2014: {3 - min(after, 3)} masks written" in result.stdout
    assert contents(coco) == fresh(tmp_path, "--overlap", "later")


def with_large_mask(coco: Path) -> Path:
    """Image 9 gets a mask of some 10 kB; its path."""
    path = coco / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    entry, rng = content["images"][0], np.random.default_rng(0)
    entry |= {"width": 300, "height": 300}
    Image.new("RGB", (300, 300)).save(coco / "train2014" / entry["file_name"])
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 9]
    for left, top in rng.integers(0, 290, (1500, 2)).tolist():
        shape = box(left, top, left + 7, top + 7)
        content["annotations"].append(annotation(9, int(rng.integers(1, 11)), shape, area=49))
    path.write_text(json.dumps(content))
    return coco / "masks/train2014" / entry["file_name"].replace(".jpg", ".png")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_full_of_masks(coco, workers: int) -> None:
    large = with_large_mask(coco)
    flags = ["--root", coco, "--partial", "--workers", workers]
    assert_one_line(run_limited(6000, "coco14/prepare.py", *flags), str(large))
    there = {path: path.read_bytes() for path in coco.glob("masks/*/*.png")}
    assert len(there) == 2
    assert all(load_mask(path).shape == (12, 20) for path in there)
    assert not [path for path in coco.rglob(".*") if path.name != ".lock"]
    assert not (coco / "protocol.json").exists()
    result = prepare_coco(coco)
    assert "train2014: 1 masks written, 2 were there" in result.stdout
    assert all(path.read_bytes() == content for path, content in there.items())
    assert load_mask(large).shape == (300, 300)


@pytest.mark.parametrize(
    ("script", "write", "prepare"),
    [
        ("coco14/prepare.py", write_coco, prepare_coco),
        ("voc12/prepare.py", write_devkit, prepare_voc),
    ],
)
def test_a_disk_full_of_labels(
    tmp_path, script: str, write: Callable[[Path], Path], prepare: Callable[..., Result]
) -> None:
    root = write(tmp_path / "data")
    assert prepare(root, "--partial").returncode == 0
    whole = contents(root)
    (root / "labels.csv").write_text("mine\n")
    before = contents(root)
    flags = ["--root", root, "--partial", "--overwrite"]
    (root / "cls_labels.npy").write_bytes(b"older")
    assert_one_line(run_limited(400, script, *flags), str(root / "cls_labels.npy"))
    after = contents(root)
    assert after.pop("cls_labels.npy") == b"older"
    assert "protocol.json" not in after  # it would say that all is done
    assert after == {name: before[name] for name in after} | {"labels.csv": whole["labels.csv"]}
    assert prepare(root, *flags[2:]).returncode == 0
    assert contents(root) == whole


def protocol(root: Path) -> dict:
    return json.loads((root / "protocol.json").read_text())


def test_a_part_is_never_called_the_whole(coco, devkit, monkeypatch) -> None:
    sizes = {"train": 2, "train_all": 3, "val": 1, "val_all": 1}
    monkeypatch.setattr(coco14, "LIST_SIZES", sizes)
    monkeypatch.setattr(voc12, "LIST_SIZES", {"train": 1, "train_aug": 3, "val": 2, "test": 1})
    prepare_coco(coco)
    prepare_voc(devkit)
    for root in (coco, devkit):
        assert protocol(root)["partial"] is False
        assert protocol(root)["missing"] == []
    (coco / "annotations/instances_val2014.json").unlink()
    (devkit / "ImageSets/Segmentation/test.txt").unlink()
    assert "partial: no" in prepare_coco(coco, "--overwrite").stdout
    assert prepare_voc(devkit).returncode == 0  # the trainval half is a download of its own
    assert protocol(coco)["partial"] is protocol(devkit)["partial"] is True
    assert protocol(coco)["missing"] == ["val", "val_all"]
    assert protocol(devkit)["missing"] == ["test"]
    assert set(protocol(devkit)["lists"]) == {"train", "train_aug", "val"}


def test_a_broken_list_can_be_overwritten(devkit) -> None:
    path = devkit / "ImageSets/Segmentation/train_aug.txt"
    for content in ("", "a\na\n", "../../x\n"):
        path.write_text(content)
        assert_refused(prepare_voc(devkit, "--partial"), "train_aug.txt", "--overwrite")
        assert path.read_text() == content
    assert prepare_voc(devkit, "--partial", "--overwrite").returncode == 0
    assert len(path.read_text().split()) == 3
