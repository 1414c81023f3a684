"""What a run lacks, and what it cannot do with its numbers, is said before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import assert_refused, run, train_flags

from network.methods import find_method, trained_names

SALIENT = [name for name in trained_names() if "saliency" in find_method(name).inputs]
DATA = ("--dataset", "folder", "--list", "train")


@pytest.fixture
def without_saliency(folder_dataset: Path) -> Path:
    shutil.rmtree(folder_dataset / "saliency")
    return folder_dataset


@pytest.mark.parametrize("more", [[], ["--skip-bad-images"]])
@pytest.mark.parametrize("method", SALIENT)
def test_a_method_without_its_saliency_leads_on(
    without_saliency: Path, tmp_path: Path, method: str, more: list[str]
) -> None:
    flags = train_flags(without_saliency, tmp_path / "out", method=method)
    result = run("train_fbr.py", *flags, *more)
    words = f"method {method!r} needs saliency", "python -m data.saliency makes it", "METHOD=cam"
    assert_refused(result, *words, str(without_saliency / "saliency"))


def test_methods_with_saliency_are_known() -> None:
    assert {"eps", "ppc", "fbr"} <= set(SALIENT)


def test_other_commands_without_saliency_lead_on(without_saliency: Path, tmp_path: Path) -> None:
    flags = (*DATA, "--root", without_saliency, "--out", tmp_path / "out")
    words = "needs saliency", "python -m data.saliency", "METHOD=cam"
    assert_refused(run("data/fill.py", *flags), "method 'fill'", *words)
    masks = without_saliency / "masks"
    boundary = (*flags, "--seed-dir", masks, "--saliency")
    assert_refused(run("data/boundary.py", *boundary), *words)
    result = run("data/boundary.py", *boundary[:-1], "--workers", 1)  # BES needs none
    assert "8 boundary labels written" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("warmup", "warned"), [(1, False), (2, False), (3, True), (50, True), (None, False)]
)
def test_a_warm_up_as_long_as_the_run_is_warned_about(
    folder_root: Path, tmp_path: Path, warmup: int | None, warned: bool
) -> None:
    flags = train_flags(folder_root, tmp_path / "out", method="cam", steps=3)
    result = run("train_fbr.py", *flags, *([] if warmup is None else ["--warmup", warmup]))
    assert result.returncode == 0, result.stderr
    line = f"warning: --warmup {warmup} is not shorter than the run of 3 steps"
    assert (line in result.stderr) is warned


def test_a_warm_up_in_epochs_is_compared_with_the_steps(folder_root: Path, tmp_path: Path) -> None:
    flags = train_flags(folder_root, tmp_path / "out", method="cam", steps=3)
    at = flags.index("--steps")
    flags[at : at + 2] = ["--epochs", 1, "--warmup", 2]
    assert "--warmup 2 is not shorter than the run of 2 steps" in run("train_fbr.py", *flags).stderr


@pytest.mark.parametrize(
    "flag", ["--warmup", "--num-workers", "--picture-every", "--momentum", "--weight-decay", "--lr"]
)
def test_numbers_below_zero_are_refused(folder_root: Path, tmp_path: Path, flag: str) -> None:
    flags = train_flags(folder_root, tmp_path / "out", method="cam")
    assert_refused(run("train_fbr.py", *flags, flag, -1), flag)


def test_a_batch_that_is_larger_than_the_list_is_said(folder_dataset: Path, tmp_path: Path) -> None:
    flags = train_flags(folder_dataset, tmp_path / "out", method="cam")
    result = run("train_fbr.py", *flags, "--batch-size", 9, "--steps", 1)
    assert result.returncode == 0, result.stderr
    assert "note: --batch-size 9 is more than the " in result.stdout
    few = run("train_fbr.py", *flags, "--out", tmp_path / "few", "--batch-size", 2, "--steps", 1)
    assert "note:" not in few.stdout
