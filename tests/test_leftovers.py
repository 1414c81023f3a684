"""Temporary files of killed processes go, names may be long, and a lost folder is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from runs import REPOSITORY, assert_refused, environment, run

from data.files import check_id, list_bytes
from data.toy import write_toy
from tool import leftovers
from tool.cli import one_line
from tool.download.archive import unpack
from tool.files import atomic_path, locked, temporary_folder
from tool.leftovers import part_of, remove_left

KILLED = """
import os, sys
from pathlib import Path
from tool.files import atomic_path, temporary_folder
folder = Path(sys.argv[1])
with atomic_path(folder / "a.npy") as path, temporary_folder(folder) as inside:
    path.write_text("half")
    (inside / "image.png").write_text("half")
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which a process was killed while it wrote."""
    folder = tmp_path / "out"
    folder.mkdir()
    line = [sys.executable, "-c", KILLED, str(folder)]
    assert subprocess.run(line, cwd=REPOSITORY, env=environment(), check=False).returncode == -9
    assert len(list(folder.iterdir())) == 2
    remove_left.cache_clear()
    return folder


def test_the_next_file_removes_what_a_killed_process_left(killed: Path) -> None:
    with atomic_path(killed / "b.npy") as path:
        path.write_text("whole")
    assert [path.name for path in killed.iterdir()] == ["b.npy"]


def test_the_next_folder_removes_what_a_killed_process_left(killed: Path) -> None:
    with temporary_folder(killed) as folder:
        assert list(killed.iterdir()) == [folder]
    assert list(killed.iterdir()) == []


def test_the_next_run_removes_what_a_killed_process_left(killed: Path) -> None:
    with locked(killed):
        assert [path.name for path in killed.iterdir()] == [".lock"]


def test_a_dataset_that_was_not_finished_goes_with_the_next_one(killed: Path) -> None:
    write_toy(killed / "toy", train=1, val=1)
    assert [path.name for path in killed.iterdir()] == ["toy"]


def test_what_was_left_under_the_number_of_this_process_goes(tmp_path: Path) -> None:
    """As in a container that was killed and started again."""
    host = part_of().split("-")[1]
    left = tmp_path / f".part-{host}-{os.getpid()}-0123abcd-xyz.npy"
    left.touch()
    with atomic_path(tmp_path / "a.npy") as first:
        first.touch()
        assert not left.exists()
        remove_left.cache_clear()
        with atomic_path(tmp_path / "b.npy") as second:
            second.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_what_others_are_writing_stays(tmp_path: Path, monkeypatch) -> None:
    with atomic_path(tmp_path / "a.npy") as mine, temporary_folder(tmp_path) as inside:
        monkeypatch.setattr(leftovers, "_host", lambda: "elsewhere")
        with atomic_path(tmp_path / "b.npy") as theirs:
            monkeypatch.undo()
            (tmp_path / ".part-mine").touch()
            (tmp_path / f"{mine.name.split('-')[0]}-x-y").touch()
            remove_left.cache_clear()
            remove_left(tmp_path)
            assert mine.exists()
            assert theirs.exists()
            assert inside.exists()
            assert len(list(tmp_path.iterdir())) == 5


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.npy"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Nor is a device, as `--json /dev/null` names one that root could replace."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with (
            pytest.raises(ValueError, match=f"{name} is no file but"),
            atomic_path(tmp_path / name),
        ):
            pass
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_during_a_run_is_told(tmp_path: Path, again: bool) -> None:
    """A file that is written afterwards makes the folder anew, without those before it."""

    def block() -> None:
        with locked(tmp_path / "out"):
            shutil.rmtree(tmp_path / "out")
            if again:
                with atomic_path(tmp_path / "out" / "b.npy") as path:
                    path.touch()

    with pytest.raises(ValueError, match="removed or replaced"):
        block()


def test_an_error_in_a_run_is_not_hidden_by_the_check_of_its_folder(tmp_path: Path) -> None:
    def block() -> None:
        with locked(tmp_path / "out"):
            shutil.rmtree(tmp_path / "out")
            raise KeyError("first")

    with pytest.raises(KeyError):
        block()


@pytest.mark.parametrize("flag", ["--out", "--root", "--labels"])
def test_an_empty_path_is_refused(flag: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("data/fill.py", "--dataset", "toy", flag, ""), flag, "the path is empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_the_curve_does_not_replace_its_own_document(suffix: str, folder_root, tmp_path) -> None:
    import numpy as np

    from tool.formats.cam import Cam, save_cam

    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    for image in (Path(folder_root) / "images").iterdir():
        cam = Cam(np.array([1], np.uint8), np.ones((1, 4, 4), np.float32))
        save_cam(tmp_path / "cam" / f"{image.stem}.npy", cam)
    command = ["eval_miou.py", "--pred-dir", tmp_path / "cam", *data, "--sweep"]
    assert_refused(run(*command, "--json", tmp_path / f"x{suffix}"), "--json")
    assert not (tmp_path / f"x{suffix}").exists()


def test_a_line_is_cut_and_has_nothing_that_a_terminal_obeys() -> None:
    line = one_line(ValueError("a\x1b[31m\x07\x9b\u202eb" + "x" * 5_000_000))
    assert len(line) < 5000
    assert line.isprintable()
    assert line.startswith("a\\x1b[31m\\x07\\x9b\\u202eb")
    assert one_line(OSError(2, "No such file", "a\x1bb")) == "a\\x1bb: No such file"
    assert one_line(ValueError("Käse\n 物")) == "Käse 物"


def test_a_bad_flag_is_cut_and_escaped() -> None:
    result = run("data/fill.py", "--out", "x", "--list\x1b[2J" + "y" * 10**6)
    assert_refused(result, "\\x1b[2J")
    assert len(result.stderr) < 10**4


def test_what_is_said_of_a_photograph_has_nothing_that_a_terminal_obeys(folder_dataset) -> None:
    path = next((folder_dataset / "images").iterdir())
    path.rename(path.with_name("a\x1b[2Jb.jpg")).write_bytes(b"no image")
    labels = (folder_dataset / "labels.csv").read_text()
    (folder_dataset / "labels.csv").write_text(labels.replace(f"\n{path.stem},", "\na\x1b[2Jb,"))
    shutil.rmtree(folder_dataset / "lists")
    data = ["--dataset", "folder", "--root", folder_dataset]
    results = [
        run("data/folder.py", "--root", folder_dataset),
        run("data/check.py", *data, "--list", "train"),
        run(
            "data/fill.py",
            *data,
            "--list",
            "train",
            "--skip-bad-images",
            "--out",
            path.parent / "o",
        ),
    ]
    for said in (result.stdout + result.stderr for result in results):
        assert "a\\x1b[2Jb" in said
        assert "\x1b" not in said


@pytest.mark.parametrize("image_id", ["a\nb", "a\r", "\n", "a\u2028b", "a\x85b"])
def test_an_id_is_one_line(image_id: str) -> None:
    with pytest.raises(ValueError, match="image id"):
        list_bytes(["c", image_id])
    with pytest.raises(ValueError, match="image id"):
        check_id(image_id)


def test_a_photograph_with_a_line_break_in_its_name_is_not_two(folder_dataset) -> None:
    path = next((folder_dataset / "images").iterdir())
    shutil.copy(path, folder_dataset / "images" / f"one\ntwo{path.suffix}")
    (folder_dataset / "lists" / "train.txt").unlink()
    with open(folder_dataset / "labels.csv", "a") as labels:
        labels.write('"one\ntwo",disc\n')
    assert_refused(run("data/folder.py", "--root", folder_dataset), "one\\ntwo")
    assert not (folder_dataset / "lists" / "train.txt").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("list.txt", "one")
        archive.writestr("list.txt", "two")
    with pytest.raises(ValueError, match=r"'list\.txt' is in it twice"):
        unpack(tmp_path / "a.zip", tmp_path / "a")
    assert not (tmp_path / "a").exists()
