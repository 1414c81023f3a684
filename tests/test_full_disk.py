"""A disk that fills up: one clear line, and what was there before stays.

The limit on the size of a file, set in a process of its own, makes the system refuse real writes.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY, command, environment, run, train_flags

from tool.files import atomic_path
from tool.formats.cam import load_cam
from tool.formats.checkpoint import load_checkpoint, save_checkpoint

LIMITED = """
import resource, runpy, sys
limit, script = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = sys.argv[2:]
runpy.run_path(script, run_name="__main__")
"""


def run_limited(limit: int, script: str, *flags: object) -> subprocess.CompletedProcess:
    """Run a stage that cannot write a file of more than `limit` bytes."""
    code = [sys.executable, "-c", LIMITED, str(limit), *command(script, *flags)[1:]]
    return subprocess.run(
        code, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )


def assert_one_line(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    for word in words:
        assert word in line


def test_training_keeps_the_previous_checkpoint(folder_root: Path, tmp_path: Path) -> None:
    flags = train_flags(folder_root, tmp_path, method="eps", steps=2)
    path = tmp_path / "checkpoint.pth"
    assert run("train_fbr.py", *flags).returncode == 0
    save_checkpoint(path, load_checkpoint(path) | {"step": 1})  # there is a step to do again
    kept = path.read_bytes()
    assert_one_line(run_limited(len(kept) // 2, "train_fbr.py", *flags), str(path), "disk full")
    assert path.read_bytes() == kept
    assert not list(tmp_path.glob(".checkpoint*"))
    assert run("train_fbr.py", *flags).returncode == 0
    assert load_checkpoint(path)["step"] == 2


@pytest.mark.slow
def test_inference_keeps_the_finished_cams(folder_root: Path, tmp_path: Path) -> None:
    run("train_fbr.py", *train_flags(folder_root, tmp_path, method="cam", steps=1))
    out = tmp_path / "cam"
    flags = ["--checkpoint", tmp_path / "checkpoint.pth", "--out", out, "--scales", 1]
    flags += ["--dataset", "folder", "--root", folder_root, "--num-workers", 0, "--device", "cpu"]
    result = run_limited(15_000, "infer_cam.py", *flags)  # enough for one class, not for three
    assert_one_line(result, str(out))
    done = {path: path.read_bytes() for path in out.glob("*.npy")}
    assert 0 < len(done) < 8
    assert all(load_cam(path).cam.size for path in done)
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]
    assert run("infer_cam.py", *flags).returncode == 0
    assert all(path.read_bytes() == content for path, content in done.items())
    assert len(list(out.glob("*.npy"))) == 8


def half_written(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_names_its_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left.*mask\.png") as caught:
        half_written(path)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_an_export_that_does_not_fit_is_one_line(folder_root: Path, tmp_path: Path) -> None:
    run("train_fbr.py", *train_flags(folder_root, tmp_path, method="cam", steps=1))
    result = run_limited(20_000, "network/export.py", tmp_path / "checkpoint.pth")
    assert_one_line(result, "model.safetensors", "disk full")
    assert not (tmp_path / "model.safetensors").exists()
