"""Photographs that change between two runs of a stage: what is made from them is made anew."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import run, train_flags

from tool.formats.cam import load_cam
from tool.provenance import PHOTOGRAPHS, check_photographs


def turn(path: Path) -> None:
    """Turn a photograph upside down, which keeps its size and changes its content."""
    with Image.open(path) as image:
        turned = image.rotate(180)
    turned.save(path)


def photograph(root: Path, image_id: str) -> Path:
    """Return the file of a photograph."""
    return next((root / "images").glob(f"{image_id}.*"))


def test_every_stage_makes_anew_what_a_changed_photograph_made(folder_dataset, tmp_path) -> None:
    root = folder_dataset
    assert run("train_fbr.py", *train_flags(root, tmp_path, method="eps", steps=1)).returncode == 0
    data = ["--dataset", "folder", "--root", root, "--list", "train"]

    def stages(name: str) -> tuple[str, str]:
        """Run stages 2 and 3 into folders of this name; return what they print."""
        cam, masks = tmp_path / name / "cam", tmp_path / name / "in-one-pass"
        second = run(
            "infer_cam.py",
            *("--checkpoint", tmp_path / "checkpoint.pth", *data, "--scales", 1),
            *("--out", cam, "--masks", masks),
        )
        assert second.returncode == 0, second.stderr
        third = run(
            "crf_postprocess.py", "--cam-dir", cam, "--out", tmp_path / name / "mask", *data
        )
        assert third.returncode == 0, third.stderr
        return second.stdout, third.stdout

    def written(name: str) -> dict[str, Path]:
        """Return the maps and masks by their path in a folder."""
        files = (path for end in ("npy", "png") for path in (tmp_path / name).rglob(f"*.{end}"))
        return {str(path.relative_to(tmp_path / name)): path for path in files}

    stages("kept")
    times = {name: path.stat().st_mtime_ns for name, path in written("kept").items()}
    cam = (tmp_path / "kept" / "cam" / "a1.npy").read_bytes()
    turn(photograph(root, "a1"))
    # The time of a file says nothing: a copy of a dataset has new ones.
    photograph(root, "my photo").touch()
    second, third = stages("kept")
    assert second.count("1 changed photographs, made anew: a1") == 2  # the maps, the masks
    assert "1 changed photographs, made anew: a1" in third
    after = written("kept")
    anew = {name for name, path in after.items() if path.stat().st_mtime_ns != times[name]}
    assert anew == {"cam/a1.npy", "in-one-pass/a1.png", "mask/a1.png"}
    assert after["cam/a1.npy"].read_bytes() != cam
    stages("fresh")
    fresh = written("fresh")
    assert fresh.keys() == after.keys() == times.keys()
    assert all(fresh[name].read_bytes() == path.read_bytes() for name, path in after.items())
    assert "changed" not in "".join(stages("kept"))


def test_maps_of_changed_labels_or_seeds_are_made_anew(folder_dataset, tmp_path) -> None:
    """Such as seeds corrected by hand: the note in their folder is the same as before."""
    root, seeds, out = folder_dataset, tmp_path / "seed", tmp_path / "out"
    shutil.copytree(root / "masks", seeds)
    (seeds / "made_from.json").write_text('{"layout": "labelme"}')
    train = [*train_flags(root, tmp_path, method="amn", steps=1), "--seed-dir", seeds]
    assert run("train_fbr.py", *train).returncode == 0
    data = ["--dataset", "folder", "--root", root, "--list", "train", "--scales", 1]
    infer = ["--checkpoint", tmp_path / "checkpoint.pth", *data, "--seed-dir", seeds]
    infer += ["--out", out / "cam", "--argmax", out / "mask"]

    def anew(*said: str) -> set[str]:
        """Run stage 2; return the ids of the files that it wrote."""
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
        result = run("infer_cam.py", *infer)
        assert result.returncode == 0, result.stderr
        for line in said:
            assert result.stdout.count(line) == 2, "in the folders of maps and of masks"
        files = [*out.rglob("*.npy"), *out.rglob("*.png")]
        return {path.stem for path in files if times.get(path) != path.stat().st_mtime_ns}

    assert len(anew()) == 8
    assert anew() == set()
    labels = root / "labels.csv"
    labels.write_text(labels.read_text().replace("a1,disc", "a1,square"))
    assert anew("1 changed labels, made anew: a1") == {"a1"}
    assert load_cam(out / "cam" / "a1.npy").class_index.tolist() == [2]
    turn(seeds / "d6.png")
    assert anew("1 changed seeds, made anew: d6") == {"d6"}
    assert anew() == set()


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Return three photographs, each with a file in out/ that was made from it."""
    (tmp_path / "out").mkdir()
    for name in "abc":
        Image.fromarray(np.full((4, 4, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / "out" / f"{name}.npy").write_text(name)
    return {name: tmp_path / f"{name}.png" for name in "abc"}


def made(out: Path) -> list[str]:
    """Return the names of the files that were made."""
    return sorted(path.stem for path in out.glob("*.npy"))


def test_a_photograph_that_was_not_noted_keeps_its_file(files, tmp_path) -> None:
    out = tmp_path / "out"

    def check(names: str) -> None:
        paths = {name: files[name] for name in names}
        check_photographs(out, paths, lambda name: [out / f"{name}.npy"])

    check("a")
    turn_to = files["b"].read_bytes()
    files["a"].write_bytes(turn_to)  # noted: its file goes
    files["c"].write_bytes(turn_to)  # not noted yet
    check("bc")
    assert made(out) == ["a", "b", "c"], "an image that is not in the list stays as it is"
    check("abc")
    assert made(out) == ["b", "c"]
    files["c"].write_bytes(b"something else")
    check("abc")
    assert made(out) == ["b"], "the note of an earlier, shorter list was kept"


def test_a_run_that_is_killed_before_its_note_removes_the_file_all_the_same(
    files, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    check_photographs(out, files, lambda name: [out / f"{name}.npy"])
    files["a"].write_bytes(files["b"].read_bytes())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tool.provenance.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        check_photographs(out, files, lambda name: [out / f"{name}.npy"])
    assert made(out) == ["b", "c"]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_broken_note_is_refused_and_nothing_is_lost(content, files, tmp_path) -> None:
    out = tmp_path / "out"
    (out / PHOTOGRAPHS).write_text(content)
    with pytest.raises(ValueError, match="is broken: choose another --out"):
        check_photographs(out, files, lambda name: [out / f"{name}.npy"])
    assert made(out) == ["a", "b", "c"]
