"""Lists, ids and names in the forms of the field and of other systems; two files of one id."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder, write_voc
from PIL import Image
from runs import run

from data.catalog import Catalog, open_catalog
from data.dataset import InferDataset
from data.files import _MOST_FOLDERS, IMAGE_SUFFIXES, Listings, all_found
from data.lists import id_of_line
from tool.files import spelled
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import save_mask
from tool.formats.predictions import require_files
from tool.infer.previous import PreviousOutputs
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


@pytest.mark.parametrize("listed", [False, True])
def test_an_image_in_two_folders(folder_dataset: Path, *, listed: bool) -> None:
    """Of `images/` and the root, which has the folders of classes."""
    catalog = open_catalog("folder", folder_dataset)
    Image.new("L", (8, 6)).save(catalog.root / "a1.PNG")
    if listed:
        os.utime(catalog.root, (1e9, 1e9))
    with pytest.raises(ValueError, match=r"a1\.jpg or .*a1\.PNG: keep one of the two files"):
        catalog.image_path("a1")
    (catalog.root / "a1.PNG").rename(catalog.root / "root.PNG")
    assert catalog.image_path("root").name == "root.PNG"


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
    with pytest.raises(FileNotFoundError, match=r"'q9\.jpg' does .* that of 'q9': .*/q9\.jpg \("):
        catalog.image_path("q9.jpg")


def test_missing_images_are_named_and_counted_before_anything_is_read(
    folder_dataset: Path,
) -> None:
    catalog = open_catalog("folder", folder_dataset)
    ids = catalog.ids("train")
    all_found(ids, catalog.image_path)
    with pytest.raises(FileNotFoundError, match=r"'x'.*missing in all: 3, also 'y', 'z'"):
        all_found([*ids, "x", "y", "z"], catalog.image_path)


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


@pytest.fixture
def settled(folder_dataset: Path) -> Path:
    """A dataset whose folders have not changed for a while, so that they are listed."""
    for folder in ("images", "masks", "saliency", "."):
        os.utime(folder_dataset / folder, (1e9, 1e9))
    return folder_dataset


def test_a_folder_is_listed_once(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog("folder", settled)
    ids = catalog.ids("train")
    catalog.image_path(ids[0])
    calls: list[object] = []
    is_file, listdir = os.path.isfile, os.listdir
    monkeypatch.setattr("os.path.isfile", lambda path: calls.append(path) or is_file(path))
    monkeypatch.setattr("os.listdir", lambda path: pytest.fail("again") or listdir(path))
    found = [catalog.image_path(image_id) for image_id in ids]
    assert len(calls) == len(ids), "one look at the file that is found"
    assert [path.stem for path in found] == ids


def test_files_that_appear_and_go_are_seen(settled: Path) -> None:
    catalog, images = open_catalog("folder", settled), settled / "images"
    assert catalog.image_path("a1").suffix == ".jpg"
    with pytest.raises(FileNotFoundError):
        catalog.image_path("late")
    Image.new("RGB", (4, 4)).save(images / "late.png")
    Image.new("RGB", (4, 4)).save(images / "a1.png")
    assert catalog.image_path("late").name == "late.png"
    with pytest.raises(ValueError, match="keep one of the two files"):
        catalog.image_path("a1")
    (images / "a1.jpg").unlink()
    assert catalog.image_path("a1").suffix == ".png"
    # A file whose folder shows the same date as before is found all the same.
    os.utime(images, (1e9, 1e9))
    assert catalog.image_path("late").name == "late.png"
    Image.new("RGB", (4, 4)).save(images / "hidden.png")
    os.utime(images, (1e9, 1e9))
    assert catalog.image_path("hidden").name == "hidden.png"


def test_names_of_few_folders_are_kept(tmp_path: Path) -> None:
    listings = Listings()
    for number in range(3 * _MOST_FOLDERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a").touch()
        assert listings.names(str(folder)) is None, "it has changed just now"
        os.utime(folder, (1e9, 1e9))
        assert listings.names(str(folder)) == {"a"}
    assert len(listings._found) == _MOST_FOLDERS
    assert listings.names(str(tmp_path / "none")) is None


def test_files_of_other_programs_may_spell_accents_apart(tmp_path: Path) -> None:
    for suffix in (".npy", ".png"):
        (tmp_path / f"{APART}{suffix}").touch()
        require_files(tmp_path, [COMPOSED], suffix, what="files", stage="x")
        assert spelled(tmp_path, f"{COMPOSED}{suffix}").name == f"{APART}{suffix}"
    assert spelled(tmp_path, "ü.png") == tmp_path / "ü.png"
    (tmp_path / f"{COMPOSED}.png").touch()
    with pytest.raises(ValueError, match="keep one of the two files"):
        spelled(tmp_path, f"{COMPOSED}.png")
    longest = f"{'ü' * 125}.png"  # 254 bytes; its other spelling, 379, is no name
    (tmp_path / longest).touch()
    assert spelled(tmp_path, longest).name == longest


def test_predictions_cams_and_seeds_may_spell_accents_apart(tmp_path: Path) -> None:
    """From CAMs to masks to a score, and as files of a previous stage."""
    root = tmp_path / "data"
    for folder in ("images", "masks", "lists"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("cup\n")
    (root / "labels.csv").write_text(f"image_id,classes\n{COMPOSED},cup\n", encoding="utf-8")
    (root / "lists/train.txt").write_text(f"{COMPOSED}\n", encoding="utf-8")
    Image.new("RGB", (8, 6)).save(root / "images" / f"{APART}.jpg")
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4] = 1
    save_mask(root / "masks" / f"{APART}.png", mask)
    cam = Cam(np.array([1], np.uint8), mask[None].astype(np.float32))
    save_cam(tmp_path / "cam" / f"{APART}.npy", cam)
    data = ["--dataset", "folder", "--root", root, "--list", "train"]
    out = tmp_path / "out"
    crf = ["--cam-dir", tmp_path / "cam", "--out", out, "--threshold", 0.5, "--workers", 1]
    for line in ("1 written", "0 written"):
        assert line in run("crf_postprocess.py", *data, *crf).stdout
    (out / f"{COMPOSED}.png").rename(out / f"{APART}.png")
    for folder in (tmp_path / "cam", out):
        result = run("eval_miou.py", *data, "--pred-dir", folder, "--bg-threshold", 0.5)
        assert "mIoU 100.00" in result.stdout, result.stderr
    shares = ["--threshold-from", out, "--cam-dir", tmp_path / "cam", "--out", tmp_path / "again"]
    assert "1 written" in run("crf_postprocess.py", *data, *shares, "--workers", 1).stdout
    seeds = ["--seed-dir", out, "--out", tmp_path / "boundary", "--workers", 1]
    assert "1 boundary labels written" in run("data/boundary.py", *data, *seeds).stdout
    native = ["--cam-dir", tmp_path / "cam", "--to", "irn", "--out", tmp_path / "irn"]
    assert run("data/convert_cams.py", *data, *native).returncode == 0
    previous = PreviousOutputs({"seed": out, "cam": tmp_path / "cam"})
    previous.require(("seed", "cam"), [COMPOSED])
    found = previous.read(
        ("seed", "cam"),
        COMPOSED,
        whole=(6, 8),
        size=(6, 8),
        label=lambda: np.ones(1),
        num_classes=1,
    )
    assert found["seed"].tolist() == mask.tolist()
    assert previous.whole([COMPOSED], label=lambda _: np.ones(1)).with_background is False


def test_a_list_here_and_one_of_the_dataset(
    folder_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog("folder", folder_dataset)
    monkeypatch.chdir(tmp_path)
    assert len(catalog.ids("val.txt")) == 3
    (tmp_path / "val.txt").write_text("a1\n")
    with pytest.raises(ValueError, match=r"list 'val\.txt' can be val\.txt or .*keep one"):
        catalog.ids("val.txt")
    assert len(catalog.ids("val")) == 3
    assert catalog.ids(str(tmp_path / "val.txt")) == ["a1"]
    monkeypatch.chdir(folder_dataset / "lists")
    assert len(catalog.ids("val.txt")) == 3


@pytest.mark.parametrize(
    "line",
    [
        f"/JPEGImages/val2014/{COCO}.jpg /SegmentationClass/val2014/{COCO}.png",
        f"/JPEGImages/val2014/{COCO}.jpg",
        f"val2014/{COCO}.jpg",
        f"val2014/{COCO}",
    ],
)
def test_a_folder_of_coco_is_no_part_of_an_id(coco: Catalog, line: str) -> None:
    assert read_list(coco, line) == [COCO]


def test_an_id_may_begin_like_a_folder(folder_dataset: Path) -> None:
    catalog = open_catalog("folder", folder_dataset)
    (catalog.root / "images" / "images").mkdir()
    Image.new("RGB", (4, 4)).save(catalog.root / "images" / "images" / "z.png")
    assert read_list(catalog, "images/z", "images/none") == ["images/z", "images/none"]
