"""Stage 1 as a user runs it: killed and resumed, interrupted, refused."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import assert_refused, command, environment, run, train_flags

from tool.formats.checkpoint import load_checkpoint


def assert_same_state(one: object, other: object) -> None:
    """Bit-equal, whatever the nesting."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    else:
        assert one == other


def start(root: Path, out: Path, *, steps: int, workers: int) -> subprocess.Popen[str]:
    flags = [*train_flags(root, out, steps=steps), "--num-workers", workers]
    return subprocess.Popen(
        command("train_fbr.py", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run's log has this step."""
    log = out / "log.jsonl"
    for _ in range(1200):
        if log.exists() and any(f'"step": {step},' in line for line in log.read_text().split("\n")):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the run did not come that far")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, folder_root) -> dict:
    out = tmp_path_factory.mktemp("whole")
    process = start(folder_root, out, steps=6, workers=0)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return load_checkpoint(out / "checkpoint.pth")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("workers", "kill_at"),
    [(0, 1), *(pytest.param(*some, marks=pytest.mark.slow) for some in ((1, 3), (2, 4)))],
)
def test_killed_and_resumed_ends_bit_equal(
    workers, kill_at, uninterrupted, folder_root, tmp_path
) -> None:
    process = start(folder_root, tmp_path, steps=6, workers=workers)
    wait_for_step(tmp_path, kill_at, process)
    process.kill()
    process.wait()
    flags = [*train_flags(folder_root, tmp_path, steps=6), "--num-workers", workers]
    result = run("train_fbr.py", *flags)
    assert result.returncode == 0, result.stderr
    resumed = load_checkpoint(tmp_path / "checkpoint.pth")
    assert resumed["step"] == 6
    assert uninterrupted["model"]["bank.written"] > 0
    assert_same_state(resumed["model"], uninterrupted["model"])
    assert_same_state(resumed["optimizer"], uninterrupted["optimizer"])
    steps = [json.loads(row)["step"] for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_sigterm_saves_and_the_same_command_continues(folder_root, tmp_path) -> None:
    process = start(folder_root, tmp_path, steps=500, workers=1)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "interrupted" in output
    assert "Traceback" not in errors
    saved = load_checkpoint(tmp_path / "checkpoint.pth")["step"]
    assert 2 <= saved < 500


def test_the_last_step_has_a_picture_however_short_the_run(folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path, steps=3)
    result = run("train_fbr.py", *flags, "--picture-every", 2)
    assert result.returncode == 0, result.stderr
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["000002.png", "000003.png"]


def test_two_runs_in_one_directory(folder_root, tmp_path) -> None:
    process = start(folder_root, tmp_path, steps=500, workers=0)
    wait_for_step(tmp_path, 1, process)
    second = run("train_fbr.py", *train_flags(folder_root, tmp_path, steps=500))
    assert_refused(second, "another run", "another folder")
    assert process.poll() is None, "the first run goes on"
    process.kill()
    process.wait()
    third = run("train_fbr.py", *train_flags(folder_root, tmp_path, steps=500), "--steps", 1)
    assert "another run" not in third.stderr


def test_a_finished_run_is_left_alone(folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path, method="cam", steps=1)
    assert run("train_fbr.py", *flags).returncode == 0
    before = (tmp_path / "checkpoint.pth").read_bytes()
    again = run("train_fbr.py", *flags)
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


def test_other_settings_do_not_resume(folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path, method="cam", steps=1)
    assert run("train_fbr.py", *flags).returncode == 0
    before = (tmp_path / "checkpoint.pth").read_bytes()
    assert_refused(run("train_fbr.py", *flags, "--lr", 0.5), "lr", "0.5", "--out")
    other = train_flags(folder_root, tmp_path, method="eps", steps=1)
    assert_refused(run("train_fbr.py", *other), "method", "cam", "eps")
    assert (tmp_path / "checkpoint.pth").read_bytes() == before


class Hostile:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_hostile_or_corrupt_checkpoint_is_refused_and_stays(folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path / "run", method="cam", steps=1)
    checkpoint = tmp_path / "run" / "checkpoint.pth"
    checkpoint.parent.mkdir()
    for content in (pickle.dumps(Hostile(tmp_path / "executed")), b"not a checkpoint", b""):
        checkpoint.write_bytes(content)
        assert_refused(run("train_fbr.py", *flags), "checkpoint.pth")
        assert checkpoint.read_bytes() == content
    assert not (tmp_path / "executed").exists()


def test_bad_flags_and_files_get_one_line(folder_root, tmp_path) -> None:
    base = train_flags(folder_root, tmp_path / "run", method="cam", steps=1)
    assert_refused(run("train_fbr.py", *base, "--method", "nonsense"), "'fbr', 'fbr_amn'")
    assert_refused(run("train_fbr.py", *base, "--backbone", "nonsense"), "resnet38d")
    assert_refused(run("train_fbr.py", *base, "--weights", tmp_path / "no.pth"), "no.pth")
    assert_refused(run("train_fbr.py", *base, "--root", tmp_path / "nowhere"), "nowhere")
    assert_refused(run("train_fbr.py", *base, "--list", "nolist"), "nolist")
    assert_refused(run("train_fbr.py", *base, "--batch-size", 3, "--accumulate", 2), "--batch-size")
    assert_refused(
        run("train_fbr.py", *base, "--epochs", 2), "--epochs: not allowed with", "--steps"
    )
    both = ["--scale", 0.5, 1, "--long-side", 64, 80]
    assert_refused(run("train_fbr.py", *base, *both), "--scale", "--long-side", "not allowed")
    eps = train_flags(folder_root, tmp_path / "run", method="eps", steps=1)
    missing = tmp_path / "no-saliency"
    assert_refused(run("train_fbr.py", *eps, "--saliency-root", missing), "--saliency-root")


def test_a_truncated_image_is_named(folder_dataset, tmp_path) -> None:
    victim = sorted((folder_dataset / "images").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    for workers in (0, 1):
        flags = train_flags(folder_dataset, tmp_path / f"run{workers}", method="cam", steps=9)
        result = run("train_fbr.py", *flags, "--num-workers", workers)
        assert_refused(result, victim.name)
