"""`benchmarks/gpu.sh`: all parts in a Python of few packages, each with figures, whatever fails."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, assert_refused, run

from benchmarks import gpu, training
from benchmarks.gpu_table import tables
from tool import flags

ABSENT = "cv2 pycocotools matplotlib pydensecrf gdown onnx onnxruntime scipy pytest"
HIDE = f"""
import importlib.machinery as machinery
absent, find = set("{ABSENT}".split()), machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in absent else find(name, path, target)
machinery.PathFinder.find_spec = find_spec
"""
PARTS = set(gpu.PARTS)


class Taken(Exception):
    """A program has taken its flags."""


def gpu_sh(tmp_path: Path, *flags: str) -> subprocess.CompletedProcess:
    """The script as on a machine that has torch and little else."""
    hidden = tmp_path / "site"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDE)
    names = {"PYTHONPATH": str(hidden), "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    return subprocess.run(
        ["bash", str(REPOSITORY / "benchmarks/gpu.sh"), "--tiny", *flags],
        env=os.environ | names,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def record_of(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out" / "gpu.json").read_text())


def test_the_parts_of_a_gpu_are_those_of_the_tiny_run(monkeypatch) -> None:
    """In the same order, with flags that their programs take; within 8 minutes in all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)

    def taken(*_: object, **__: object) -> None:
        raise Taken  # the command line was right: nothing else is run

    monkeypatch.setattr(flags, "flags_as", taken)
    monkeypatch.setattr(training, "flags_as", taken)
    assert list(gpu.PARTS) == list(gpu.TINY_PARTS)
    assert gpu.TOTAL < 8 * 60
    for tiny in (False, True):
        for part in gpu.parts_of(tiny=tiny):
            program = importlib.import_module(f"benchmarks.{part.program}")
            with pytest.raises(Taken):
                program.main([*part.flags, "--json", "x"])


@pytest.mark.slow
def test_all_parts_have_figures(tmp_path: Path) -> None:
    ended = gpu_sh(tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    record = record_of(tmp_path)
    assert set(record["parts"]) == PARTS
    results = {name: part["result"] for name, part in record["parts"].items()}
    assert results["machine"]["opencv"] is False
    assert results["short_run"]["dataset"] == "drawn"
    assert results["train_step_compiled"]["compile"] == "aot_eager"
    for name in ("train_step", "train_step_compiled"):
        assert results[name]["step"]["median"] > 0
    for name, field in (("infer_cam", "images_per_s"), ("crf", "images_per_s")):
        assert [row[field] > 0 for row in results[name]["rows"]] == [True, True]
    assert [row["classes"] for row in results["contrast"]["rows"]] == [20, 80]
    assert results["random_walk"]["rows"][0]["median"] > 0
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text in ended.stdout
    assert "Without figures" not in text
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.slow
def test_a_part_out_of_time_leaves_the_others(tmp_path: Path) -> None:
    parts = ["machine", "crf", "contrast"]
    ended = gpu_sh(tmp_path, "--only", *parts, "--limit", "crf=0.5")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    found = record_of(tmp_path)["parts"]
    assert {name: part["status"] for name, part in found.items()} == {
        "machine": "ok",
        "crf": "out of time",
        "contrast": "ok",
    }
    assert found["crf"]["result"] is None
    assert found["contrast"]["result"]["rows"][0]["median"] > 0
    assert "- crf: out of time" in (tmp_path / "out" / "gpu.md").read_text()


def test_a_part_that_fails_says_its_last_line(tmp_path: Path) -> None:
    part = gpu.Part("contrast", "contrast", ("--nonsense",), 60)
    with open(tmp_path / "log", "wb") as log:
        found = gpu.run_part(part, part.limit, tmp_path, log)
    assert found["status"] == "failed"
    assert found["returncode"] == 2
    assert "--nonsense" in found["last_line"]
    text = tables({"tiny": True, "started": "", "seconds": 0.0, "parts": {"contrast": found}})
    assert "- contrast: failed" in text


def test_a_part_is_ended_with_its_children(tmp_path: Path, monkeypatch) -> None:
    """Also one that a part of the part has started."""
    alive = tmp_path / "alive"
    script = f"(sleep 2; touch {alive}) & wait"
    monkeypatch.setattr(sys, "executable", tmp_path / "python")
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    with open(tmp_path / "log", "wb") as log:
        found = gpu.run_part(gpu.Part("x", "x", (), 0.3), 0.3, tmp_path, log)
    assert found["status"] == "out of time"
    subprocess.run(["sleep", "2.5"], check=True)
    assert not alive.exists()


@pytest.mark.parametrize("flags", [["--limit", "x=3"], ["--limit", "crf=0"], ["--only", "x"]])
def test_wrong_flags_are_one_line(flags: list[str], tmp_path: Path) -> None:
    assert_refused(run("benchmarks/gpu.py", "--tiny", "--out", tmp_path, *flags), *flags)
