"""Labels and class names: the files of the field, ours, and what is wrong with others."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import write_voc
from PIL import Image

import voc12
from data.catalog import Catalog, open_catalog
from data.labels import read_labels

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


def save_pickled(path: Path, labels: dict) -> None:
    np.save(path, np.array(labels, dtype=object), allow_pickle=True)


def dog() -> np.ndarray:
    return (np.array(voc12.CLASS_NAMES) == "dog").astype(np.float32)


def test_label_is_a_copy(catalog: Catalog) -> None:
    catalog.label("a1")[:] = 7
    assert set(catalog.label("a1")) == {0, 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,classes\na1,disc\n", "header 'image_id,classes'"),
        ("", "header 'image_id,classes'"),
        ("image_id,classes\na1,disc\na1,square\n", "row 3 labels 'a1' a second time"),
        ("image_id,classes\na1,disc;cube\n", "unknown class 'cube'; there are disc, square, sky"),
        ("image_id,classes\na1,disc,square\n", "row 2 is not"),
        ("image_id,classes\na1\n", "row 2 is not"),
        ('image_id,classes\n"a1,disc\n', "not a CSV file"),
        ("image_id,classes\n\xe9,disc\n", "not UTF-8"),
    ],
)
def test_bad_labels_csv(catalog: Catalog, content: str, message: str) -> None:
    (catalog.root / "labels.csv").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        catalog.label("a1")
    assert "labels.csv" in str(error.value)


def test_absent_label_names_the_id(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match=r"'nobody' has no label in .*labels\.csv"):
        catalog.label("nobody")


def test_no_labels_at_all(catalog: Catalog) -> None:
    (catalog.root / "labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match="--labels"):
        catalog.label("a1")


@pytest.mark.parametrize("name", ["none.csv", "none.npy", "none"])
def test_a_labels_file_that_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{name} do not exist: pass --labels"):
        read_labels(tmp_path / name, voc12.CLASS_NAMES)


@pytest.mark.parametrize("key", [2007000032, np.int32(2007000032), "2007_000032"])
def test_pickled_labels_with_both_kinds_of_keys(tmp_path: Path, key: object) -> None:
    root = write_voc(tmp_path, "2007_000032")
    save_pickled(root / "cls_labels.npy", {key: dog()})
    catalog = open_catalog("voc12", root)
    assert (catalog.label("2007_000032") == dog()).all()
    assert catalog.read_mask("2007_000032")[0, 0] == 1 + dog().argmax()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"x": np.ones(3, np.float32)}, "shape (3,): there are 20 classes"),
        ({"x": dog() * 2}, "other than 0 and 1"),
        ({"x": dog() * np.nan}, "other than 0 and 1"),
        ({2007000032: dog(), "2007_000032": dog()}, "a second time"),
        ({1.5: dog()}, "neither a string nor an integer"),
        ({}, "no dictionary"),
    ],
)
def test_bad_pickled_labels(tmp_path: Path, labels: dict, message: str) -> None:
    root = write_voc(tmp_path, "x")
    save_pickled(root / "cls_labels.npy", labels)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        open_catalog("voc12", root).label("x")
    assert "cls_labels.npy" in str(error.value)


class Dangerous:
    """Unpickled without restriction, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_pickled_labels_run_nothing(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", "x")
    save_pickled(root / "cls_labels.npy", {"x": Dangerous(tmp_path / "made")})
    with pytest.raises(ValueError, match=r"cls_labels\.npy"):
        open_catalog("voc12", root).label("x")
    assert not (tmp_path / "made").exists()


def test_voc_annotations_serve_as_labels(tmp_path: Path) -> None:
    root = write_voc(tmp_path, "x")
    (root / "Annotations").mkdir()
    part = "<part><name>head</name></part>"
    (root / "Annotations" / "x.xml").write_text(
        f"<annotation><object><name>dog</name>{part}</object>"
        "<object><name>dog</name></object></annotation>"
    )
    (root / "Annotations" / "broken.xml").write_text("<annotation>")
    catalog = open_catalog("voc12", root)
    assert (catalog.label("x") == dog()).all()
    assert not catalog.has_label("y")
    with pytest.raises(ValueError, match=r"broken\.xml"):
        catalog.label("broken")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists 0 classes"),
        ("a\nb\na\n", "a class twice: a"),
        ("background\na\n", "'background'"),
        ("a;b\n", "'a;b'"),
        ("".join(f"c{i}\n" for i in range(255)), "lists 255 classes"),
    ],
)
def test_bad_classes_txt(folder_dataset: Path, content: str, message: str) -> None:
    (folder_dataset / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_catalog("folder", folder_dataset)


def test_254_classes_are_possible(folder_dataset: Path) -> None:
    (folder_dataset / "classes.txt").write_text("".join(f"c{i}\n" for i in range(254)))
    (folder_dataset / "labels.csv").write_text("image_id,classes\na1,c253\n")
    Image.fromarray(np.full((64, 80), 254, np.uint8)).save(folder_dataset / "masks" / "a1.png")
    catalog = open_catalog("folder", folder_dataset)
    assert catalog.label("a1").argmax() + 1 == 254 == catalog.read_mask("a1")[0, 0]


@pytest.mark.skipif(not (REAL_DATA / "voc6").is_dir(), reason="no photographs here")
def test_real_photographs_by_both_label_files() -> None:
    root = REAL_DATA / "voc6"
    by_csv = open_catalog("voc12", root)
    by_npy = open_catalog("voc12", root, labels=root / "cls_labels.npy")
    assert by_csv.num_classes == 20
    for image_id in by_csv.ids("val"):
        assert (by_csv.label(image_id) == by_npy.label(image_id)).all()
    mask = by_csv.read_mask(image_id)
    assert set(np.unique(mask)) & set(np.flatnonzero(by_csv.label(image_id)) + 1)
