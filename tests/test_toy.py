"""The embedded dataset: its files, its determinism, and that it is as hard as it says."""

from __future__ import annotations

import filecmp
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import toy
from data.fill import fill_mask
from data.toy import __main__ as command
from data.toy.drawing import scene
from data.toy.drawing.scene import CLASS_NAMES, KINDS, LEAST_SHARE, Sample, make_sample

K = len(CLASS_NAMES)
TRAIN, VAL = 5, 3
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of TRAIN + VAL images; tests must not change it."""
    path = tmp_path_factory.mktemp("toy") / "data"
    toy.write_toy(path, train=TRAIN, val=VAL)
    return path


@pytest.fixture(scope="module")
def train() -> list[Sample]:
    """The 240 train samples of seed 0, as `write_toy` draws them."""
    return [make_sample(np.random.default_rng([0, index])) for index in range(240)]


def ids_of(root: Path, name: str) -> list[str]:
    return (root / "ImageSets/Segmentation" / f"{name}.txt").read_text().split()


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def iou(confusion: np.ndarray) -> np.ndarray:
    """IoU a class of a confusion matrix (K+1, K+1)."""
    hit = np.diag(confusion)
    return hit / (confusion.sum(0) + confusion.sum(1) - hit)


def test_layers_of_an_image_agree(root: Path) -> None:
    ids = ids_of(root, "train") + ids_of(root, "val")
    assert len(ids_of(root, "train")) == TRAIN
    assert len(set(ids)) == TRAIN + VAL
    for image_id in ids:
        image = Image.open(root / "JPEGImages" / f"{image_id}.jpg")
        mask = Image.open(root / "SegmentationClassAug" / f"{image_id}.png")
        saliency = Image.open(root / "saliency" / f"{image_id}.png")
        context = Image.open(root / "context" / f"{image_id}.png")
        assert (image.mode, mask.mode, saliency.mode, context.mode) == ("RGB", "P", "L", "L")
        assert image.size == mask.size == saliency.size == context.size
        assert all(130 <= side <= 176 for side in image.size)
        assert not (np.asarray(context)[np.asarray(mask) > 0]).any()


def test_labels_are_the_classes_of_the_masks(root: Path) -> None:
    assert (root / "classes.txt").read_text().split() == list(CLASS_NAMES)
    header, *rows = (root / "labels.csv").read_text().splitlines()
    assert header == "image_id,classes"
    assert [row.split(",")[0] for row in rows] == ids_of(root, "train") + ids_of(root, "val")
    for row in rows:
        image_id, cell = row.split(",")
        mask = np.asarray(Image.open(root / "SegmentationClassAug" / f"{image_id}.png"))
        assert cell.split(";") == [CLASS_NAMES[value - 1] for value in np.unique(mask) if value]


def test_two_runs_are_byte_equal(root: Path, tmp_path: Path) -> None:
    toy.write_toy(tmp_path / "again", train=TRAIN, val=VAL)
    files = [name for name in tree(root) if (root / name).is_file()]
    assert tree(tmp_path / "again") == tree(root)
    _, differ, missing = filecmp.cmpfiles(root, tmp_path / "again", files, shallow=False)
    assert (differ, missing) == ([], [])


def test_seed_and_number_make_the_image(root: Path, tmp_path: Path) -> None:
    toy.write_toy(tmp_path / "fewer", train=1, val=1)
    toy.write_toy(tmp_path / "other", seed=1, train=1, val=1)
    first = f"JPEGImages/{ids_of(root, 'train')[0]}.jpg"
    assert (tmp_path / "fewer" / first).read_bytes() == (root / first).read_bytes()
    assert (tmp_path / "other" / first).read_bytes() != (root / first).read_bytes()


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(rng: np.random.Generator) -> Sample:
        raise OSError("disk full")

    monkeypatch.setattr(toy, "make_sample", fail)
    with pytest.raises(OSError, match="disk full"):
        toy.write_toy(tmp_path / "data", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not the toy dataset"):
        toy.write_toy(tmp_path / "mine", train=1, val=1)
    with pytest.raises(ValueError, match="is a file"):
        toy.write_toy(tmp_path / "file", train=1, val=1)
    assert tree(tmp_path) == ["file", "mine", "mine/thesis.tex"]


def test_complete_copy_stays_and_damaged_one_is_replaced(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    stamp = (copy / "toy.json").stat().st_ino
    toy.write_toy(copy, train=TRAIN, val=VAL)
    assert (copy / "toy.json").stat().st_ino == stamp
    assert toy.is_complete(copy)
    (copy / "labels.csv").unlink()
    assert not toy.is_complete(copy)
    toy.write_toy(copy, train=TRAIN, val=VAL)
    assert tree(copy) == tree(root)
    older = json.loads((copy / "toy.json").read_text()) | {"version": toy.VERSION - 1}
    (copy / "toy.json").write_text(json.dumps(older))
    assert not toy.is_complete(copy)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_quicker_process_wins(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_while_another_finishes(fresh: Path, **_: int) -> None:
        shutil.copytree(root, fresh, dirs_exist_ok=True)
        shutil.copytree(root, tmp_path / "data")
        (tmp_path / "data" / "used").touch()

    monkeypatch.setattr(toy, "_write_all", write_while_another_finishes)
    toy.write_toy(tmp_path / "data", train=TRAIN, val=VAL)
    assert (tmp_path / "data" / "used").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("counts", [{"train": 0}, {"val": 0}])
def test_counts_below_one_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        toy.write_toy(tmp_path / "data", **counts)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--root", str(tmp_path / "data"), "--train", "2", "--val", "1", "--seed", "3"])
    assert toy.is_complete(tmp_path / "data")
    assert "2 train and 1 val" in capsys.readouterr().out
    with pytest.raises(SystemExit) as error:
        command.main(["--root", str(tmp_path / "data"), "--train", "0"])
    assert error.value.code == 2


def test_no_torch_is_imported() -> None:
    code = "import sys, data.toy, data.fill; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


def test_classes_are_many_and_large_enough_to_see(train: list[Sample]) -> None:
    counts = np.zeros(K + 1, int)
    shares = []
    for sample in train:
        share = np.bincount(sample.mask.ravel(), minlength=K + 1) / sample.mask.size
        assert sample.classes == tuple(np.flatnonzero(share[1:]) + 1)
        assert share[list(sample.classes)].min() >= LEAST_SHARE
        counts[list(sample.classes)] += 1
        shares.extend(share[list(sample.classes)])
    assert K >= 8
    assert counts[1:].min() >= 30
    assert 0.08 < np.median(shares) < 0.25
    several = np.mean([len(sample.classes) > 1 for sample in train])
    assert 0.42 < several < 0.58
    assert any(len(sample.classes) == 3 for sample in train)


def test_scene_with_too_little_of_a_class_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "LEAST_SHARE", 0.12)
    for index in range(6):
        sample = make_sample(np.random.default_rng([0, index]))
        assert all((sample.mask == value).mean() >= 0.12 for value in sample.classes)


def test_contexts_come_with_their_class_and_at_times_without(train: list[Sample]) -> None:
    beside, alone = np.zeros((2, K + 1))
    present = np.zeros(K + 1)
    for sample in train:
        shown = np.bincount(sample.context.ravel(), minlength=K + 1) > 0.005 * sample.mask.size
        here = np.isin(np.arange(K + 1), sample.classes)
        present += here
        beside += shown & here
        alone += shown & ~here
    values = [value for value, kind in enumerate(KINDS, start=1) if kind.context]
    assert len(values) >= 6
    rate = beside[values] / present[values]
    assert 0.8 < beside[values].sum() / present[values].sum() < 0.92
    assert rate.min() > 0.7
    assert rate.max() < 1
    assert alone[values].min() >= 2
    assert (alone[values] < 0.5 * beside[values]).all()
    without = [value for value in range(1, K + 1) if value not in values]
    assert not (beside + alone)[without].any()


def test_saliency_is_imperfect_and_the_fill_baseline_below_45(train: list[Sample]) -> None:
    confusion = np.zeros((K + 1, K + 1))
    both = either = missed = instances = 0
    for sample in train:
        label = np.isin(np.arange(1, K + 1), sample.classes)
        predicted = fill_mask(sample.saliency, label)
        np.add.at(confusion, (sample.mask, predicted), 1)
        salient = sample.saliency > 127
        both += (salient & (sample.mask > 0)).sum()
        either += (salient | (sample.mask > 0)).sum()
        for value in sample.classes:
            instances += 1
            missed += salient[sample.mask == value].mean() < 0.1
    assert 0.55 < both / either < 0.72
    assert 0.03 < missed / instances < 0.2
    assert iou(confusion).mean() < 0.45
    assert np.mean([((s.saliency > 30) & (s.saliency < 200)).mean() for s in train]) > 0.1


def test_colour_does_not_tell_the_class(train: list[Sample]) -> None:
    pictures = [sample for sample in train if len(sample.classes) == 1]
    value = np.array([sample.classes[0] for sample in pictures])
    tint = np.stack([np.asarray(s.image)[s.mask > 0].mean(0) for s in pictures])
    right = 0
    for i in range(len(pictures)):  # nearest class mean, the picture itself left out
        others = np.arange(len(pictures)) != i
        means = [tint[others & (value == v)].mean(0) for v in range(1, K + 1)]
        right += 1 + np.argmin(np.linalg.norm(means - tint[i], axis=1)) == value[i]
    assert right / len(pictures) < 0.35
