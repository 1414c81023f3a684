"""Photographs and saliency maps whose pixels are not what Pillow gives: turned, read or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_IMAGES, write_voc
from PIL import Image, ImageOps
from runs import assert_refused, run

from data.catalog import Catalog, open_catalog
from data.dataset import TrainDataset
from data.saliency_maps import DARK_MAPS
from data.transforms import resize_of
from tool.formats.image import photograph_of


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


def turned_photograph(path: Path, orientation: int) -> np.ndarray:
    """Write a photograph with an EXIF orientation; return it upright, (H, W, 3) uint8."""
    stored = np.full((40, 64, 3), 90, np.uint8)
    stored[4:16, 4:28] = (220, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(path, exif=exif, quality=95, lossless=True)
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(catalog: Catalog, orientation: int, suffix: str) -> None:
    upright = turned_photograph(catalog.root / "images" / f"phone{suffix}", orientation)
    read = catalog.read_image("phone")
    assert catalog.image_size("phone") == read.size == upright.shape[1::-1]
    assert np.abs(np.asarray(read).astype(int) - upright).max() <= 3
    reduced = catalog.read_image("phone", long_side=20)
    assert (reduced.width > reduced.height) == (upright.shape[1] > upright.shape[0])


def test_benchmarks_are_read_as_stored(tmp_path: Path) -> None:
    root = write_voc(tmp_path, "x")
    upright = turned_photograph(root / "JPEGImages" / "x.jpg", 6)
    assert upright.shape[:2] == (64, 40)
    catalog = open_catalog("voc12", root)
    assert catalog.image_size("x") == catalog.read_image("x").size == (64, 40)
    (tmp_path / "train2014").mkdir()
    turned_photograph(tmp_path / "train2014" / "x.jpg", 6)
    catalog = open_catalog("coco14", tmp_path)
    assert catalog.image_size("x") == catalog.read_image("x").size == (64, 40)


def test_broken_exif_data_spoil_no_photograph(catalog: Catalog) -> None:
    path = catalog.root / "images" / "odd.jpg"
    Image.new("RGB", (20, 10)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert catalog.read_image("odd").size == catalog.image_size("odd") == (20, 10)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
@pytest.mark.parametrize("brightest", [1, 255, 4095])
def test_few_bits_of_grey_are_refused(catalog: Catalog, brightest: int, kind: type) -> None:
    """Also of 8 bits and fewer, which would be black, and of an image in memory."""
    image = Image.fromarray(np.linspace(0, brightest, 200).astype(kind).reshape(10, 20))
    image.save(catalog.root / "images" / "raw.tif")
    with pytest.raises(ValueError, match=r"raw\.tif: its 16-bit values .*scale them"):
        catalog.read_image("raw")
    with pytest.raises(ValueError, match=r"16-bit.*scale them"):
        photograph_of(image)
    black = Image.fromarray(np.zeros((10, 20), kind))
    assert photograph_of(black).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize("brightest", [4095, 16383])
def test_few_bits_in_sixteen_are_refused(catalog: Catalog, brightest: int) -> None:
    values = np.linspace(0, brightest, 200).astype(np.uint16).reshape(10, 20)
    path = catalog.root / "images" / "raw.png"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=r"raw\.png.*16-bit.*scale them"):
        catalog.read_image("raw")
    write_deep_png(path, values)
    with pytest.raises(ValueError, match=r"16-bit.*scale them"):
        photograph_of(Image.open(path))
    with pytest.raises(ValueError, match=r"raw\.png.*16-bit.*scale them"):
        catalog.read_image("raw")
    Image.fromarray(values * (65535 // brightest)).save(path)
    assert np.asarray(catalog.read_image("raw")).max() > 200


def write_deep_png(path: Path, values: np.ndarray) -> None:
    """Write (H, W) uint16 as an RGB PNG of 16 bits per channel."""
    import cv2

    cv2.imwrite(str(path), np.repeat(values[..., None], 3, 2))


def test_numbers_that_are_no_colours_are_refused(catalog: Catalog) -> None:
    path = catalog.root / "images" / "raw.tif"
    for values in (np.ones((4, 5), np.float32), np.full((4, 5), 70000, np.int32)):
        Image.fromarray(values).save(path)
        with pytest.raises(ValueError, match=r"raw\.tif.*save 8 bits"):
            catalog.read_image("raw")


def cut_out() -> Image.Image:
    """A red square on transparent bright green."""
    pixels = np.zeros((20, 30, 4), np.uint8)
    pixels[...] = (0, 255, 0, 0)
    pixels[5:15, 5:15] = (200, 30, 30, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_is_white(catalog: Catalog, mode: str) -> None:
    image = cut_out() if mode == "RGBA" else cut_out().quantize(4)
    image.save(catalog.root / "images" / "cut.png")
    pixels = np.asarray(catalog.read_image("cut"))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.abs(pixels[10, 10].astype(int) - (200, 30, 30)).max() < 8


def test_saliency_of_a_cut_out_is_its_alpha(catalog: Catalog) -> None:
    Image.new("RGB", (30, 20)).save(catalog.root / "images" / "cut.png")
    cut_out().save(catalog.root / "saliency" / "cut.png")
    saliency = np.asarray(catalog.read_saliency("cut"))
    assert saliency[10, 10] == 255
    assert saliency[0, 0] == 0
    opaque = np.full((20, 30, 4), 77, np.uint8)
    opaque[..., 3] = 255
    Image.fromarray(opaque).save(catalog.root / "saliency" / "cut.png")
    assert np.asarray(catalog.read_saliency("cut"))[0, 0] == 77


def test_saliency_is_turned_as_its_photograph_is(catalog: Catalog, tmp_path: Path) -> None:
    """Such is a map that a program saved with the EXIF data of the photograph."""
    turned_photograph(catalog.root / "images" / "phone.jpg", 3)
    upright = turned_photograph(catalog.root / "saliency" / "phone.png", 3).copy()
    grey = Image.open(catalog.root / "saliency" / "phone.png")
    grey.convert("L").save(catalog.root / "saliency" / "phone.png", exif=grey.getexif())
    wanted = np.asarray(Image.fromarray(upright).convert("L"))
    assert (np.asarray(catalog.read_saliency("phone")) == wanted).all()
    root = write_voc(tmp_path, "x")
    stored = Image.open(catalog.root / "saliency" / "phone.png")
    benchmark = open_catalog("voc12", root)
    stored.convert("RGB").save(root / "JPEGImages" / "x.jpg")
    benchmark.saliency_root.mkdir()
    stored.save(benchmark.saliency_root / "x.png", exif=stored.getexif())
    assert (np.asarray(benchmark.read_saliency("x")) == np.asarray(stored)).all()


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_coloured_saliency_is_refused(catalog: Catalog, mode: str) -> None:
    path = catalog.root / "saliency" / "a1.png"
    Image.new("RGB", (80, 64), (128, 0, 0)).convert(mode).save(path)
    with pytest.raises(ValueError, match=r"a1\.png: it has colours"):
        catalog.read_saliency("a1")
    Image.new("L", (80, 64), 99).convert(mode).save(path)
    assert catalog.read_saliency("a1").getextrema() == (99, 99)


def darken(catalog: Catalog, brightest: int) -> None:
    """Scale every saliency map to 0..brightest."""
    for image_id, (_, size, _) in FOLDER_IMAGES.items():
        Image.new("L", size, brightest).save(catalog.root / "saliency" / f"{image_id}.png")


@pytest.mark.parametrize("brightest", [0, 1, 127])
def test_dark_saliency_is_an_error_where_it_is_used(
    catalog: Catalog, tmp_path: Path, brightest: int
) -> None:
    darken(catalog, brightest)
    root = ["--dataset", "folder", "--root", catalog.root, "--list", "train"]
    said = ("not scaled to 0..255", f"value is {brightest},")
    assert_refused(run("data/fill.py", *root, "--out", tmp_path / "fill"), *said)
    assert not (tmp_path / "fill").exists()
    seeds = ["--seed-dir", catalog.root / "masks", "--saliency"]
    assert_refused(run("data/boundary.py", *root, *seeds, "--out", tmp_path / "edges"), *said)
    with pytest.raises(ValueError, match="not scaled"):
        train_dataset(catalog)


def test_one_bright_map_is_enough(catalog: Catalog) -> None:
    darken(catalog, 0)
    bright = list(FOLDER_IMAGES)[-1]
    Image.new("L", FOLDER_IMAGES[bright][1], 128).save(catalog.root / "saliency" / f"{bright}.png")
    assert len(train_dataset(catalog)) == len(FOLDER_IMAGES) <= DARK_MAPS


def train_dataset(catalog: Catalog) -> TrainDataset:
    return TrainDataset(
        catalog,
        catalog.ids("train"),
        inputs=("image", "label", "saliency"),
        crop=32,
        resize=resize_of(None, (32, 48)),
        seed=0,
    )
