"""`scripts/script_amn.sh` from CAMs to masks, and once more: nothing is done twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY


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
        "CAM_FLAGS": f"--steps 2 {small}",
        "AMN_FLAGS": f"--steps 2 --bank-size 300 {small}",
        "IRN_FLAGS": f"--epochs 0.5 {small}",
        "OMP_NUM_THREADS": "1",
    }

    def chain() -> str:
        command = ["bash", str(REPOSITORY / "scripts" / "script_amn.sh")]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    chain()
    for folder in ("1-cam", "2-fbr_amn", "3-irn"):
        assert len(list((tmp_path / folder / "cam").glob("*.npy"))) == 8
    for folder in ("2-fbr_amn", "3-irn"):
        result = json.loads((tmp_path / folder / "miou.json").read_text())
        assert result["protocol"]["images"] == 8
    config = json.loads((tmp_path / "3-irn" / "config.json").read_text())["config"]
    assert config["steps"] == 1
    assert config["method_config"]["power"] == 1.3
    assert config["seeds"]["seed"] == [0.45, 0.15]
    (tmp_path / "3-irn" / "mask" / "a1.png").unlink()
    again = chain()
    assert again.count("is complete") == 3
    assert again.count("8 of 8 images are done, 0 to go") == 3
    assert "1 written, 7 were there" in again
