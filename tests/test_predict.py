"""`python -m network.predict`: one photograph, its mask and a picture, in one command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from PIL import Image
from runs import Result, assert_refused, run
from untrained import SEGMENT, untrained, without_labels

from network.methods import Recipe
from network.predict.__main__ import largest_classes
from network.predict.maps import mask_of
from tool.formats.mask import load_mask

pytestmark = pytest.mark.usefixtures("trial_methods")


def predict(checkpoint: Path, image: Path, *more: object) -> Result:
    out = checkpoint.with_name("shown.png")
    flags = [image, "--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--gate", "none"]
    return run("network/predict/__main__.py", *flags, *more)


def panels(checkpoint: Path, image: Path) -> float:
    """How many panels the picture has."""
    with Image.open(checkpoint.with_name("shown.png")) as shown, Image.open(image) as one:
        return shown.width / one.width


@pytest.mark.parametrize("more", [[], ["--max-side", 50]], ids=["whole", "reduced"])
def test_a_photograph_gets_the_mask_of_infer_cam_without_labels(
    folder_root, tmp_path, one_thread, more
) -> None:
    root = without_labels(folder_root, tmp_path / "unlabelled")
    checkpoint = untrained(SEGMENT, root, tmp_path / "checkpoint.pth")
    data = ["--dataset", "folder", "--root", root, "--list", "train", "--num-workers", 0]
    flags = ["--checkpoint", checkpoint, *data, "--device", "cpu", "--argmax", tmp_path / "all"]
    assert run("infer_cam.py", *flags, *more).returncode == 0
    seen = set()
    for image in sorted((root / "images").iterdir()):
        elsewhere = tmp_path / f"photograph{image.suffix}"  # outside any dataset
        elsewhere.write_bytes(image.read_bytes())
        result = predict(checkpoint, elsewhere, "--mask", tmp_path / "mask.png", *more)
        assert result.returncode == 0, result.stderr
        assert str(tmp_path / "mask.png") in result.stdout
        ours, theirs = tmp_path / "mask.png", tmp_path / "all" / f"{image.stem}.png"
        assert ours.read_bytes() == theirs.read_bytes()
        classes = np.unique(load_mask(ours))
        seen |= set(classes.tolist())
        if not more:
            assert panels(checkpoint, elsewhere) == 2 + (classes > 0).sum()
    assert len(seen) > 1


def test_classes_choose_the_panels_of_a_segmentation_network(folder_root, tmp_path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    image = folder_root / "images" / "a1.jpg"
    masks = []
    for number, more in enumerate(([], ["--classes", "sky lark", "square"], ["--top", 1])):
        path = tmp_path / f"{number}.png"
        assert predict(checkpoint, image, "--mask", path, *more).returncode == 0
        masks.append(path.read_bytes())
        if number:
            assert panels(checkpoint, image) == 2 + (2 if number == 1 else 1)
    assert masks[0] == masks[1] == masks[2]


def test_with_the_right_classes_the_mask_is_that_of_infer_cam(
    folder_root, tmp_path, one_thread
) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    data = ["--dataset", "folder", "--root", folder_root, "--list", "val", "--num-workers", 0]
    flags = ["--checkpoint", checkpoint, *data, "--device", "cpu", "--argmax", tmp_path / "all"]
    assert run("infer_cam.py", *flags).returncode == 0
    for name in ("a1", "my photo"):
        classes, _, suffix = FOLDER_IMAGES[name]
        mask = tmp_path / f"{name}.png"
        more = ["--mask", mask, "--classes", *classes]
        assert predict(checkpoint, folder_root / "images" / (name + suffix), *more).returncode == 0
        assert mask.read_bytes() == (tmp_path / "all" / f"{name}.png").read_bytes()
        assert set(np.unique(load_mask(mask))) <= {
            0,
            *(FOLDER_CLASSES.index(c) + 1 for c in classes),
        }


def test_two_likeliest_classes_are_the_default_of_a_classifier(folder_root, tmp_path) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    image = folder_root / "images" / "a1.jpg"
    for more, wanted in (([], 4), (["--top", 1], 3)):
        assert predict(checkpoint, image, *more).returncode == 0
        assert panels(checkpoint, image) == wanted


def test_the_mask_is_that_of_maps_as_a_file_stores_them() -> None:
    """What float16 cannot tell apart is a tie, which goes to the background."""
    maps = torch.tensor([0.50001, 0.50002, 0.1])[:, None, None].expand(3, 2, 2)
    method = SimpleNamespace(has_background=True, recipe=Recipe())
    assert not mask_of(maps, None, method, None).any()
    clear = maps + torch.tensor([0, 0.01, 0])[:, None, None]
    assert (mask_of(clear, None, method, None) == 1).all()


def test_the_largest_classes_of_a_mask() -> None:
    mask = np.array([[0, 0, 0, 0], [3, 3, 1, 7], [7, 7, 0, 0]], np.uint8)
    assert largest_classes(mask, None) == [0, 2, 6]
    assert largest_classes(mask, 2) == [2, 6]
    assert largest_classes(mask, 1) == [6]
    assert largest_classes(np.zeros((2, 2), np.uint8), 1) == []


def test_an_unknown_class_is_refused(folder_root, tmp_path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    image = folder_root / "images" / "a1.jpg"
    assert_refused(predict(checkpoint, image, "--classes", "unicorn"), "unicorn")
