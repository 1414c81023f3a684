"""Lists, ids and names in the forms of the field and of other systems; two files of one id."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder, write_voc
from PIL import Image

from data.catalog import Catalog, open_catalog
from data.dataset import InferDataset
from data.files import IMAGE_SUFFIXES
from data.lists import id_of_line
from tool.infer.scales import Views

COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
COCO = "COCO_val2014_000000000042"


@pytest.fixture
def coco(tmp_path: Path) -> Catalog:
    """COCO with one image of each split."""
    for name in ("train2014", "val2014", "lists"):
        (tmp_path / name).mkdir()
    for one in (COCO, "COCO_train2014_000000000009"):
        Image.new("RGB", (8, 6)).save(tmp_path / one.split("_")[1] / f"{one}.jpg")
    return open_catalog("coco14", tmp_path)


def read_list(catalog: Catalog, *lines: str) -> list[str]:
    folder = catalog.root / catalog.layout.lists
    (folder / "mine.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return catalog.ids("mine")


@pytest.mark.parametrize(
    "line",
    [
        "2007_000032 0 14 ",
        "2007_000032\t19",
        "2007_000032 -1",
        "2007_000032.jpg",
        "2007_000032.jpg 3 4",
        "2007000032",
        "/JPEGImages/2007_000032.jpg",
    ],
)
def test_forms_of_voc_lists(tmp_path: Path, line: str) -> None:
    catalog = open_catalog("voc12", write_voc(tmp_path, "2007_000032"))
    assert read_list(catalog, line) == ["2007_000032"]


@pytest.mark.parametrize(
    "line",
    [
        f"/JPEGImages/{COCO}.jpg /SegmentationClass/{COCO}.png",
        f"/val2014/{COCO}.jpg",
        f"{COCO} 45 49 50",
        "000000000042",
        "42",
    ],
)
def test_forms_of_coco_lists(coco: Catalog, line: str) -> None:
    assert read_list(coco, line) == [COCO]


def test_the_files_decide_what_an_id_is(folder_dataset: Path) -> None:
    catalog = open_catalog("folder", folder_dataset)
    for name in ("trip 1 2.jpg", "trip 1.jpg", "x.jpg.png", "x.png", "12.png", "0012.png"):
        Image.new("RGB", (4, 4)).save(catalog.root / "images" / name)
    lines = ["trip 1 2", "trip 1 3", "x.jpg", "x.png", "0012", "12", "nobody 7"]
    wanted = ["trip 1 2", "trip 1", "x.jpg", "x", "0012", "12", "nobody 7"]
    assert read_list(catalog, *lines) == wanted


def test_plain_ids_need_no_file() -> None:
    for line in ("a1", "my photo", "v1.2.x", "2007_000032", "9" * 5000):
        found = id_of_line(
            line, (), exists=lambda _: pytest.fail("looked"), ids_of_int=lambda _: ()
        )
        assert found == line


def test_integer_labels_of_coco(coco: Catalog) -> None:
    label = np.zeros(80, np.float32)
    label[3] = 1
    pickled = np.array({np.int32(9): label, 42: 1 - label}, object)
    np.save(coco.root / "cls_labels.npy", pickled, allow_pickle=True)
    assert coco.label("COCO_train2014_000000000009").tolist() == label.tolist()
    assert coco.label(COCO).tolist() == (1 - label).tolist()


@pytest.mark.parametrize("on_disk", [COMPOSED, APART])
@pytest.mark.parametrize("typed", [COMPOSED, APART])
def test_accents_are_one_letter(tmp_path: Path, on_disk: str, typed: str) -> None:
    root = write_folder(tmp_path / "data")
    Image.new("RGB", (8, 6)).save(root / "images" / f"{on_disk}.jpg")
    (root / "classes.txt").write_text(f"{APART}\n", encoding="utf-8")
    rows = f"image_id,classes\n{typed},{COMPOSED}\n"
    (root / "labels.csv").write_text(rows, encoding="utf-8")
    (root / "lists/train.txt").write_text(f"{APART}\n", encoding="utf-8")
    catalog = open_catalog("folder", root)
    (image_id,) = catalog.ids("train")
    assert catalog.label(image_id).tolist() == [1]
    assert catalog.read_image(image_id).size == (8, 6)
    pickled = np.array({typed: np.ones(1, np.float32)}, object)
    np.save(root / "labels.npy", pickled, allow_pickle=True)
    assert open_catalog("folder", root, labels=root / "labels.npy").label(image_id).tolist() == [1]


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_read(folder_dataset: Path, suffix: str) -> None:
    catalog = open_catalog("folder", folder_dataset)
    Image.new("RGB", (8, 6), (9, 200, 30)).save(catalog.root / "images" / f"new{suffix}")
    assert np.allclose(np.asarray(catalog.read_image("new"))[0, 0], (9, 200, 30), atol=3)
    assert catalog.image_size("new") == (8, 6)


@pytest.mark.parametrize(
    ("folder", "first", "second"),
    [
        ("images", "two.JPG", "two.png"),
        ("images", f"{COMPOSED}.jpg", f"{APART}.jpg"),
        ("masks", "two.png", "two.PNG"),
        ("saliency", "two.jpg", "two.png"),
    ],
)
def test_two_files_of_one_id(folder_dataset: Path, folder: str, first: str, second: str) -> None:
    catalog = open_catalog("folder", folder_dataset)
    for name in (first, second):
        Image.new("L", (8, 6)).save(catalog.root / folder / name)
    find = {"images": "image_path", "masks": "mask_path", "saliency": "saliency_path"}[folder]
    with pytest.raises(ValueError, match="keep one of the two files") as error:
        getattr(catalog, find)(Path(first).stem)
    assert first in str(error.value)
    assert second in str(error.value)


def test_one_file_under_two_names(folder_dataset: Path) -> None:
    images = folder_dataset / "images"
    (images / "a1.JPG").hardlink_to(images / "a1.jpg")  # as where the case does not count
    assert open_catalog("folder", folder_dataset).image_path("a1").name == "a1.jpg"


def test_labels_of_a_spreadsheet(folder_dataset: Path) -> None:
    rows = 'image_id;classes\na1;"disc;square"\nb-4;sky lark\n'
    (folder_dataset / "labels.csv").write_text(rows)
    catalog = open_catalog("folder", folder_dataset)
    assert catalog.label("a1").tolist() == [1, 1, 0]
    assert catalog.label("b-4").tolist() == [0, 0, 1]


def test_an_id_with_a_suffix_leads_on(folder_dataset: Path) -> None:
    catalog = open_catalog("folder", folder_dataset)
    (catalog.root / "labels.csv").write_text("image_id,classes\na1.jpg,disc\n")
    for look in (catalog.label, lambda one: InferDataset(catalog, [one], views=Views((1.0,)))):
        with pytest.raises(ValueError, match=r"has 'a1\.jpg': drop the suffix"):
            look("a1")
    with pytest.raises(FileNotFoundError, match="drop the suffix"):
        catalog.image_path("a1.jpg")


def test_two_files_of_labels_must_agree(folder_dataset: Path) -> None:
    catalog = open_catalog("folder", folder_dataset)
    labels = {one: catalog.label(one) for one in catalog.ids("train")[:3]}
    path = catalog.root / "cls_labels.npy"
    np.save(path, np.array(labels, object), allow_pickle=True)
    assert open_catalog("folder", folder_dataset).label("a1").tolist() == [1, 0, 0]
    labels["a1"] = np.array([0, 1, 0], np.float32)
    np.save(path, np.array(labels, object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels\.csv and .*cls_labels\.npy give 'a1' different"):
        open_catalog("folder", folder_dataset).label("a1")
    assert open_catalog("folder", folder_dataset, labels=path).label("a1").tolist() == [0, 1, 0]
