"""What a run says of the masks that it trains on, before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder
from runs import assert_refused, run, train_flags

from data.catalog import open_catalog
from data.fields import TRUTH, Sources
from data.masks import survey
from tool.formats.mask import load_mask, save_mask
from tool.infer.previous import PreviousOutputs
from tool.score.evaluation import Evaluation
from tool.score.truth import no_foreground


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "dataset")


def ids(root: Path) -> list[str]:
    return (root / "lists" / "train.txt").read_text().splitlines()


def masks_of(root: Path, change=lambda mask: mask) -> Path:
    """A folder with the truth of every image, changed."""
    folder = root.parent / "mask"
    for name in ids(root):
        save_mask(folder / f"{name}.png", change(load_mask(root / "masks" / f"{name}.png")))
    return folder


def look(root: Path, folder: Path, **more):
    sources = Sources(open_catalog("folder", root), PreviousOutputs({"mask": folder}))
    return survey(sources, ids(root), **more)


def shifted(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, 5, axis=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_pixels_and_score_are_those_of_the_evaluation(root: Path, workers: int) -> None:
    found = look(root, masks_of(root, shifted), workers=workers)
    catalog = open_catalog("folder", root)
    evaluation = Evaluation(catalog.num_classes, 0.5, "background")
    values = np.zeros(256, np.int64)
    for name in ids(root):
        mask = load_mask(root.parent / "mask" / f"{name}.png")
        evaluation.add(catalog.read_mask(name), mask)
        values += np.bincount(mask.ravel(), minlength=256)
    expected = [*values[: catalog.num_classes + 1], values[255]]
    assert found.values.tolist() == expected
    assert found.miou == evaluation.scores().miou
    assert not found.is_truth
    assert f"mIoU {100 * found.miou:.1f}" in "\n".join(found.lines())


def test_masks_that_equal_the_truth_are_named(root: Path) -> None:
    for found in (look(root, masks_of(root)), look(root, TRUTH)):
        assert found.is_truth
        assert found.miou == 1
        assert "equal the ground truth" in found.lines()[-1]
    names = ids(root)
    one = root.parent / "mask" / f"{names[0]}.png"
    mask = load_mask(one)
    mask[0, 0] = 1 + (mask[0, 0] == 1)
    save_mask(one, mask)
    assert not look(root, root.parent / "mask").is_truth


def test_without_truth_there_is_no_score(root: Path) -> None:
    folder = masks_of(root)
    for path in (root / "masks").glob("*.png"):
        path.unlink()
    found = look(root, folder)
    assert (found.scored, found.miou, found.is_truth) == (0, None, False)
    assert "mIoU" not in "\n".join(found.lines())


def test_truth_without_foreground_gives_no_score(root: Path) -> None:
    """Masks whose objects are 255 there would have an mIoU of 100, and equal it."""
    folder = masks_of(root)
    for path in (root / "masks").glob("*.png"):
        save_mask(path, np.where(load_mask(path) > 0, 255, 0).astype(np.uint8))
    found = look(root, folder)
    assert (found.scored, found.miou, found.is_truth) == (8, None, False)
    assert found.lines()[-1] == f"masks: no score: {no_foreground('masks', 3)}"


def test_empty_masks_are_counted_and_refused_if_all_are(root: Path) -> None:
    folder = masks_of(root)
    names = ids(root)
    save_mask(folder / f"{names[0]}.png", 0 * load_mask(folder / f"{names[0]}.png"))
    found = look(root, folder)
    assert found.empty == 2, "one image has no class"
    assert f"2 of {len(names)} have no foreground" in "\n".join(found.lines())
    for name, value in zip(names, [0, 255] * len(names), strict=False):
        mask = load_mask(folder / f"{name}.png")
        save_mask(folder / f"{name}.png", np.full_like(mask, value))
    with pytest.raises(ValueError, match=r"none of the .* has a foreground pixel.*--mask-dir"):
        look(root, folder)


def train(root: Path, out: Path, folder: object, steps: int = 1):
    flags = train_flags(root, out, method="deeplab1", steps=steps)
    return run("train_fbr.py", *flags, "--mask-dir", folder)


def test_a_run_says_and_notes_what_its_masks_hold(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(root, out, masks_of(root, shifted))
    assert result.returncode == 0, result.stderr
    expected = look(root, root.parent / "mask")
    for line in expected.lines():
        assert line in result.stdout
    assert result.stdout.index("masks of") < result.stdout.index("steps 0 to")
    noted = json.loads((out / "masks.json").read_text())
    assert noted == json.loads(json.dumps(expected.document()))


def test_masks_without_foreground_or_missing_end_the_run(root: Path, tmp_path: Path) -> None:
    folder = masks_of(root, lambda mask: 0 * mask)
    result = train(root, tmp_path / "run", folder)
    assert_refused(result, "has a foreground pixel")
    assert not (tmp_path / "run" / "checkpoint.pth").exists()
    (folder / f"{ids(root)[0]}.png").unlink()
    assert_refused(train(root, tmp_path / "run", folder), "crf_postprocess.py")
