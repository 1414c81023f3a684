"""Every reader of a foreign file, fuzzed: it reads the file, or says in one line why not.

`FUZZ_SECONDS=60 python -m pytest tests/test_fuzz.py` fuzzes each reader for a minute, with other
damages each time; without it each reader gets a few that are always the same.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pickled import npy_of_pickle, write_object
from PIL import Image
from test_malformed import damaged

from coco14.annotations import draw_mask, read_annotations
from data.catalog import open_catalog
from data.class_names import read_class_names
from data.labels import read_labels
from tool.cli import one_line
from tool.formats.boundary import load_boundary
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.checkpoint import load_checkpoint, load_safetensors, load_tensors
from tool.formats.coco_masks import load_coco, save_coco
from tool.formats.cvat import CvatMasks, save_cvat
from tool.formats.image import decode, size_of
from tool.formats.labelme import load_labelme, save_labelme
from tool.formats.mask import load_mask, misplaced_colour, save_mask
from tool.formats.mxnet import read_params
from tool.formats.regions import Regions, read_regions, save_regions
from tool.provenance import note_of

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
EXAMPLES = 25  # of a reader, without FUZZ_SECONDS
LONGEST = 10  # seconds for a file
CLASSES = ("disc", "square", "sky lark")
MASK = np.kron(np.array([[0, 1], [2, 255]], np.uint8), np.ones((6, 8), np.uint8))  # (12, 16)
LABEL = np.array([1, 1, 0], np.float32)
CAM = np.linspace(0, 1, 2 * 12 * 16, dtype=np.float32).reshape(2, 12, 16)


def write_image(path: Path, kind: str, **how: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind, **how)


def write_coco14(path: Path) -> None:
    polygon = {"segmentation": [[1, 1, 9, 1, 9, 9]], "area": 9.0, "bbox": [1, 1, 8, 8]}
    entry = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, **polygon}
    crowd = {**entry, "id": 2, "iscrowd": 1, "segmentation": {"size": [12, 16], "counts": [9, 183]}}
    images = [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "height": 12, "width": 16}]
    content = {"images": images, "annotations": [entry, crowd]}
    path.write_text(json.dumps(content | {"categories": [{"id": 1, "name": "person"}]}))


def write_regions(path: Path) -> None:
    one = np.eye(2, 4, dtype=np.float32)
    save_regions(path, Regions(["a", "b"], np.array([0, 1]), one, one), {"a": 1})


def write_params(path: Path) -> None:
    import struct

    array = struct.pack("<IiiqqiiI", 0xF993FAC9, 0, 2, 2, 3, 1, 0, 0) + bytes(24)
    name = b"arg:w"
    head = struct.pack("<QQQ", 0x112, 0, 1)
    path.write_bytes(head + array + struct.pack("<QQ", 1, len(name)) + name)


def write_xml(path: Path) -> None:
    objects = "".join(f"<object><name>{name}</name></object>" for name in CLASSES[:2])
    path.write_text(f"<annotation><filename>a.jpg</filename>{objects}</annotation>")


def read_xml(path: Path) -> object:
    return read_labels(path.parent, CLASSES)[path.stem]


def read_list(path: Path) -> object:
    root = path.parent / "root"
    for folder in ("images", "lists"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return open_catalog("folder", root).ids(str(path))


def read_note_of(path: Path) -> object:
    return note_of(path.parent)


def checkpoint(path: Path, *, zipped: bool = True) -> None:
    content = {"method": "cam", "config": {"a": [1, "x", None], "class_names": ["disc"]}, "step": 3}
    content["model"] = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(2)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


# file name -> how a whole one is written, and the readers
READERS: dict[str, tuple[Callable[[Path], object], list[Callable[[Path], object]]]] = {
    "native.npy": (lambda p: save_cam(p, Cam(np.array([1, 2], np.uint8), CAM)), [load_cam]),
    "dict.npy": (
        lambda p: write_object(p, {0: CAM[0], 1: CAM[1]}),
        [lambda p: load_cam(p, label=lambda: LABEL)],
    ),
    "irn.npy": (
        lambda p: write_object(p, {"keys": torch.tensor([0, 1]), "high_res": CAM}),
        [lambda p: load_cam(p, label=lambda: LABEL)],
    ),
    "protocol5.npy": (
        lambda p: p.write_bytes(npy_of_pickle(pickle.dumps({0: CAM[0], 1: CAM[1]}, 5))),
        [lambda p: load_cam(p, label=lambda: LABEL)],
    ),
    "labels.npy": (
        lambda p: write_object(p, {"a": LABEL, "b": LABEL}),
        [lambda p: read_labels(p, CLASSES)],
    ),
    "labels.csv": (
        lambda p: p.write_text('image_id,classes\na,disc;square\n"b,1",\n'),
        [lambda p: read_labels(p, CLASSES)],
    ),
    "classes.txt": (lambda p: p.write_text("".join(f"{n}\n" for n in CLASSES)), [read_class_names]),
    "list.txt": (
        lambda p: p.write_text("a\nb 1 2\n/images/c.jpg /masks/c.png\n"),
        [read_list],
    ),
    "a.xml": (write_xml, [read_xml]),
    "instances.json": (
        write_coco14,
        [lambda p: [draw_mask(one, overlap="unknown") for one in read_annotations(p)]],
    ),
    "coco.json": (
        lambda p: save_coco(p, [("a.jpg", MASK)], CLASSES),
        [lambda p: load_coco(p, CLASSES)],
    ),
    "labelme.json": (
        lambda p: save_labelme(p, MASK, CLASSES, "a.jpg"),
        [lambda p: load_labelme(p, CLASSES, MASK.shape)],
    ),
    "made_from.json": (lambda p: p.write_text('{"method": "cam", "post": {}}'), [read_note_of]),
    "cvat.zip": (
        lambda p: save_cvat(p, [("a", MASK)], CLASSES),
        [lambda p: CvatMasks(p, CLASSES).mask("a")],
    ),
    "nroi.npz": (write_regions, [read_regions]),
    "w.params": (write_params, [read_params]),
    "new.pth": (checkpoint, [load_checkpoint, load_tensors]),
    "old.pth": (lambda p: checkpoint(p, zipped=False), [load_checkpoint, load_tensors]),
    "w.safetensors": (
        lambda p: safetensors.torch.save_file({"w": torch.ones(2, 3)}, p, {"a": "b"}),
        [load_safetensors],
    ),
    "mask.png": (lambda p: save_mask(p, MASK), [load_mask, misplaced_colour, load_boundary]),
    "map.png": (lambda p: Image.fromarray(MASK).save(p), [lambda p: decode(p, "L")]),
    **{
        f"photo.{kind.lower()}": (
            lambda p, kind=kind: write_image(p, kind),
            [size_of, lambda p: decode(p, "RGB", upright=True), load_mask],
        )
        for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
    },
    "lzw.tiff": (
        lambda p: write_image(p, "TIFF", compression="tiff_lzw"),
        [size_of, lambda p: decode(p, "RGB")],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_whole_file_is_read(name: str, tmp_path) -> None:
    write, (first, *_) = READERS[name]
    write(tmp_path / name)
    first(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path) -> None:
    write, readers = READERS[name]
    write(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    end = time.monotonic() + SECONDS

    @settings(
        max_examples=EXAMPLES * (8 if SECONDS else 1),
        deadline=None,
        derandomize=not SECONDS,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(data=st.data())
    def holds(data: st.DataObject) -> None:
        (tmp_path / name).write_bytes(damaged(data, whole))
        for read in readers:
            began, said = time.monotonic(), "read"
            try:
                read(tmp_path / name)
            except (ValueError, FileNotFoundError) as error:
                said = one_line(error)
            assert said
            assert time.monotonic() - began < LONGEST

    holds()
    number = time.time_ns()
    while time.monotonic() < end:
        number += 1
        seed(number)(holds)()
