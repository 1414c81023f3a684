"""`scripts/script_sfc.sh` from CAMs to masks, and once more: nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY

from tool.formats.cam import load_cam


@pytest.mark.slow
def test_the_chain_runs_whole_and_restarts(folder_root: Path, tmp_path: Path) -> None:
    small = "--crop 48 --batch-size 4 --num-workers 0 --picture-every 0 --device cpu"
    settings = {
        "PYTHON_READY": sys.executable,
        "DATASET": "folder",
        "ROOT": str(folder_root),
        "OUT": str(tmp_path),
        "BACKBONE": "resnet38d_slim",
        "WEIGHTS": "none",
        "SFC_FLAGS": f"--steps 2 {small}",
        "IRN_FLAGS": f"--epochs 0.5 {small}",
        "CAM_STRIDE": "2",
        "OMP_NUM_THREADS": "1",
    }

    def chain(**changed: str) -> str:
        command = ["bash", str(REPOSITORY / "scripts" / "script_sfc.sh")]
        environment = os.environ | settings | changed
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    chain(IRN="0")
    cams = tmp_path / "1-sfc" / "cam"
    for folder in (cams, *(cams / name for name in ("prototype", "classifier", "seed", "walk"))):
        assert len(list(folder.glob("*.npy"))) == 8
        assert load_cam(folder / "a1.npy").has_background
    assert not (tmp_path / "2-sfc_irn").exists()
    chain()
    for result in ("1-sfc/miou.json", "1-sfc/miou_cam_walk.json", "2-sfc_irn/miou.json"):
        assert json.loads((tmp_path / result).read_text())["protocol"]["images"] == 8
    config = json.loads((tmp_path / "2-sfc_irn" / "config.json").read_text())["config"]
    assert config["method_config"]["power"] == 1.3
    assert config["seeds"]["seed"] == [1.0, 0.5]
    assert load_cam(tmp_path / "2-sfc_irn" / "cam" / "a1.npy").has_background
    (tmp_path / "2-sfc_irn" / "mask" / "a1.png").unlink()
    again = chain()
    assert again.count("is complete") == 2
    assert again.count("8 of 8 images are done, 0 to go") == 2
    assert "1 written, 7 were there" in again
