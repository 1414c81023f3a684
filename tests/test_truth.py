"""What stage 4 scores against is named, hashed, the benchmark's own, and not empty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_voc
from PIL import Image
from runs import assert_refused, run

from data.catalog import open_catalog
from data.fields import FIELDS, TRUTH, Sources
from data.flags import DatasetFlags, catalog_from
from data.readable import ListFlags, open_list
from tool.files import list_hash
from tool.formats.mask import palette, save_mask
from tool.formats.predictions import colour_warning
from tool.infer.previous import PreviousOutputs

OWN, SBD = "SegmentationClass", "SegmentationClassAug"


def voc(root: Path) -> Path:
    """VOC with both folders of masks, which differ, and the lists train, train_aug."""
    write_voc(root, "x", masks=SBD)
    write_voc(root, "x", masks=OWN)
    save_mask(root / SBD / "x.png", np.full((6, 8), 5, np.uint8))
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("x\n")
    return root


def score(root: Path, predictions: Path, out: Path, *flags: object, dataset: str = "voc12"):
    base = ["--dataset", dataset, "--root", root, "--pred-dir", predictions, "--json", out]
    result = run("eval_miou.py", *base, *flags)
    return result, json.loads(out.read_text())["protocol"] if out.exists() else {}


@pytest.mark.parametrize(("name", "folder"), [("train", OWN), ("train_aug", SBD)])
def test_lists_of_voc_are_scored_on_the_masks_of_their_owner(
    tmp_path: Path, name: str, folder: str
) -> None:
    root = voc(tmp_path / "voc")
    result, protocol = score(root, root / folder, tmp_path / "m.json", "--list", name)
    assert "mIoU 100.00" in result.stdout
    assert protocol["ground_truth"] == folder
    assert (
        f"ground truth: {folder}, SHA-256 {protocol['ground_truth_sha256'][:16]}" in result.stdout
    )
    for list_flag in (name, str(root / "ImageSets/Segmentation" / f"{name}.txt")):
        catalog, _ = catalog_from(DatasetFlags(dataset="voc12", root=root, list=list_flag))
        assert catalog.mask_path("x").parent.name == folder


def test_masks_that_the_owner_lacks_come_from_the_other_folder(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc")
    (root / OWN / "x.png").unlink()
    _, protocol = score(root, root / SBD, tmp_path / "m.json", "--list", "train")
    assert protocol["ground_truth"] == SBD


def test_the_hash_is_that_of_the_masks(folder_dataset: Path, tmp_path: Path) -> None:
    masks, hashes = folder_dataset / "masks", []
    for number in range(3):
        if number == 2:
            mask = np.array(Image.open(masks / "a1.png"))
            mask[0, 0] = 3
            save_mask(masks / "a1.png", mask)
        _, protocol = score(folder_dataset, masks, tmp_path / f"{number}.json", dataset="folder")
        hashes.append(protocol["ground_truth_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_ground_truth_without_foreground_is_an_error(folder_dataset: Path, tmp_path: Path) -> None:
    masks, empty = folder_dataset / "masks", tmp_path / "empty"
    for path in masks.glob("*.png"):
        mask = np.array(Image.open(path))
        save_mask(empty / path.name, np.zeros_like(mask))
        save_mask(path, np.where(mask > 0, 255, 0).astype(np.uint8))
    result, _ = score(folder_dataset, empty, tmp_path / "m.json", dataset="folder")
    assert_refused(result, "the ground truth in masks is 0", "1 to")
    save_mask(masks / "a1.png", np.array(Image.open(masks / "a1.png")) // 255)
    result, _ = score(folder_dataset, empty, tmp_path / "m.json", dataset="folder")
    assert result.returncode == 0, result.stderr


def test_one_list_has_one_hash(folder_dataset: Path, tmp_path: Path) -> None:
    (folder_dataset / "images" / "c5.jpg").write_bytes(b"broken")
    skip = ["--skip-bad-images", "--list", "train"]
    out = tmp_path / "m.json"
    _, protocol = score(folder_dataset, folder_dataset / "masks", out, *skip, dataset="folder")
    flags = ListFlags(dataset="folder", root=folder_dataset, list="train")
    catalog, images = open_list(flags)
    assert protocol["list_sha256"] == images.sha256 == list_hash(catalog.ids("train"))
    assert protocol["images"] == len(images.ids) - 1


def requantised(path: Path, out: Path) -> None:
    """Write a mask anew with the benchmark's colours in another order, as image editors do."""
    mask = np.array(Image.open(path))
    order = np.arange(256)
    order[[1, 2, 3]] = [3, 1, 2]
    image = Image.fromarray(order[mask].astype(np.uint8))
    colours = palette().copy()
    colours[order] = palette()
    image.putpalette(colours.tobytes())
    out.parent.mkdir(exist_ok=True)
    image.save(out)


def test_colours_at_other_indices_are_warned_about(folder_dataset: Path, tmp_path: Path) -> None:
    masks, ids = folder_dataset / "masks", ["d6"]
    requantised(masks / "d6.png", tmp_path / "odd" / "d6.png")
    (folder_dataset / "lists" / "one.txt").write_text("d6\n")
    said = "has the colour of class 2 at the value 1"
    base = [tmp_path / "m.json", "--list", "one"]
    result, _ = score(folder_dataset, tmp_path / "odd", *base, dataset="folder")
    assert said in result.stderr
    requantised(masks / "d6.png", masks / "d6.png")
    result, _ = score(folder_dataset, masks, *base, dataset="folder")
    assert result.stderr.count("has the colour of class") == 2  # the prediction and the truth
    previous = PreviousOutputs({"seed": tmp_path / "odd"})
    assert said in warned(lambda: previous.require(("seed",), ids))
    catalog = open_catalog("folder", folder_dataset)
    sources = Sources(catalog, PreviousOutputs({"mask": TRUTH}))  # --mask-dir truth
    assert said in warned(lambda: FIELDS["mask"].require(sources, ids))


def warned(act) -> str:
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as said:
        act()
    return said.getvalue()


def test_usual_palettes_are_not_warned_about(folder_dataset: Path, tmp_path: Path) -> None:
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_mask(tmp_path / "voc.png", mask)
    for mode in ("L", "P"):  # P: a grey palette
        Image.fromarray(mask).convert(mode).save(tmp_path / f"{mode}.png")
    own = [folder_dataset / "masks" / "a1.png"]
    assert colour_warning([*sorted(tmp_path.glob("*.png")), *own, tmp_path / "none.png"]) is None
