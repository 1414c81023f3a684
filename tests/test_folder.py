"""`data.folder`: photographs and a `labels.csv` become a dataset; what is there stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from PIL import Image
from runs import assert_refused, run

from data.catalog import open_catalog
from data.labels import csv_bytes, csv_rows
from tool.files import write_json
from tool.provenance import MADE_FROM


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


def test_photographs_without_labels_are_named(photographs) -> None:
    (photographs / "images" / "trip").mkdir()
    for name in ("trip/new.JPG", "scored.png", ".hidden.png"):
        write_photograph(photographs / "images" / name, 1)
    (photographs / "images" / "notes.txt").write_text("no photograph")
    folder(photographs)
    (photographs / "lists" / "val.txt").write_text("scored\n")
    result = folder(photographs)
    assert result.returncode == 0
    said = f"labels.csv has no row of trip/new in {photographs / 'images'}: left out"
    assert said in result.stdout
    with (photographs / "labels.csv").open("a") as file:
        file.write("trip/new,disc\n")
    assert "no row of" not in folder(photographs).stdout


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
    (photographs / "lists" / "train.txt").write_text("a1\nb-4\n")
    labels.write_text("image_id,classes\na1,disc\n")
    assert_refused(folder(photographs), "'b-4' has no label in")
    assert not (photographs / "classes.txt").exists()
    (photographs / "lists" / "train.txt").unlink()
    labels.write_text("image_id,classes\n../a1,disc\n")
    assert_refused(folder(photographs), "../a1")
    labels.unlink()
    assert_refused(folder(photographs), "labels.csv")


def test_the_list_of_every_photograph_is_kept_up_to_date(photographs) -> None:
    labels, every = photographs / "labels.csv", photographs / "lists" / "photographs.txt"
    labels.write_text("image_id,classes\na1,disc\n")
    folder(photographs)
    (photographs / "lists" / "val.txt").write_text("c5\n")
    labels.write_text("image_id,classes\na1,disc\nb-4,disc\nc5,disc\nnobody,disc\n")
    result = folder(photographs)
    assert "leaves out b-4, nobody of labels.csv" in result.stdout
    assert (photographs / "lists" / "train.txt").read_text() == "a1\n"
    assert every.read_text() == "a1\nb-4\n"
    labels.write_text("image_id,classes\na1,disc\nb-4,disc\nc5,disc\n")
    assert folder(photographs, "--overwrite").returncode == 0
    assert (photographs / "lists" / "train.txt").read_text() == "a1\nb-4\n", "without val"


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    """A folder per class, one photograph in two of them, and files that are no photographs."""
    root = tmp_path / "my photos"
    for number, name in enumerate(("cat/1.jpg", "cat/Müller 2.JPG", "dog/1.jpg", "dog/x 3.png")):
        write_photograph(root / name, number)
    shutil.copyfile(root / "cat" / "1.jpg", root / "dog" / "both (1).jpg")
    (root / "cat" / "notes.txt").write_text("no photograph")
    (root / ".thumbnails").mkdir()
    shutil.copyfile(root / "cat" / "1.jpg", root / ".thumbnails" / "1.jpg")
    return root


def write_photograph(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10 + number), (9 * number, 90, 90)).save(path)


def labels_of(root: Path) -> dict[str, list[str]]:
    return dict(csv_rows(root / "labels.csv"))


def test_folders_are_labels(by_class: Path) -> None:
    result = folder(by_class)
    assert result.returncode == 0, result.stderr
    expected = {"cat/1": ["cat", "dog"], "cat/Müller 2": ["cat"]}
    expected |= {"dog/1": ["dog"], "dog/x 3": ["dog"]}
    assert labels_of(by_class) == expected
    assert (
        "one photograph each, with the classes of all its folders: cat/1.jpg and dog/both (1).jpg\n"
        in result.stdout
    )
    kinds = "jpg, jpeg, png, webp, bmp, tif, tiff"
    assert f"left out, as only photographs in {kinds} are read: cat/notes.txt\n" in result.stdout
    assert "4 images, 2 classes: cat, dog" in result.stdout
    catalog = open_catalog("folder", by_class)
    assert catalog.ids("train") == list(expected)
    for image_id, names in expected.items():
        assert catalog.label(image_id).tolist() == [name in names for name in ("cat", "dog")]
        assert catalog.image_path(image_id).parent.name == image_id.split("/")[0]
    assert "wrote" not in folder(by_class).stdout, "nothing is new"


def test_new_photographs_in_folders_get_labels_and_are_not_trained_on(by_class: Path) -> None:
    folder(by_class)
    rows = labels_of(by_class) | {"dog/1": ["dog", "cat"]}  # by hand: a cat is there, too
    (by_class / "labels.csv").write_bytes(csv_bytes(rows.items()))
    write_photograph(by_class / "cat" / "0 new.jpg", 7)
    shutil.copyfile(by_class / "cat" / "Müller 2.JPG", by_class / "dog" / "2.JPG")
    result = folder(by_class)
    assert "1 photographs are new: cat/0 new" in result.stdout
    assert "train.txt leaves out cat/0 new of labels.csv: --overwrite" in result.stdout
    new = {"cat/Müller 2": ["cat", "dog"], "cat/0 new": ["cat"]}
    assert labels_of(by_class) == rows | new
    catalog = open_catalog("folder", by_class)
    assert len(catalog.ids("train")) == 4
    assert catalog.ids("photographs") == [*rows, "cat/0 new"]
    assert "5 images, 2 classes" in folder(by_class, "--overwrite").stdout
    assert len(catalog.ids("train")) == 5


def test_photographs_that_are_gone_are_named_and_their_rows_dropped(by_class: Path) -> None:
    folder(by_class)
    (by_class / "dog" / "x 3.png").unlink()
    assert_refused(folder(by_class), "dog/x 3", "--overwrite drops the rows")
    assert folder(by_class, "--overwrite").returncode == 0
    assert "dog/x 3" not in labels_of(by_class)


def test_results_in_the_root_are_no_classes(by_class: Path) -> None:
    write_photograph(by_class / "corrected" / "1.png", 1)
    write_json(by_class / "corrected" / MADE_FROM, {})
    write_photograph(by_class / "saliency" / "1.png", 1)
    assert "2 classes: cat, dog" in folder(by_class).stdout
    write_photograph(by_class / "images" / "1.png", 1)
    (by_class / "labels.csv").unlink()
    assert_refused(folder(by_class), "labels.csv does not exist")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("background/1.jpg", "'background' is not a possible name"),
        ("cat;dog/1.jpg", "'cat;dog' is not a possible name"),
        ("cat/ 1.jpg", "begins or ends with a space"),
        ("cat/1.png", "can be"),
    ],
)
def test_names_that_no_class_or_image_can_have(by_class: Path, name: str, words: str) -> None:
    write_photograph(by_class / name, 8)
    assert_refused(folder(by_class), words)
    assert not (by_class / "classes.txt").exists()
