"""Small files that announce, or unfold to, far more than they hold: one line, at once."""

from __future__ import annotations

import codecs
import collections
import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickled import Calls, npy_of_pickle
from PIL import Image

from coco14.annotations import read_annotations
from data.readable import ListFlags, bad_images, open_list
from tool.formats import image as images
from tool.formats.cam import load_cam
from tool.formats.checkpoint import load_tensors
from tool.formats.coco_masks import load_coco
from tool.formats.cvat import CvatMasks, save_cvat
from tool.formats.image import allow_pixels, decode, size_of
from tool.formats.mask import load_mask, save_mask
from tool.formats.mxnet import read_params
from tool.formats.npy import load_npy
from tool.formats.regions import Regions, read_regions, save_regions

SECONDS, BYTES = 60, 200 * 2**20  # a busy machine stalls for some ten seconds


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    """What a test reads takes little time and memory."""
    began = time.monotonic()
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BYTES
    assert time.monotonic() - began < SECONDS


def shared(kind: Callable[[list], Any], levels: int = 60) -> Any:
    """A value in which each level holds the one below twice; a pickle of it is small."""
    value = kind([1])
    for _ in range(levels):
        value = kind([value, value])
    return value


def with_key(key: Any) -> bytes:
    """The pickle of a dictionary with a key that would take too long to hash here."""
    return b"\x80\x04}" + unframed(key) + b"Ns."


def unframed(value: Any) -> bytes:
    """The opcodes of a pickled value, without its start and its end."""
    return pickle.dumps(value, 4)[2 + 9 : -1]


SIZE = struct.pack("<Q", 10**10)
NPY = {
    "bytes of 10 GB": b"\x80\x05\x96" + SIZE + b".",
    "a text of 10 GB": b"\x80\x05\x8d" + SIZE + b".",
    "a tuple for a key": with_key(shared(tuple)),
    "a frozenset": b"\x80\x04(" + unframed(shared(tuple)) + b"\x91.",
    "pairs": pickle.dumps(Calls(collections.OrderedDict, [[shared(tuple), 1]]), 2),
    "lists": pickle.dumps({"keys": shared(list), "IS_CAM": np.ones((1, 2, 2), "f4")}),
    "maps": pickle.dumps({0: shared(list), 1: shared(list)}),
}


@pytest.mark.parametrize("payload", NPY.values(), ids=list(NPY))
def test_npy(payload: bytes, tmp_path) -> None:
    path = tmp_path / "bomb.npy"
    path.write_bytes(npy_of_pickle(payload))
    with pytest.raises(ValueError, match=r"bomb\.npy"):
        load_cam(path, label=lambda: np.ones(3, np.float32))


def test_npy_with_as_much_as_it_says_is_read(tmp_path) -> None:
    content = {"keys": [0, 2], ("a", 1): {"x", 2}, "twice": [[1, 2]] * 3, "b": bytearray(b"xyz")}
    (tmp_path / "a.npy").write_bytes(npy_of_pickle(pickle.dumps(content, 5)))
    assert load_npy(tmp_path / "a.npy") == content


def grown(encoding: str, levels: int) -> Any:
    """Bytes that each call of `encode` makes longer."""
    value: Any = b"x" * 100
    for _ in range(levels):
        value = Calls(codecs.encode, value, encoding)
    return value


PTH = {
    "a bytearray": lambda: {"a": Calls(bytearray, 10**11)},
    "codecs": lambda: {"a": grown("hex", 40)},
    "an encoding of bytes": lambda: {"a": Calls(codecs.encode, b"x", "latin1")},
    "an encoding of nothing": lambda: {"a": Calls(codecs.encode)},
    "one text many times": lambda: {"a": repeated("x" * 10**5, 10**4)},
    "a tuple for a key": lambda: {"a": Calls(collections.OrderedDict, [[shared(tuple), 1]])},
}


def repeated(text: str, times: int) -> list:
    return [Calls(codecs.encode, text, "latin1") for _ in range(times)]


