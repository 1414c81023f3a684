"""Small COCO and VOC downloads, made here: what the `prepare` commands read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from runs import Result, run

import coco14

# id -> objects; "difficult" ones count, parts of a person do not
IMAGES = {
    "2007_000032": ["aeroplane", "person"],
    "2007_000033": ["aeroplane"],
    "2008_000001": ["cat", "cat", "difficult dog"],
    "2009_000002": ["tvmonitor"],
    "2010_000003": ["person"],
}
LISTS = {"train": ["2007_000032"], "val": ["2007_000033", "2010_000003"], "test": ["2012_000009"]}
SBD = ["2008_000001", "2009_000002", "2010_000003"]  # the last one is of val


def object_xml(text: str) -> str:
    difficult, _, name = text.rpartition(" ")
    return (
        f"<object><name>{name}</name><difficult>{int(bool(difficult))}</difficult>"
        "<part><name>head</name></part></object>"
    )


def write_devkit(root: Path) -> Path:
    """A VOC devkit of six images."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClassAug"):
        (root / name).mkdir(parents=True)
    for image_id, objects in IMAGES.items():
        xml = f"<annotation>{''.join(map(object_xml, objects))}</annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
    for image_id in (*IMAGES, "2012_000009"):
        Image.new("RGB", (8, 6)).save(root / "JPEGImages" / f"{image_id}.jpg")
    for name, ids in LISTS.items():
        path = root / "ImageSets/Segmentation" / f"{name}.txt"
        path.write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id in SBD:
        mask = Image.fromarray(np.zeros((6, 8), np.uint8))
        mask.save(root / "SegmentationClassAug" / f"{image_id}.png")
    return root


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A rectangle as COCO's polygons; it covers the pixels left..right-1, top..bottom-1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(image: int, category: int, segmentation, *, area: float, crowd: int = 0) -> dict:
    return {
        "id": 7,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
    }


def image(split: str, number: int, width: int = 20, height: int = 12) -> dict:
    name = f"COCO_{split}2014_{number:012d}.jpg"
    return {"id": number, "file_name": name, "width": width, "height": height}


def runs_of(left: int, top: int, right: int, bottom: int) -> dict:
    """The same rectangle in a 20x12 image as COCO's uncompressed run lengths."""
    region = np.zeros((12, 20), np.uint8)
    region[top:bottom, left:right] = 1
    flat = region.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return {"size": [12, 20], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def write_coco(root: Path) -> Path:
    """A COCO of three train images and one val image, 20x12."""
    (root / "annotations").mkdir(parents=True)
    content = {
        "train": {
            "images": [image("train", 9), image("train", 3), image("train", 5)],
            "annotations": [
                annotation(9, 90, box(2, 2, 6, 6), area=16),
                annotation(9, 1, box(4, 4, 16, 10), area=72),
                annotation(9, 18, runs_of(0, 0, 20, 5), area=100, crowd=1),
                annotation(3, 13, box(0, 0, 20, 12), area=240),
            ],
        },
        "val": {"images": [image("val", 1)], "annotations": [annotation(1, 2, [], area=0)]},
    }
    for split, folder in coco14.SPLITS.items():
        (root / folder).mkdir()
        path = root / "annotations" / f"instances_{folder}.json"
        path.write_text(json.dumps(content[split]))
        for one in content[split]["images"]:
            size = (one["width"], one["height"])
            Image.new("RGB", size).save(root / folder / one["file_name"])
    return root


def prepare_coco(root: Path, *flags: object) -> Result:
    """Run `coco14.prepare`, in one process, on a part of the benchmark."""
    return run("coco14/prepare.py", "--root", root, "--workers", 1, "--partial", *flags)


def prepare_voc(root: Path, *flags: object) -> Result:
    """Run `voc12.prepare`."""
    return run("voc12/prepare.py", "--root", root, *flags)
