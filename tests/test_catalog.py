"""The catalog: layouts, lists, files, and one clear error for each kind of bad input."""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_CLASSES, FOLDER_IMAGES, write_voc
from PIL import Image

from data.catalog import Catalog, open_catalog
from data.flags import DatasetFlags, catalog_from

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data"))
BAD_IDS = ["../x", "a/../../x", "/etc/passwd", "", "a\0b", ".", "a//b", "a/"]


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


def test_folder_layout_is_read_whole(catalog: Catalog) -> None:
    assert catalog.class_names == FOLDER_CLASSES
    assert catalog.num_classes == 3
    assert catalog.ids("train") == list(FOLDER_IMAGES)
    for image_id, (classes, size, suffix) in FOLDER_IMAGES.items():
        label = catalog.label(image_id)
        assert label.dtype == np.float32
        assert [FOLDER_CLASSES[index] for index in np.flatnonzero(label)] == list(classes)
        assert catalog.image_path(image_id).name == image_id + suffix
        assert catalog.image_size(image_id) == catalog.read_image(image_id).size == size
        assert catalog.read_image(image_id).mode == "RGB"
        saliency = catalog.read_saliency(image_id)
        assert (saliency.mode, saliency.size) == ("L", size)
        mask = catalog.read_mask(image_id)
        assert (mask.dtype, mask.shape) == (np.uint8, size[::-1])
        assert set(np.unique(mask)) - {0} == set(np.flatnonzero(label) + 1)


def test_catalog_survives_pickling(catalog: Catalog) -> None:
    catalog.label("a1")
    again = pickle.loads(pickle.dumps(catalog))
    assert again == catalog
    assert (again.label("a1") == catalog.label("a1")).all()


def test_ids_may_lie_in_subfolders(catalog: Catalog) -> None:
    (catalog.root / "images" / "trip").mkdir()
    Image.new("RGB", (5, 4)).save(catalog.root / "images" / "trip" / "x.png")
    assert catalog.image_size("trip/x") == (5, 4)


def test_lists_of_both_styles_and_as_files(tmp_path: Path) -> None:
    catalog = open_catalog("voc12", write_voc(tmp_path / "voc", "2007_000032"))
    path = tmp_path / "mine.txt"
    path.write_bytes(
        b"\xef\xbb\xbf/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\r\n"
        b"\r\n/JPEGImages/a.b.jpg\r\n2007_000033\r\n"
    )
    assert catalog.ids(str(path)) == ["2007_000032", "a.b", "2007_000033"]
    assert catalog.ids("train.txt") == catalog.ids("train") == ["2007_000032"]


def test_missing_list_names_those_there_are(catalog: Catalog) -> None:
    with pytest.raises(FileNotFoundError, match=r"trainaug.txt.*--list.*train, val"):
        catalog.ids("trainaug")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"a1\nb-4\na1\n", "'a1' twice"),
        (b"a1\n../../secret\n", "stay in the dataset root"),
        (b"/etc/passwd\n", "stay in the dataset root"),
        (b"/images/../x.jpg\n", "stay in the dataset root"),
        (b"a\xff\n", "not UTF-8"),
    ],
)
def test_bad_list(catalog: Catalog, content: bytes, message: str) -> None:
    (catalog.root / "lists" / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        catalog.ids("bad")
    assert "bad.txt" in str(error.value)


@pytest.mark.parametrize("image_id", BAD_IDS)
@pytest.mark.parametrize("method", ["image_path", "mask_path", "saliency_path", "read_image"])
def test_ids_stay_in_the_root(catalog: Catalog, method: str, image_id: str) -> None:
    for outside in (catalog.root / "x.jpg", catalog.root.parent / "x.jpg"):
        Image.new("RGB", (4, 4)).save(outside)
    with pytest.raises(ValueError, match="root"):
        getattr(catalog, method)(image_id)


@pytest.mark.parametrize(
    ("method", "folder", "flag"),
    [
        ("read_image", "images", "--root"),
        ("read_mask", "masks", "--root"),
        ("read_saliency", "saliency", "--saliency-root"),
    ],
)
def test_missing_file_names_id_path_and_flag(
    catalog: Catalog, method: str, folder: str, flag: str
) -> None:
    for path in (catalog.root / folder).glob("a1.*"):
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        getattr(catalog, method)("a1")
    for part in ("'a1'", str(catalog.root / folder / "a1."), flag):
        assert part in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "text", "nothing"])
@pytest.mark.parametrize("image_id", ["a1", "my photo"])
def test_broken_image_is_named(catalog: Catalog, image_id: str, damage: str) -> None:
    path = catalog.image_path(image_id)
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "text": b"hello", "nothing": b""}[damage]
    )
    with pytest.raises(ValueError, match=re.escape(str(path))):
        catalog.read_image(image_id)