def saved(content: Any, path: Path, *, zipped: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", list(PTH))
def test_pth(what: str, zipped: bool, tmp_path) -> None:
    path = saved(PTH[what](), tmp_path / "bomb.pth", zipped=zipped)
    with pytest.raises(ValueError, match=r"bomb\.pth: refused"):
        load_tensors(path)


def wrong_checksum(content: bytes) -> bytes:
    """Change the checksum of every entry in the directory of a zip file."""
    parts = content.split(b"PK\1\2")
    return b"PK\1\2".join([parts[0], *(p[:12] + bytes([p[12] ^ 1]) + p[13:] for p in parts[1:])])


def two_pickles(content: bytes) -> bytes:
    """Add a second pickle, harmless, in a folder of its own."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/data.pkl", pickle.dumps({}, 2))
    return file.getvalue()


@pytest.mark.parametrize("damage", [wrong_checksum, two_pickles])
def test_pth_that_zipfile_reads_otherwise_than_torch(damage: Any, tmp_path, monkeypatch) -> None:
    """torch compares no checksums. What is not checked first is not loaded."""
    path = saved(PTH["a bytearray"](), tmp_path / "bomb.pth", zipped=True)
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr("tool.formats.checkpoint.load_weights_only", lambda _: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"bomb\.pth"):
        load_tensors(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pth_with_bytes_is_read(zipped: bool, tmp_path) -> None:
    content = {"w": torch.arange(3.0), "b": b"\xff" * 50, "a": bytearray(b"xyz"), "t": ((1, 2), 3)}
    content["o"] = collections.OrderedDict(x=torch.ones(2))
    read = load_tensors(saved(content, tmp_path / "a.pth", zipped=zipped))
    assert read.keys() == content.keys()
    assert (read["b"], read["a"], read["t"]) == (content["b"], content["a"], content["t"])


def test_params_of_more_arrays_than_a_network_has(tmp_path) -> None:
    count = 10**6
    empty = struct.pack("<QQQ", 0x112, 0, count) + b"\0\0\0\0" * count + struct.pack("<Q", 0)
    (tmp_path / "bomb.params").write_bytes(empty)
    with pytest.raises(ValueError, match=r"bomb\.params.*more than"):
        read_params(tmp_path / "bomb.params")


def png(side: int, rows: int = 100) -> bytes:
    """A PNG of many black pixels in few bytes, of which so many rows are there."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    content = b"".join(packer.compress(bytes(side + 1)) for _ in range(rows)) + packer.flush()
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture
def default_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FBR_MAX_PIXELS", raising=False)


@pytest.mark.usefixtures("default_limit")
@pytest.mark.parametrize("read", [size_of, load_mask, lambda path: decode(path, "RGB")])
def test_an_image_of_too_many_pixels(read: Callable[[Path], Any], tmp_path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(13_000))
    with pytest.raises(ValueError, match=r"bomb\.png.*13000x13000.*--max-pixels"):
        read(path)


@pytest.mark.usefixtures("default_limit")
def test_a_jpeg_that_goes_over_its_pixels_too_often(tmp_path, monkeypatch) -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    whole, path = file.getvalue(), tmp_path / "bomb.jpg"
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    path.write_bytes(whole[:-2] + 500 * scan + whole[-2:])
    assert size_of(path) == (64, 64)
    decode(path, "L")  # it is small
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    with pytest.raises(ValueError, match=r"bomb\.jpg.* 50\d scans"):
        decode(path, "L")
    path.write_bytes(whole)
    decode(path, "L")


def test_the_flag_sets_the_limit(folder_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FBR_MAX_PIXELS", "1")
    flags = {"dataset": "folder", "root": folder_root, "list": "train"}
    catalog, found = open_list(ListFlags(**flags))
    assert not bad_images(catalog, found.all_ids)
    with pytest.raises(ValueError, match="none of the"):
        open_list(ListFlags(**flags, max_pixels=9, skip_bad_images=True))
    save_mask(tmp_path / "own.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="4x4"):
        load_mask(tmp_path / "own.png")
    allow_pixels(16)
    assert load_mask(tmp_path / "own.png").shape == (4, 4)


@pytest.mark.parametrize("kind", ["PPM", "GIF", "ICO", "TGA", "EPS", "PDF", "JPEG2000", "PCX"])
@pytest.mark.parametrize("read", [size_of, load_mask, lambda path: decode(path, "RGB")])
def test_other_formats_are_never_decoded(kind: str, read: Callable, tmp_path) -> None:
    content = io.BytesIO()
    Image.new("RGB" if kind != "GIF" else "P", (32, 32)).save(content, kind)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content.getvalue())
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        read(path)


@pytest.mark.parametrize(
    "error", [KeyError("x"), IndexError(), TypeError("x"), ZeroDivisionError(), zlib.error("x")]
)
def test_an_image_is_skipped_whatever_its_decoder_raises(
    error: Exception, folder_root, monkeypatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    catalog, found = open_list(ListFlags(dataset="folder", root=folder_root, list="train"))
    monkeypatch.setattr(images.Image.Image, "convert", fails)
    assert len(bad_images(catalog, found.all_ids)) == len(found.all_ids)


def cvat_with(path: Path, **entries: bytes) -> Path:
    """A zip file of CVAT's in which the mask of `a` is another, if one is given."""
    save_cvat(path, [("a", np.zeros((4, 4), np.uint8))], ["disc"])
    with zipfile.ZipFile(path) as archive:
        whole = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in whole.items():
            archive.writestr(name, entries.get(Path(name).stem, content))
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_masks_of_cvat_with_a_name_twice(tmp_path) -> None:
    path = cvat_with(tmp_path / "masks.zip")
    assert CvatMasks(path, ["disc"]).ids == ["a"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("SegmentationClass/a.png", b"another")
    with pytest.raises(ValueError, match=r"masks\.zip.*a\.png is in it twice"):
        CvatMasks(path, ["disc"])


@pytest.mark.usefixtures("default_limit")
def test_a_mask_of_cvat_with_many_pixels(tmp_path) -> None:
    """25 million in 25 kB: a number of 8 bytes for each pixel would be too much."""
    masks = CvatMasks(cvat_with(tmp_path / "masks.zip", a=png(5000, rows=5000)), ["disc"])
    assert not masks.mask("a").any()


@pytest.mark.usefixtures("default_limit")
def test_annotations_of_an_image_of_too_many_pixels(tmp_path) -> None:
    """A mask of it would take a GB, and each object another one."""
    path, side = tmp_path / "bomb.json", 2**15 - 1
    name = "COCO_val2014_000000000007.jpg"
    images = [{"id": 7, "file_name": name, "height": side, "width": side}]
    categories = [{"id": 1, "name": "person"}]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    with pytest.raises(ValueError, match=r"bomb\.json.*32767"):
        read_annotations(path)
    with pytest.raises(ValueError, match=r"bomb\.json.*32767.*pixels"):
        load_coco(path, ["person"])


def regions_with(path: Path, **entries: bytes) -> Path:
    """A file of regions in which some entries are others."""
    one = np.eye(2, 4, dtype=np.float32)
    save_regions(path, Regions(["a", "b"], np.array([0, 1]), one, one), {})
    with zipfile.ZipFile(path) as archive:
        whole = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (whole | {f"{n}.npy": c for n, c in entries.items()}).items():
            archive.writestr(name, content)
    return path


def test_regions_of_more_numbers_than_there_are_bytes(tmp_path) -> None:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 2000)}
    np.lib.format.write_array_header_1_0(file, header)
    path = regions_with(tmp_path / "nroi.npz", region=file.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"nroi\.npz.*bytes, 100 are there"):
        read_regions(path)
    assert read_regions(regions_with(tmp_path / "whole.npz"))[0].image_ids == ["a", "b"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_regions_with_an_entry_twice(tmp_path) -> None:
    path = regions_with(tmp_path / "nroi.npz")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("about.npy", b"")
    with pytest.raises(ValueError, match=r"nroi\.npz.*twice"):
        read_regions(path)
