"""`python -m network.predict`: one photograph, its mask and a picture, in one command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from PIL import Image
from runs import Result, assert_refused, run
from untrained import SEGMENT, untrained, without_labels

from network.predict.__main__ import largest_classes
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
def test_a_photograph_gets_the_masks_of_infer_cam_without_labels(
    folder_root, tmp_path, one_thread, more
) -> None:
    root = without_labels(folder_root, tmp_path / "unlabelled")
    checkpoint = untrained(SEGMENT, root, tmp_path / "checkpoint.pth")
    data = ["--dataset", "folder", "--root", root, "--list", "train", "--num-workers", 0]
    flags = ["--checkpoint", checkpoint, *data, "--device", "cpu", "--argmax", tmp_path / "plain"]
    assert run("infer_cam.py", *flags, "--masks", tmp_path / "crf", *more).returncode == 0
    seen = set()
    for image in sorted((root / "images").iterdir())[:4]:
        elsewhere = tmp_path / f"photograph{image.suffix}"  # outside any dataset
        elsewhere.write_bytes(image.read_bytes())
        ours, theirs = tmp_path / "mask.png", f"{image.stem}.png"
        result = predict(checkpoint, elsewhere, "--mask", ours, *more)
        assert result.returncode == 0, result.stderr
        assert str(ours) in result.stdout
        assert ours.read_bytes() == (tmp_path / "crf" / theirs).read_bytes()
        classes = np.unique(load_mask(ours))
        seen |= set(classes.tolist())
        if not more:
            assert panels(checkpoint, elsewhere) == 2 + (classes > 0).sum()
        for threshold in ("0", "0.5"):
            plain = ["--bg-threshold", threshold, "--mask", ours, *more]
            result = predict(checkpoint, elsewhere, *plain)
            assert result.returncode == 0
            assert ("means 0, no CRF" in result.stderr) == (threshold != "0")
        assert ours.read_bytes() == (tmp_path / "plain" / theirs).read_bytes()
    assert len(seen) > 1


def test_classes_that_are_given_are_all_that_a_mask_may_have(
    folder_root, tmp_path, one_thread
) -> None:
    """Also of a segmentation network, as `infer_cam.py --with-labels` does it."""
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    data = ["--dataset", "folder", "--root", folder_root, "--list", "val", "--num-workers", 0]
    flags = ["--checkpoint", checkpoint, *data, "--device", "cpu", "--with-labels"]
    assert run("infer_cam.py", *flags, "--masks", tmp_path / "all").returncode == 0
    masks = []
    for name in ("a1", "my photo"):
        classes, _, suffix = FOLDER_IMAGES[name]
        image, path = folder_root / "images" / (name + suffix), tmp_path / f"{name}.png"
        result = predict(checkpoint, image, "--mask", path, "--classes", *classes)
        assert f"{', '.join(sorted(classes))}, as given" in result.stdout
        assert path.read_bytes() == (tmp_path / "all" / f"{name}.png").read_bytes()
        assert panels(checkpoint, image) == 2 + len(classes)
        masks.append(load_mask(path))
        assert predict(checkpoint, image, "--top", 1).returncode == 0
        assert panels(checkpoint, image) == 3
    assert any(mask.any() for mask in masks)


def test_with_the_right_classes_the_mask_is_that_of_infer_cam(
    folder_root, tmp_path, one_thread
) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    data = ["--dataset", "folder", "--root", folder_root, "--list", "val", "--num-workers", 0]
    flags = ["--checkpoint", checkpoint, *data, "--device", "cpu", "--masks", tmp_path / "all"]
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


def test_a_classifier_says_of_which_classes_it_is_sure(folder_root, tmp_path, monkeypatch) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    image = folder_root / "images" / "a1.jpg"
    for found, more, words, count in (
        (
            (0.9, 0.2, 0.6),
            [],
            "disc 0.90, sky lark 0.60 (the classes with a score of 0.5 or more)",
            4,
        ),
        ((0.1, 0.4, 0.3), [], "square 0.40 (the likeliest: none has a score of 0.5)", 3),
        ((0.1, 0.4, 0.3), ["--top", 2], "square 0.40, sky lark 0.30 (the likeliest: --top 2)", 4),
        ((0.9, 0.2, 0.6), ["--top", 1], "disc 0.90 (the likeliest: --top 1)", 3),
    ):
        monkeypatch.setattr(
            "network.methods.cam.Cam.classify", lambda *_, found=found: torch.tensor([found])
        )
        result = predict(checkpoint, image, *more)
        assert words in result.stdout, result.stderr
        assert panels(checkpoint, image) == count


def many(checkpoint: Path, images: list[Path], *more: object) -> Result:
    flags = ["--checkpoint", checkpoint, "--device", "cpu", *more]
    return run("network/predict/__main__.py", *images, *flags)


def test_many_photographs_get_the_masks_that_each_gets_alone(
    folder_root, tmp_path, one_thread
) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    images, out = sorted((folder_root / "images").iterdir()), tmp_path / "all"
    result = many(checkpoint, images, "--out", out)
    assert result.returncode == 0, result.stderr
    assert f"{len(images)} masks in {out / 'mask'}" in result.stdout
    for image in images:
        assert predict(checkpoint, image, "--mask", tmp_path / "one.png").returncode == 0
        mask = out / "mask" / f"{image.stem}.png"
        assert mask.read_bytes() == (tmp_path / "one.png").read_bytes()
        with Image.open(out / "overlay" / f"{image.stem}.png") as overlay, Image.open(image) as own:
            assert overlay.size == own.size
            same = np.asarray(overlay) == np.asarray(own.convert("RGB"))
        labelled = load_mask(mask) > 0
        assert same[~labelled].all()
        assert labelled.any() == (not same.all())


def test_a_folder_may_receive_one_photograph(folder_root, tmp_path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    image = folder_root / "images" / "my photo.png"
    assert many(checkpoint, [image], "--out", tmp_path / "one").returncode == 0
    assert (tmp_path / "one" / "mask" / "my photo.png").is_file()
    assert (tmp_path / "one" / "overlay" / "my photo.png").is_file()


def test_what_several_photographs_cannot_have_is_one_line(folder_root, tmp_path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    one, two = (folder_root / "images" / name for name in ("a1.jpg", "c5.jpg"))
    assert_refused(many(checkpoint, [one, two], "--mask", tmp_path / "m.png"), "--mask is of one")
    assert_refused(many(checkpoint, [one, two], "--out", tmp_path / "x.png"), "give a folder")
    same = tmp_path / "a1.png"
    same.write_bytes(one.read_bytes())
    assert_refused(many(checkpoint, [one, same]), "would get one mask, a1.png")
    out = tmp_path / "none"
    assert_refused(many(checkpoint, [one, tmp_path / "no.jpg"], "--out", out), "does not exist")
    assert not out.exists(), "nothing before everything is there"


def test_a_folder_that_is_not_read_is_warned_about(folder_root, tmp_path) -> None:
    checkpoint = untrained(SEGMENT, folder_root, tmp_path / "checkpoint.pth")
    image, flags = folder_root / "images" / "a1.jpg", ["--seed-dir", tmp_path / "no"]
    result = predict(checkpoint, image, *flags, "--out", tmp_path / "a.png")
    assert result.returncode == 0, result.stderr
    assert "warning: --seed-dir has no effect" in result.stderr


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
