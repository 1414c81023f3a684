"""`scripts/script_sbe.sh` from CAMs to masks, and once more: nothing is done twice."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from test_script_seg import SMALL, script

from data.catalog import open_catalog
from data.toy.drawing.scene import SIDES
from network.methods import find_method
from tool.crf.area import Areas, threshold_of
from tool.formats.boundary import SALIENT, load_boundary
from tool.formats.mask import load_mask


@pytest.mark.slow
@pytest.mark.parametrize(("method", "gate"), [("sbe", 0), ("bes", 1)])
def test_the_chain_runs_whole_and_restarts(
    folder_root: Path, tmp_path: Path, method: str, gate: int
) -> None:
    settings = {
        "METHOD": method,
        "GATE": gate,
        "ROOT": folder_root,
        "OUT": tmp_path,
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "CAM_FLAGS": f"--steps 2 {SMALL}",
        "BOUNDARY_FLAGS": f"--steps 1 {SMALL}",
        "CAM_SCALES": 1,
    }

    def chain() -> str:
        done = script("script_sbe.sh", settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = chain()
    assert "8 boundary labels written" in first
    out = tmp_path / f"2-{method}"
    for folder in (tmp_path / "1-cam", out):
        assert len(list((folder / "cam").glob("*.npy"))) == 8
        for path in (folder / "cam").glob("*.npy"):
            assert path.stat().st_size > 0
    for name in ("mask", "mask-crf"):
        assert len([load_mask(path) for path in (out / name).glob("*.png")]) == 8
    for name in ("miou", "miou-crf", "miou_cam"):
        assert json.loads((out / f"{name}.json").read_text())["protocol"]["images"] == 8
    labels = [load_boundary(path) for path in (tmp_path / "boundary").glob("*.png")]
    assert any((label == SALIENT).any() for label in labels) is (method == "sbe")
    config = json.loads((tmp_path / "1-cam" / "config.json").read_text())["config"]
    assert config["method_config"]["pooling"] == "attention"
    crf = json.loads((out / "mask-crf" / "crf.json").read_text())
    threshold = json.loads((out / "mask" / "crf.json").read_text())["threshold"]
    assert (1 - threshold) ** crf["alpha"] == pytest.approx(threshold)
    assert crf["preset"]["crf"]["bilateral_sxy"] == 20
    if not gate:  # as much foreground as the saliency has
        areas = Areas(open_catalog("folder", folder_root), out / "cam", tmp_path / "salient")
        ids = [path.stem for path in (tmp_path / "salient").glob("*.png")]
        assert len(ids) == 8
        assert threshold == pytest.approx(threshold_of(sum(areas(one) for one in ids)))
    (out / "mask-crf" / "a1.png").unlink()
    again = chain()
    assert again.count("is complete") == 2
    assert again.count("8 of 8 images are done, 0 to go") == 2
    assert "0 boundary labels written, 8 were there" in again
    assert "1 written, 7 were there" in again


def test_an_unknown_method_is_named(folder_root: Path) -> None:
    done = script("script_sbe.sh", {"ROOT": folder_root, "METHOD": "ibn"})
    assert done.returncode == 2
    assert "METHOD=ibn: give sbe or bes" in done.stderr


@pytest.mark.parametrize("method", ["sbe", "bes"])
def test_the_toys_boundaries_are_found_at_the_size_of_training(tmp_path: Path, method: str) -> None:
    """Its images have 150 pixels: at their own size the walk leaks through faint boundaries."""
    recorder, calls = tmp_path / "python", tmp_path / "calls"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(calls))}\n')
    recorder.chmod(0o755)
    settings = {"PYTHON_READY": recorder, "DATASET": "toy", "METHOD": method, "OUT": tmp_path}
    done = script("script_sbe.sh", settings)
    assert done.returncode == 0, done.stderr
    (walk,) = [line for line in calls.read_text().splitlines() if f"2-{method}/cam --gate" in line]
    words = walk.split()
    scale = float(words[words.index("--scales") + 1]) if "--scales" in words else 1.0
    low, high = find_method(method).recipe.chosen(short=True).long_side
    assert low <= scale * sum(SIDES) / len(SIDES) <= high
