"""Mask files: what is written is read, what is no mask is refused by name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tool.formats.mask import load_mask, palette, save_mask


def test_round_trip_of_every_value(tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    before = mask.copy()
    save_mask(tmp_path / "deep" / "a.b.png", mask)
    np.testing.assert_array_equal(load_mask(tmp_path / "deep" / "a.b.png"), mask)
    np.testing.assert_array_equal(mask, before)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.b.png"]


def test_the_file_is_a_palette_image_in_the_colours_of_voc(tmp_path: Path) -> None:
    save_mask(tmp_path / "m.png", np.array([[0, 1, 15, 20, 255]], np.uint8))
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        colours = np.array(image.convert("RGB"))[0].tolist()
    voc = [[0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]
    assert colours == voc
    assert len(np.unique(palette(), axis=0)) == 256


def test_grey_images_and_non_contiguous_arrays(tmp_path: Path) -> None:
    mask = np.arange(60, dtype=np.uint8).reshape(6, 10)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_mask(tmp_path / "grey.png"), mask)
    save_mask(tmp_path / "t.png", mask.T[::-1])
    np.testing.assert_array_equal(load_mask(tmp_path / "t.png"), mask.T[::-1])


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8), np.zeros(4, np.uint8)]
)
def test_only_masks_are_written(tmp_path: Path, mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        save_mask(tmp_path / "m.png", mask)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match=r"m\.png.*mode"):
        load_mask(tmp_path / "m.png")


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    save_mask(path, np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8))
    data = path.read_bytes()
    for length in (0, 10, 50, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"m\.png"):
            load_mask(path)
    with pytest.raises(FileNotFoundError):
        load_mask(tmp_path / "none.png")


def grey_png(path: Path, values: np.ndarray, bits: int) -> None:
    """Write values (H, W) below 2**bits as grey of this depth, which Pillow itself cannot."""
    rows = [np.unpackbits(row[:, None], axis=1)[:, 8 - bits :].ravel() for row in values]
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *values.shape[::-1], bits, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in parts
        )
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grey_of_fewer_bits_has_the_stored_values(tmp_path: Path, bits: int) -> None:
    """Pillow spreads grey values of 2 and 4 bits over 0..255: class 1 would be class 17 or 85."""
    mask = (np.arange(7 * 5).reshape(7, 5) % 2**bits).astype(np.uint8)
    grey_png(tmp_path / "m.png", mask, bits)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png"), mask)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_grey_in_which_0_is_white_is_refused(tmp_path: Path, compression: str | None) -> None:
    mask, white_is_zero = Image.fromarray(np.full((4, 6), 3, np.uint8)), {262: 0}
    mask.save(tmp_path / "m.tif", compression=compression, tiffinfo=white_is_zero)
    with pytest.raises(ValueError, match=r"m\.tif.*0 is white"):
        load_mask(tmp_path / "m.tif")
    mask.save(tmp_path / "m.tif", compression=compression)
    assert load_mask(tmp_path / "m.tif").tolist() == np.asarray(mask).tolist()


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_are_no_masks_whatever_their_name(tmp_path: Path, form: str) -> None:
    image = Image.fromarray(np.full((8, 8), 3, np.uint8))
    image.save(tmp_path / "a.png", format=form)
    with pytest.raises(ValueError, match=r"a\.png"):
        load_mask(tmp_path / "a.png")