def test_large_jpeg_is_decoded_small_enough_to_pay_and_large_enough_to_use(
    catalog: Catalog,
) -> None:
    Image.new("RGB", (1600, 1200)).save(catalog.root / "images" / "big.jpg")
    assert catalog.read_image("big", long_side=300).size == (400, 300)
    assert catalog.read_image("big", long_side=1000).size == (1600, 1200)
    assert catalog.read_image("big").size == (1600, 1200)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_any_mode_become_rgb(catalog: Catalog, mode: str) -> None:
    suffix = ".jpg" if mode == "CMYK" else ".png"
    Image.new("RGB", (6, 5), (204, 204, 204)).convert(mode).save(
        catalog.root / "images" / f"odd{suffix}"
    )
    image = catalog.read_image("odd")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - 204).max() <= 3


def test_sixteen_bit_saliency_is_scaled(catalog: Catalog) -> None:
    values = np.zeros((64, 80), np.uint16)
    values[0, :3] = (300, 32768, 65535)
    Image.fromarray(values).save(catalog.saliency_path("a1"))
    assert np.asarray(catalog.read_saliency("a1"))[0, :4].tolist() == [1, 128, 255, 0]


def test_sizes_must_agree(catalog: Catalog) -> None:
    Image.new("L", (80, 63)).save(catalog.saliency_path("a1"))
    Image.new("L", (64, 80)).save(catalog.mask_path("a1"))
    with pytest.raises(ValueError, match="is 80x63, image 'a1' is 80x64"):
        catalog.read_saliency("a1")
    with pytest.raises(ValueError, match="64x80, image 'a1' is 80x64"):
        catalog.read_mask("a1")


@pytest.mark.parametrize(("value", "allowed"), [(3, True), (255, True), (4, False), (254, False)])
def test_mask_values(catalog: Catalog, value: int, allowed: bool) -> None:
    Image.fromarray(np.full((64, 80), value, np.uint8)).save(catalog.mask_path("a1"))
    if allowed:
        assert (catalog.read_mask("a1") == value).all()
        return
    with pytest.raises(ValueError, match=rf"a1\.png has class {value}: there are 3 classes"):
        catalog.read_mask("a1")


def test_masks_fall_back_to_the_official_folder(tmp_path: Path) -> None:
    root = write_voc(tmp_path, "x", masks="SegmentationClass")
    assert open_catalog("voc12", root).mask_path("x").parent.name == "SegmentationClass"
    write_voc(root, "x")
    assert open_catalog("voc12", root).mask_path("x").parent.name == "SegmentationClassAug"


@pytest.mark.parametrize("flag", ["root", "labels", "saliency_root"])
def test_missing_folders_name_their_flag(folder_dataset: Path, flag: str) -> None:
    flags = DatasetFlags(dataset="folder", root=folder_dataset, list="train")
    catalog, name = catalog_from(flags)
    assert catalog.ids(name)
    changed = dataclasses.replace(flags, **{flag: folder_dataset / "nothing"})
    with pytest.raises(FileNotFoundError, match=rf"nothing.*--{flag.replace('_', '-')}"):
        catalog_from(changed)


def test_the_auto_list_is_train_aug_where_there_is_one(folder_dataset: Path) -> None:
    flags = DatasetFlags(dataset="folder", root=folder_dataset)
    for expected in ("train", "train_aug"):
        catalog, name = catalog_from(flags)
        assert name == expected
        assert (catalog.ids(name) == ["a1"]) == (expected == "train_aug")
        (folder_dataset / "lists" / "train_aug.txt").write_text("a1\n")
    assert catalog_from(dataclasses.replace(flags, list="val"))[1] == "val"


def test_root_is_needed() -> None:
    with pytest.raises(ValueError, match="pass --root"):
        catalog_from(DatasetFlags(dataset="folder"))


def test_flags_override_the_root(folder_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "other.csv").write_text("image_id,classes\na1,square\n")
    Image.new("L", (80, 64), 77).save(tmp_path / "maps" / "a1.png")
    catalog = open_catalog(
        "folder", folder_dataset, labels=tmp_path / "other.csv", saliency_root=tmp_path / "maps"
    )
    assert catalog.label("a1").tolist() == [0, 1, 0]
    assert catalog.read_saliency("a1").getextrema() == (77, 77)


def test_unknown_dataset_says_which_there_are(folder_dataset: Path) -> None:
    with pytest.raises(ValueError, match=r"'city'.*toy, voc12, coco14, folder"):
        open_catalog("city", folder_dataset)


def test_toy_is_written_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import data.toy

    write = data.toy.write_toy
    monkeypatch.setattr(data.toy, "write_toy", lambda root: write(root, train=2, val=1))
    root = tmp_path / "toy"
    catalog = open_catalog("toy", root)
    assert len(catalog.ids("train")) == 2
    write(root, train=3, val=1)
    again = open_catalog("toy", root)
    assert len(again.ids("train")) == 3, "one that is there stays, of whatever size"
    for image_id in again.ids("train"):
        assert set(np.unique(again.read_mask(image_id))) - {0, 255} == set(
            np.flatnonzero(again.label(image_id)) + 1
        )
        assert again.read_saliency(image_id)


def test_catalog_does_not_import_torch() -> None:
    code = "import sys, data.catalog, data.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
