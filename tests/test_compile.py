"""`train_fbr.py --compile`: the same losses, and a clear line without a compiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import assert_refused, run, train_flags


def test_a_compiled_backbone_trains_the_same(folder_root: Path, tmp_path: Path) -> None:
    rows = {}
    for name, flags in (("plain", ()), ("compiled", ("--compile", "aot_eager"))):
        out = tmp_path / name
        result = run("train_fbr.py", *train_flags(folder_root, out, method="cam", steps=3), *flags)
        assert result.returncode == 0, result.stderr
        rows[name] = [
            json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()
        ]
    assert rows["compiled"] == pytest.approx(rows["plain"], rel=1e-4)
    plain, compiled = (
        torch.load(tmp_path / name / "checkpoint.pth", weights_only=True)["model"] for name in rows
    )
    assert plain.keys() == compiled.keys(), "one can go on with the other's checkpoint"


def test_without_a_compiler_a_clear_line(
    folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("train_fbr.py", *train_flags(folder_root, tmp_path / "out"), "--compile")
    assert_refused(result, "--compile", "g++")
