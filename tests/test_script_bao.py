"""`scripts/script_bao.sh` from TransCAM to masks, and once more: nothing is done twice."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from test_script_seg import SMALL, script

from tool.formats.cam import cam_mask, load_cam
from tool.formats.mask import load_mask


@pytest.mark.slow
def test_the_chain_runs_whole_restarts_and_takes_the_gate(
    folder_root: Path, tmp_path: Path
) -> None:
    settings = {
        "ROOT": folder_root,
        "OUT": tmp_path,
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "TRANSCAM_FLAGS": f"--steps 2 {SMALL}",
        "BAO_FLAGS": f"--steps 4 {SMALL}",
        "SIDES": "32 48",
    }

    def chain(**more: object) -> str:
        done = script("script_bao.sh", settings | more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = chain()
    assert "head 2 of 2, condition 0 of 2" in first, "bao starts from transcam"
    results = {"1-transcam": ["miou", "miou-free", "miou_cam"]}
    results["2-bao"] = ["miou", "miou-argmax", "miou_cam"]
    for folder, names in results.items():
        assert len(list((tmp_path / folder / "cam").glob("*.npy"))) == 8
        for name in names:
            result = json.loads((tmp_path / folder / f"{name}.json").read_text())
            assert result["protocol"]["images"] == 8
    bao = tmp_path / "2-bao"
    for path in (bao / "cam").glob("*.npy"):
        cam = load_cam(path)
        assert cam.has_background
        mask = load_mask(bao / "argmax" / f"{path.stem}.png")
        rows = cam.class_index[cam.cam.argmax(axis=0)]
        assert (mask == rows).all(), "the best row, without a threshold"
        assert (cam_mask(cam, 0.9) == mask).all()
    assert json.loads((tmp_path / "1-transcam/mask/crf.json").read_text())["alpha"] < 2
    (bao / "mask" / "a1.png").unlink()
    again = chain()
    assert again.count("is complete") == 2
    assert again.count("8 of 8 images are done, 0 to go") == 2
    assert "1 written, 7 were there" in again
    before = (bao / "miou.json").read_bytes()
    gated = chain(GATE=1, NETWORK="target")
    assert gated.count("is complete") == 2, "only inference runs again"
    assert (bao / "miou-target-gated.json").is_file()
    assert (tmp_path / "1-transcam" / "miou-free-gated.json").is_file()
    assert (bao / "miou.json").read_bytes() == before
    plain, other = (load_cam(bao / name / "a1.npy") for name in ("cam", "cam-target-gated"))
    assert plain.cam.shape == other.cam.shape


def calls_of(tmp_path: Path, **settings: object) -> list[list[str]]:
    """The words of every call of Python in the chain on the toy; nothing is computed."""
    recorder, calls = tmp_path / "python", tmp_path / "calls"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(calls))}\n')
    recorder.chmod(0o755)
    given = {"PYTHON_READY": recorder, "DATASET": "toy", "OUT": tmp_path / "out", **settings}
    done = script("script_bao.sh", given)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in calls.read_text().splitlines()]


def test_no_threshold_makes_the_masks_of_bao(tmp_path: Path) -> None:
    words = [call for call in calls_of(tmp_path) if any("2-bao/" in word for word in call)]
    assert len(words) == 6
    for call in words:
        assert not {"--threshold", "--threshold-from", "--alpha", "--bg-threshold"} & set(call)


def test_bao_takes_the_weights_of_transcam_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "w.pth").touch()
    calls = calls_of(tmp_path, WEIGHTS=tmp_path / "w.pth")
    first, second = (call for call in calls if call[0] == "train_fbr.py")
    assert first[first.index("--weights") + 1] == str(tmp_path / "w.pth")
    assert "--weights" not in second
    assert second[second.index("--init") + 1].endswith("1-transcam/checkpoint.pth")
    assert "--short" in first
    assert "--short" in second


def test_transcam_alone(tmp_path: Path) -> None:
    calls = calls_of(tmp_path, METHOD="transcam", SEG=1)
    assert not any("2-bao" in word for call in calls for word in call)
    assert sum(call[0] == "train_fbr.py" for call in calls) == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"METHOD": "psa"}, "METHOD=psa: give bao or transcam"),
        ({"NETWORK": "both"}, "NETWORK=both: give online or target"),
        ({"GATE": 2}, "GATE=2: give 1 or 0"),
    ],
)
def test_an_unknown_setting_is_named(folder_root: Path, setting: dict, said: str) -> None:
    done = script("script_bao.sh", {"ROOT": folder_root, **setting})
    assert done.returncode == 2
    assert said in done.stderr
