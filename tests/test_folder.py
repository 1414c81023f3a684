"""`data.folder`: photographs and a `labels.csv` become a dataset; what is there stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from runs import assert_refused, run

from data.catalog import open_catalog


@pytest.fixture
def photographs(folder_dataset: Path) -> Path:
    """Images and labels alone."""
    (folder_dataset / "classes.txt").unlink()
    for path in (folder_dataset / "lists").iterdir():
        path.unlink()
    return folder_dataset


def folder(root: Path, *flags: str):
    return run("data/folder.py", "--root", root, *flags)


def test_makes_a_dataset_of_photographs_and_labels(photographs) -> None:
    result = folder(photographs)
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("folder", photographs)
    assert catalog.class_names == tuple(sorted(FOLDER_CLASSES))
    assert catalog.ids("train") == list(FOLDER_IMAGES)
    index = catalog.class_names.index("sky lark")
    assert np.flatnonzero(catalog.label("v1.2.x")).tolist() == [index]
    assert "8 images, 3 classes" in result.stdout


def test_what_is_there_stays(photographs) -> None:
    names = "square\nsky lark\ndisc\nwhale\n"
    (photographs / "classes.txt").write_text(names)
    (photographs / "lists" / "train.txt").write_text("c5\n")
    assert folder(photographs).returncode == 0
    assert (photographs / "classes.txt").read_text() == names
    assert (photographs / "lists" / "train.txt").read_text() == "c5\n"


def test_what_changed_is_said_and_can_be_written_anew(photographs) -> None:
    labels, classes = photographs / "labels.csv", photographs / "classes.txt"
    labels.write_text("image_id,classes\na1,disc\nb-4,square\n")
    assert folder(photographs).returncode == 0
    labels.write_text("image_id,classes\na1,disc\nb-4,disc\nc5,disc\n")
    result = folder(photographs)
    assert result.returncode == 0
    assert "leaves out c5 of labels.csv: --overwrite" in result.stdout
    assert "has square, which no image of labels.csv has: --overwrite" in result.stdout
    assert "2 images, 2 classes" in result.stdout
    result = folder(photographs, "--overwrite")
    assert "3 images, 1 classes" in result.stdout
    assert "--overwrite" not in result.stdout
    labels.write_text("image_id,classes\na1,whale\n")
    assert_refused(folder(photographs), "classes.txt lacks whale", "--overwrite writes it anew")
    assert classes.read_text() == "disc\n"
    assert folder(photographs, "--overwrite").returncode == 0
    assert classes.read_text() == "whale\n"


@pytest.mark.parametrize("row", ["a1,background;disc", "nobody,disc", "a1,", "../a1,disc"], ids=str)
def test_nothing_is_written_of_labels_that_are_refused(photographs, row: str) -> None:
    labels = photographs / "labels.csv"
    labels.write_text(f"image_id,classes\n{row}\n")
    assert folder(photographs).returncode == 2
    assert not (photographs / "classes.txt").exists()
    labels.write_text("image_id,classes\na1,disc\n")
    assert folder(photographs).returncode == 0


def test_a_broken_photograph_is_named_and_counted(photographs) -> None:
    path = photographs / "images" / "a1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    result = folder(photographs)
    assert result.returncode == 0
    assert "cannot be read: a1: " in result.stdout
    assert "1 of them" in result.stdout


def test_refusals(photographs) -> None:
    labels = photographs / "labels.csv"
    (photographs / "images" / "c5.jpg").unlink()
    assert_refused(folder(photographs), "c5")
    labels.write_text("image_id,classes\na1,\n")
    assert_refused(folder(photographs), "names no class")
    labels.write_text("image_id,classes\n../a1,disc\n")
    assert_refused(folder(photographs), "../a1")
    labels.unlink()
    assert_refused(folder(photographs), "labels.csv")
