"""`scripts/script_seg.sh` from masks to a score, in two rounds, and once more: nothing twice."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_voc
from PIL import Image
from runs import REPOSITORY

from tool.formats.mask import load_mask, save_mask

SMALL = "--crop 48 --batch-size 4 --num-workers 0 --picture-every 0 --device cpu"


def script(name: str, settings: dict[str, object]) -> subprocess.CompletedProcess[str]:
    small = {"PYTHON_READY": sys.executable, "OMP_NUM_THREADS": "1", "DATASET": "folder"}
    given = {key: str(value) for key, value in (small | settings).items()}
    command = ["bash", str(REPOSITORY / "scripts" / name)]
    return subprocess.run(command, env=os.environ | given, capture_output=True, text=True)


@pytest.mark.slow
def test_the_stage_runs_whole_in_two_rounds_and_restarts(folder_root: Path, tmp_path: Path) -> None:
    for path in (folder_root / "masks").glob("*.png"):
        mask = load_mask(path)
        mask[:3] = 255
        save_mask(tmp_path / "mask" / path.name, mask)
    settings = {
        "ROOT": folder_root,
        "MASK_DIR": tmp_path / "mask",
        "OUT": tmp_path / "out",
        "STEPS": 2,
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "TRAIN_FLAGS": SMALL,
        "ROUND": 2,
        "LABELS": 1,
        "METHOD": "deeplab1",
    }

    def stage() -> str:
        done = script("script_seg.sh", settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = stage()
    assert first.index("masks of 8 images") < first.index("steps 0 to 2")
    out, second = tmp_path / "out", tmp_path / "out" / "round2"
    for folder, names in ((out, ("val",)), (second, ("val", "val-labelled"))):
        for name in names:
            for kind in (name, f"{name}-crf"):
                assert len(list((folder / kind).glob("*.png"))) == 3
                result = json.loads((folder / f"miou-{kind}.json").read_text())
                assert result["protocol"]["images"] == 3
    assert len(list((out / "train-labelled-crf").glob("*.png"))) == 8
    masks = json.loads((second / "masks.json").read_text())
    assert masks["images"] == masks["scored_images"] == 8
    assert not list(out.rglob("*.npy")), "no maps on disk"
    again = stage()
    assert again.count("is complete") == 2
    assert again.count("0 to go") == 4


@pytest.mark.slow
def test_the_main_job_goes_on_into_it(folder_root: Path, tmp_path: Path) -> None:
    done = script(
        "script_contrast.sh",
        {
            "ROOT": folder_root,
            "OUT": tmp_path / "out",
            "METHOD": "fill",  # needs no network, and its masks have foreground
            "SEG": 1,
            "SEG_METHOD": "deeplab1",
            "SEG_STEPS": 2,
            "SEG_BACKBONE": "resnet38d_slim",
            "SEG_WEIGHTS": "none",
            "SEG_FLAGS": SMALL,
            "SEG_SCALES": 1,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "seg" / "miou-val-crf.json").is_file()


@pytest.mark.slow
def test_networks_on_the_masks_of_several_runs_are_one_table(folder_root, tmp_path) -> None:
    """A % in a folder of masks is the seed; what is finished is kept."""
    for path in (folder_root / "masks").glob("*.png"):
        save_mask(tmp_path / "mask1" / path.name, np.minimum(load_mask(path), 1))
    settings = {
        "ROOT": folder_root,
        "MASKS": f"truth=truth mine={tmp_path}/mask%",
        "SEEDS": "1",
        "OUT": tmp_path / "out",
        "SAVE": tmp_path / "saved",
        "METHOD": "deeplab1",
        "STEPS": 2,
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "TRAIN_FLAGS": SMALL,
        "SCALES": "1",
    }
    done = script("compare_seg.sh", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.count("|") > 2]
    assert rows == ["trained on", "---", "truth", "mine"]
    saved = json.loads((tmp_path / "saved" / "mine-seed1.json").read_text())
    assert saved["rounds"][0]["its masks"] < 100
    assert saved["rounds"][0]["with labels, CRF"] is not None
    before = (tmp_path / "out" / "mine-seed1" / "checkpoint.pth").stat().st_mtime_ns
    assert script("compare_seg.sh", settings).stdout == done.stdout
    assert (tmp_path / "out" / "mine-seed1" / "checkpoint.pth").stat().st_mtime_ns == before


@pytest.mark.parametrize("missing", ["MASK_DIR", "ROOT"])
def test_what_is_missing_is_named(folder_root: Path, tmp_path: Path, missing: str) -> None:
    settings = {"ROOT": folder_root, "MASK_DIR": tmp_path}
    done = script("script_seg.sh", {**settings, missing: ""})
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.slow
def test_the_test_list_ends_in_a_checked_archive(tmp_path: Path) -> None:
    """No labels, no truth and no score; the masks are those with the CRF."""
    root, lists = tmp_path / "voc", tmp_path / "voc" / "ImageSets" / "Segmentation"
    write_voc(root, "2008_000001")
    rng = np.random.default_rng(0)
    for name in ("2008_000001", "2008_000002"):
        photograph = Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8))
        photograph.save(root / "JPEGImages" / f"{name}.jpg")
    save_mask(root / "SegmentationClassAug" / "2008_000001.png", np.full((40, 56), 12, np.uint8))
    (lists / "train_aug.txt").write_text("2008_000001\n")
    (lists / "test.txt").write_text("2008_000002\n")
    settings = {
        "DATASET": "voc12",
        "ROOT": root,
        "LIST": "test",
        "MASK_DIR": "truth",
        "OUT": tmp_path / "out",
        "METHOD": "deeplab1",
        "STEPS": 1,
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "TRAIN_FLAGS": SMALL,
        "SCALES": "1",
    }
    done = script("script_seg.sh", settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("miou*"))
    with tarfile.open(tmp_path / "out" / "results.tar") as archive:
        (name,) = (member.name for member in archive if member.isfile())
        content = archive.extractfile(name).read()
    assert name.endswith("comp6_test_cls/2008_000002.png")
    written = np.asarray(Image.open(io.BytesIO(content)))
    assert np.array_equal(written, load_mask(tmp_path / "out" / "test-crf" / "2008_000002.png"))
