"""Shared fixtures: a small dataset in the `folder` layout."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import Server
from PIL import Image

FOLDER_CLASSES = ("disc", "square", "sky lark")
FOLDER_IMAGES = {  # id -> (classes, (W, H), suffix); ids with dots and a space, one without object
    "a1": (("disc",), (80, 64), ".jpg"),
    "2007_000032": (("square",), (64, 80), ".jpg"),
    "v1.2.x": (("sky lark",), (56, 56), ".jpg"),
    "my photo": (("disc", "square"), (72, 48), ".png"),
    "b-4": (("disc", "sky lark"), (80, 48), ".jpeg"),
    "c5": (("square", "sky lark"), (48, 80), ".jpg"),
    "d6": (("disc", "square", "sky lark"), (78, 61), ".jpg"),
    "empty": ((), (60, 60), ".jpg"),
}


@pytest.fixture
def folder_dataset(tmp_path: Path) -> Path:
    """The root of a `folder` dataset of the test's own; see `write_folder`."""
    return write_folder(tmp_path / "dataset")


@pytest.fixture(scope="session")
def folder_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a `folder` dataset that all tests share: do not write into it."""
    return write_folder(tmp_path_factory.mktemp("shared") / "dataset")


@pytest.fixture
def trial_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """The methods in `trial_methods/` are methods too, in this process."""
    import network.methods

    folder = str(Path(__file__).parent / "trial_methods")
    monkeypatch.setattr(network.methods, "__path__", [*network.methods.__path__, folder])


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the files that a test puts into it."""
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One torch thread, as in the processes that a test compares itself with.

    Sums in another order differ in the last bit, and what follows a maximum or a sign then
    differs visibly.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_folder(root: Path) -> Path:
    """A `folder` dataset: 3 classes, 8 images of 48..80 px, masks, saliency.

    Lists: `train` (all 8 ids of FOLDER_IMAGES, in order) and `val` (three of them).
    """
    for name in ("images", "masks", "saliency", "lists"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in FOLDER_CLASSES))
    (root / "lists" / "train.txt").write_text("".join(f"{name}\n" for name in FOLDER_IMAGES))
    (root / "lists" / "val.txt").write_text("a1\nmy photo\nv1.2.x\n")
    rows = [f"{name},{';'.join(classes)}\n" for name, (classes, _, _) in FOLDER_IMAGES.items()]
    (root / "labels.csv").write_text("image_id,classes\n" + "".join(rows))
    rng = np.random.default_rng(0)
    for image_id, (classes, size, suffix) in FOLDER_IMAGES.items():
        mask = _draw_mask(classes, size)
        colours = np.array([[60, 90, 60], [220, 40, 40], [40, 60, 220], [230, 220, 60]], np.uint8)
        noise = rng.integers(-20, 21, (*mask.shape, 3))
        image = np.clip(colours[mask].astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{image_id}{suffix}")
        mask_image = Image.fromarray(mask)
        mask_image.putpalette(np.arange(768).astype(np.uint8).tobytes())
        mask_image.save(root / "masks" / f"{image_id}.png")
        saliency = np.where(mask > 0, 230, 20).astype(np.uint8)
        Image.fromarray(saliency).save(root / "saliency" / f"{image_id}.png")
    return root


def write_voc(root: Path, image_id: str, *, masks: str = "SegmentationClassAug") -> Path:
    """A VOC tree of one 8x6 image with mask value 12 (dog)."""
    for folder in ("JPEGImages", masks, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(root / "JPEGImages" / f"{image_id}.jpg")
    Image.fromarray(np.full((6, 8), 12, np.uint8)).save(root / masks / f"{image_id}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{image_id}\n")
    return root


def _draw_mask(classes: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: one 16 px object a class, side by side on the middle row."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    for place, name in enumerate(classes):
        dx = np.abs(x - (10 + place * (width - 20) // max(1, len(classes) - 1)))
        dy = np.abs(y - height // 2)
        inside = dx**2 + dy**2 < 64 if name == "disc" else np.maximum(dx, dy) < 8
        mask[inside] = FOLDER_CLASSES.index(name) + 1
    return mask
