"""Helpers of the tests that tamper with checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from runs import assert_refused, run, train_flags

READERS = ["infer", "export", "resume", "init"]
ANYWHERE = ("text", None, math.nan, math.inf, -math.inf, True, [1], {"a": 1})  # no number
PROPERTY = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def train_once(root: Path, out: Path) -> Path:
    """The run directory `out` after one step of a run of two."""
    result = run("train_fbr.py", *flags_for(root, out))
    assert result.returncode == 0, result.stderr
    content = torch.load(out / "checkpoint.pth", weights_only=True)
    torch.save(content | {"step": 1}, out / "checkpoint.pth")
    assert content["optimizer"]["state"][0]["momentum_buffer"].ndim
    return out


def flags_for(root: Path, out: Path) -> list[object]:
    """The run that the checkpoint is of."""
    return [*train_flags(root, out, steps=2), "--momentum", 0.9]


def changed(trained: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run's checkpoint in `out`, after `change`."""
    content = torch.load(trained / "checkpoint.pth", weights_only=True)
    change(content)
    out.mkdir(exist_ok=True)
    torch.save(content, out / "checkpoint.pth")
    return out / "checkpoint.pth"


def stage(name: str, root: Path, path: Path) -> list[object]:
    """The command of each program that reads the checkpoint at `path`."""
    out = path.parent / "out"
    if name == "export":
        return ["network/export.py", path]
    if name == "resume":
        return ["train_fbr.py", *flags_for(root, path.parent)]
    if name == "init":
        base = flags_for(root, out)
        at = base.index("--weights")
        return ["train_fbr.py", *base[:at], *base[at + 2 :], "--init", path]
    flags = ["--checkpoint", path, "--dataset", "folder", "--root", root, "--list", "train"]
    return ["infer_cam.py", *flags, "--out", out, "--scales", 0.5, "--num-workers", 0]


def assert_each_refuses(names: list[str], root: Path, path: Path, *words: str) -> None:
    """Each program ends with one line that names the file, and leaves it as it was."""
    before = path.read_bytes()
    for name in names:
        assert_refused(run(*stage(name, root, path)), path.name, *words)
        assert path.read_bytes() == before
        assert not (path.parent / "model.safetensors").exists()
