"""Mistakes of users: each ends in one line that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import run

from tool.files import atomic_path, write_json


def refusal(script: str, *flags: object) -> str:
    """The one line with which a command ends."""
    result = run(script, *flags)
    assert result.returncode == 2, result.stderr
    (line,) = [one for one in result.stderr.splitlines() if "warning: " not in one]
    assert ": error: " in line
    return line


@pytest.fixture
def data(folder_root: Path) -> list[object]:
    """The flags of a dataset that tests do not change."""
    return ["--dataset", "folder", "--root", folder_root]


def test_an_output_that_is_a_file_or_a_folder_is_said_so(data, folder_root, tmp_path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    fill = ["data/fill.py", *data, "--list", "train", "--out"]
    assert f"{taken}: File exists (a folder is needed, and this is a file)" in refusal(*fill, taken)
    assert "a part of this path is a file" in refusal(*fill, taken / "inner")
    score = ["eval_miou.py", *data, "--pred-dir", folder_root / "masks", "--json", tmp_path]
    assert f"{tmp_path}: Is a directory (a file is needed, and this is a folder)" in refusal(*score)


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".part-1-2-x.json"))

    monkeypatch.setattr("tool.files.tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught:
        write_json(tmp_path / "scores.json", {})
    assert caught.value.filename == tmp_path / "scores.json"
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path / "folder"):
        pass
    assert caught.value.filename == tmp_path / "folder"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "--steps: '0' is not a whole number from 1 to 1000000000"),
        (["--momentum", "2"], "--momentum: '2' is not a number of at least 0 and below 1"),
        (["--out", ""], "--out: the path is empty: write . for the current folder"),
        (["--tau", "7"], "--tau: '7' is not a number from 0 to 1"),
        (["--num-clusters", "0"], "--num-clusters: '0' is not a whole number from 1"),
        (["--bank-size", "0"], "--bank-size: '0' is not a whole number from 1"),
        (["--temperature", "0"], "--temperature: '0' is not a number from 0.03"),
    ],
)
def test_a_number_beyond_its_range_is_refused_by_its_flag(flags, words, data, tmp_path) -> None:
    assert words in refusal("train_fbr.py", *data, "--out", tmp_path / "run", *flags)
