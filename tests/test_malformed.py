"""Damaged files of every kind, some 250 of them: exit status 0 or 2, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import run, train_flags

from tool.formats.cam import Cam, save_cam

IMAGE = "a1"
NAMES = ("labels.csv", "cls_labels.npy", "list.txt", "cam.npy", "psa.npy", "mask.png")
WEIGHTS = ("checkpoint.pth", "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    """One valid file of every kind, and a `folder` dataset in `data/`."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(folder_root, root / "data")
    assert run("train_fbr.py", *train_flags(root / "data", root, method="cam", steps=1)).stdout
    run("network/export.py", root / "checkpoint.pth")
    shutil.copy(root / "data" / "labels.csv", root / "labels.csv")
    labels = {IMAGE: np.array([1, 0, 0], np.float32)}
    np.save(root / "cls_labels.npy", np.array(labels, dtype=object), allow_pickle=True)
    (root / "list.txt").write_text(f"{IMAGE}\n")
    cam = Cam(np.array([1], np.uint8), np.full((1, 64, 80), 0.5, np.float32))
    save_cam(root / "cam.npy", cam)
    psa = np.array({0: cam.cam[0].astype(np.float16)}, dtype=object)
    np.save(root / "psa.npy", psa, allow_pickle=True)
    shutil.copy(root / "data" / "masks" / f"{IMAGE}.png", root / "mask.png")
    return root


def command_for(root: Path, path: Path) -> tuple[str, list[object]]:
    """The stage that reads a file of this kind, on one image."""
    out = root / "out"
    data = ["--dataset", "folder", "--root", root / "data", "--list", root / "list.txt"]
    if path.stem == "list":
        data[-1] = path
    if path.stem in ("labels", "cls_labels", "list"):
        return "data/fill.py", [*data, "--labels", root / "labels.csv", "--out", out] + (
            ["--labels", path] if path.stem != "list" else []
        )
    if path.name in WEIGHTS:
        flags = ["--checkpoint", path, *data, "--out", out, "--scales", 0.5]
        return "infer_cam.py", [*flags, "--num-workers", 0, "--device", "cpu"]
    folder = root / "predictions"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(path, folder / f"{IMAGE}{path.suffix}")
    return "eval_miou.py", ["--pred-dir", folder, *data]


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Some bytes changed, cut off, doubled, or all of them others."""
    content = bytearray(content)
    how = data.draw(st.sampled_from(["change", "cut", "insert", "replace", "other"]))
    place = st.integers(0, max(0, len(content) - 1))
    if how == "cut":
        return bytes(content[: data.draw(place)])
    if how == "other":
        return data.draw(st.binary(max_size=200))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.one_of(st.integers(0, min(300, len(content) - 1)), place))
        extra = data.draw(st.binary(min_size=1, max_size=8))
        width = {"change": 1, "insert": 0, "replace": len(extra)}[how]
        content[at : at + width] = extra[:1] if how == "change" else extra
    return bytes(content)


def assert_read_or_refused(root: Path, name: str, content: bytes) -> None:
    """The stage ends with 0, or with 2 and one line; any other exception fails in `run`."""
    path = root / "damaged" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    shutil.rmtree(root / "out", ignore_errors=True)
    script, flags = command_for(root, path)
    result = run(script, *flags)
    assert result.returncode in (0, 2)
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == (1 if result.returncode else 0), result.stderr
    assert "Traceback" not in result.stderr


def check(name: str, examples: int) -> Callable[[Path], None]:
    """A property over damaged versions of one kind of file."""

    def property_of(whole: Path) -> None:
        @settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(data=st.data())
        def holds(data: st.DataObject) -> None:
            content = damaged(data, (whole / name).read_bytes())
            assert_read_or_refused(whole, name, content)

        holds()

    return property_of


@pytest.mark.parametrize("name", [*NAMES, *WEIGHTS])
def test_the_whole_file_is_read(whole: Path, name: str) -> None:
    script, flags = command_for(whole, whole / name)
    shutil.rmtree(whole / "out", ignore_errors=True)
    result = run(script, *flags)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_damaged_data(whole: Path, name: str) -> None:
    check(name, 35)(whole)


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(whole: Path, name: str) -> None:
    check(name, 20)(whole)
