"""`data.boundary`: the window rules in their order, for any number of classes, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_IMAGES
from PIL import Image
from runs import Result, assert_refused, run

from data.boundary import Rules, boundary_label, contour, count_in_windows
from tool.formats.boundary import (
    BACKGROUND,
    CLASSES,
    FOREGROUND,
    OBJECT,
    SALIENT,
    load_boundary,
)
from tool.formats.mask import UNKNOWN, load_mask, save_mask
from tool.infer.previous import PreviousOutputs

RULES = Rules()
S, D = Fraction("0.3"), Fraction("0.1")
SOBEL = ((1, 0, -1), (2, 0, -2), (1, 0, -1))


def plain_label(seed: np.ndarray, saliency: np.ndarray | None, num_classes: int) -> np.ndarray:
    """The rules once more, pixel by pixel, in exact fractions."""
    height, width = seed.shape
    label = np.full((height, width), UNKNOWN, np.uint8)
    peak = None if saliency is None else saliency.max()
    for y in range(height):
        for x in range(width):
            window = seed[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7]
            count = np.bincount(window.ravel(), minlength=256)[: num_classes + 1].tolist()
            most = sorted([*count[1:], 0])[-2:]
            s0, s2, s1 = (Fraction(n, window.size) for n in (count[0], *most))
            if saliency is not None and saliency[y, x] == 0:
                label[y, x] = BACKGROUND
            if s0 > 2 * S and s0 - s1 >= 2 * D:
                label[y, x] = BACKGROUND
            if s1 > 2 * S and s1 - s0 >= 2 * D:
                label[y, x] = FOREGROUND
            if min(s0, s1) > S and abs(s1 - s0) < D:
                label[y, x] = OBJECT
            if s2 > S and s1 - s2 < D:
                label[y, x] = CLASSES
            if peak:
                near = np.array(
                    [
                        [
                            saliency[min(max(y + i, 0), height - 1), min(max(x + j, 0), width - 1)]
                            for j in (-1, 0, 1)
                        ]
                        for i in (-1, 0, 1)
                    ],
                    float,
                )
                dx, dy = (near * SOBEL).sum() / peak, (near * np.transpose(SOBEL)).sum() / peak
                if (dx**2 + dy**2) ** 0.5 > 0.5:
                    label[y, x] = SALIENT
    return label


def squares(one: int = 1, other: int = 2) -> np.ndarray:
    """Two squares that touch, on background, with a ring of unknown pixels around both."""
    seed = np.zeros((40, 60), np.uint8)
    seed[8:32, 8:52] = UNKNOWN
    seed[10:30, 10:30] = one
    seed[10:30, 30:50] = other
    return seed


def salient_squares() -> np.ndarray:
    """The left square alone, shifted by two pixels."""
    saliency = np.zeros((40, 60), np.float32)
    saliency[12:32, 12:30] = 0.5
    return saliency


def test_the_order_of_the_rules_on_two_squares() -> None:
    seed = squares()
    bes = boundary_label(seed, None, RULES)
    assert bes[0, 0] == BACKGROUND
    assert bes[20, 20] == bes[20, 40] == FOREGROUND
    assert bes[20, 29] == bes[20, 30] == CLASSES
    assert bes[20, 9] == OBJECT, "in the unknown ring"
    assert set(np.unique(bes)) == {BACKGROUND, OBJECT, CLASSES, FOREGROUND, UNKNOWN}
    sbe = boundary_label(seed, salient_squares(), RULES)
    assert sbe[20, 40] == FOREGROUND, "the windows overwrite: it is not salient"
    assert sbe[20, 29] == sbe[20, 30] == SALIENT, "the contour overwrites the windows"
    assert sbe[12, 20] == SALIENT
    assert sbe[36, 20] == BACKGROUND
    overwritten = (sbe != bes) & (sbe != SALIENT)
    assert (bes[overwritten] == UNKNOWN).all(), "not salient is background only where unknown"
    assert (sbe[overwritten] == BACKGROUND).all()
    assert overwritten.any()


@pytest.mark.parametrize("saliency", [None, salient_squares(), 0 * salient_squares()])
@pytest.mark.parametrize("classes", [(1, 2), (3, 80), (5, 5)])
def test_labels_equal_the_plain_ones(saliency: np.ndarray | None, classes: tuple) -> None:
    seed = squares(*classes)
    found = boundary_label(seed, saliency, RULES)
    np.testing.assert_array_equal(found, plain_label(seed, saliency, 80))


@pytest.mark.parametrize("size", [(23, 17), (9, 31), (5, 4), (1, 1)])
@pytest.mark.parametrize("num_classes", [1, 3, 80])
def test_labels_of_noise_equal_the_plain_ones(size: tuple[int, int], num_classes: int) -> None:
    """Blocks, so that every rule applies somewhere; the saliency is soft."""
    rng = np.random.default_rng(num_classes)
    blocks = rng.choice([0, 0, 1, num_classes, num_classes // 2, UNKNOWN], (4, 4)).astype(np.uint8)
    seed = np.kron(blocks, np.ones((7, 9), np.uint8))[: size[0], : size[1]]
    saliency = np.kron(rng.integers(0, 5, (5, 5)), np.ones((6, 7)))[: size[0], : size[1]] / 8
    for map_ in (None, saliency.astype(np.float32)):
        found = boundary_label(seed, map_, RULES)
        np.testing.assert_array_equal(found, plain_label(seed, map_, num_classes))


def test_no_saliency_is_no_division_by_zero() -> None:
    with np.errstate(all="raise"):
        label = boundary_label(squares(), 0 * salient_squares(), RULES)
    bes = boundary_label(squares(), None, RULES)
    np.testing.assert_array_equal(label, np.where(bes == UNKNOWN, BACKGROUND, bes))
    assert contour(np.full((4, 5), 0.3, np.float32)).max() == 0


def test_an_image_without_a_class_and_one_of_80() -> None:
    nothing = np.zeros((20, 30), np.uint8)
    assert (boundary_label(nothing, None, RULES) == BACKGROUND).all()
    unknown = nothing + np.uint8(UNKNOWN)
    assert (boundary_label(unknown, None, RULES) == UNKNOWN).all()
    every = np.repeat(np.arange(1, 81, dtype=np.uint8)[None], 20, 0).repeat(6, 1)
    np.testing.assert_array_equal(boundary_label(every, None, RULES), plain_label(every, None, 80))


def test_the_contour_lies_on_both_sides_of_a_step() -> None:
    step = np.zeros((6, 8), np.float32)
    step[:, 4:] = 0.25
    found = contour(step)
    assert (found[:, 3:5] == 4).all(), "over the maximum"
    assert found[:, [0, 1, 2, 5, 6, 7]].max() == 0, "nothing at the border"


def test_windows_end_at_the_border() -> None:
    ones = np.ones((1, 5, 20), bool)
    assert count_in_windows(ones, 3)[0, 0].tolist() == [4, *[6] * 18, 4]
    assert count_in_windows(ones, 13)[0, 2, 10] == 5 * 13


@pytest.mark.parametrize("wrong", [{"window": 12}])
def test_an_even_window_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="odd"):
        dataclasses.replace(RULES, **wrong)


def test_labels_of_the_released_code_are_read(tmp_path: Path) -> None:
    stored = np.array([[0, 50, 100, 150, 200, 250, 255]], np.uint8)
    save_mask(tmp_path / "a.png", stored)
    meaning = [BACKGROUND, FOREGROUND, CLASSES, OBJECT, UNKNOWN, SALIENT, UNKNOWN]
    assert load_boundary(tmp_path / "a.png")[0].tolist() == meaning
    save_mask(tmp_path / "a.png", np.array([meaning], np.uint8))
    assert load_boundary(tmp_path / "a.png")[0].tolist() == meaning
    save_mask(tmp_path / "a.png", stored + np.uint8(1))
    with pytest.raises(ValueError, match=r"a\.png has the value 51"):
        load_boundary(tmp_path / "a.png")


@pytest.fixture
def seeds(folder_dataset: Path) -> Path:
    """The ground truth as seeds, with unknown pixels at the left."""
    for path in (folder_dataset / "masks").glob("*.png"):
        mask = load_mask(path)
        mask[:, :5] = UNKNOWN
        save_mask(folder_dataset.parent / "seed" / path.name, mask)
    return folder_dataset.parent / "seed"


def labels(seeds: Path, out: Path, *flags: object) -> Result:
    base = ["--dataset", "folder", "--root", seeds.parent / "dataset", "--workers", 1]
    return run("data/boundary.py", *base, "--seed-dir", seeds, "--out", out, *flags)


def test_one_file_per_image_with_and_without_saliency(seeds: Path, tmp_path: Path) -> None:
    for flags, name in (((), "bes"), (("--saliency",), "sbe")):
        out = tmp_path / name
        result = labels(seeds, out, *flags)
        assert result.returncode == 0, result.stderr
        assert "8 boundary labels written, 0 were there" in result.stdout
        for image_id in FOLDER_IMAGES:
            saliency = None
            if flags:
                path = seeds.parent / "dataset" / "saliency" / f"{image_id}.png"
                saliency = np.asarray(Image.open(path), np.float32) / 255
            expected = boundary_label(load_mask(seeds / f"{image_id}.png"), saliency, RULES)
            np.testing.assert_array_equal(load_boundary(out / f"{image_id}.png"), expected)
    note = json.loads((tmp_path / "bes" / "made_from.json").read_text())
    assert note["rules"] == {"window": 13, "theta_s": 0.3, "theta_d": 0.1}
    assert note["saliency"] is None
    assert "tau_sobel" in json.loads((tmp_path / "sbe" / "made_from.json").read_text())["rules"]


def test_it_goes_on_where_it_was(seeds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels(seeds, out)
    broken, missing, old, *kept = sorted(out.glob("*.png"))
    times = [path.stat().st_mtime_ns for path in kept]
    broken.write_bytes(broken.read_bytes()[:60])
    missing.unlink()
    os.utime(old, (1, 1))  # older than its seed
    result = labels(seeds, out)
    assert "3 boundary labels written, 5 were there" in result.stdout, result.stderr
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert_refused(labels(seeds, out, "--window", 11), "rules", "--out")
    assert_refused(labels(seeds, out, "--saliency"), "saliency", "--out")


def test_labels_of_other_seeds_or_saliency_do_not_mix(seeds: Path, tmp_path: Path) -> None:
    """Whatever the dates of the files are."""
    assert labels(seeds, tmp_path / "out", "--saliency").returncode == 0
    maps = {"seeds": seeds, "saliency": seeds.parent / "dataset" / "saliency"}
    for what, folder in maps.items():
        path = folder / "a1.png"
        before = path.read_bytes()
        Image.fromarray(np.array(Image.open(path))[::-1]).save(path)
        os.utime(path, (1, 1))
        refused = labels(seeds, tmp_path / "out", "--saliency")
        assert_refused(refused, f"made with another {what} (")
        path.write_bytes(before)
    assert labels(seeds, tmp_path / "out", "--saliency").returncode == 0


def test_refusals(seeds: Path, tmp_path: Path) -> None:
    assert_refused(labels(seeds, seeds), "folder of the seeds")
    assert_refused(labels(seeds, tmp_path / "o", "--window", 4), "--window 4", "odd")
    (seeds / "a1.png").unlink()
    assert_refused(labels(seeds, tmp_path / "o"), "a1", "crf_postprocess.py", "--seeds")
    save_mask(seeds / "a1.png", np.zeros((3, 5), np.uint8))
    assert_refused(labels(seeds, tmp_path / "o"), "a1.png", "5x3")
    save_mask(seeds / "a1.png", np.full((64, 80), 4, np.uint8))
    assert_refused(labels(seeds, tmp_path / "p"), "a1.png", "class 4")
    (seeds.parent / "dataset" / "saliency" / "d6.png").unlink()
    assert_refused(labels(seeds, tmp_path / "s", "--saliency"), "d6", "--saliency-root")


def test_seeds_and_boundary_labels_do_not_pass_for_each_other(seeds, tmp_path, capsys) -> None:
    """With few classes the values of one are values of the other; the folder's note tells."""
    assert labels(seeds, tmp_path / "boundary").returncode == 0
    given = {"boundary": tmp_path / "boundary", "seed": seeds, "mask": seeds}
    for key, folder in given.items():
        PreviousOutputs({key: folder}).require((key,), FOLDER_IMAGES)
    assert not capsys.readouterr().err
    note = {"preset": "label50", "seed": [0.3, 0.07]}
    (seeds / "crf.json").write_text(json.dumps(note))
    for key in given:
        other = seeds if key == "boundary" else tmp_path / "boundary"
        with pytest.raises(ValueError, match=f"{other.name} has .*, not .*: give the folder"):
            PreviousOutputs({key: other}).require((key,), FOLDER_IMAGES)
    again = labels(tmp_path / "boundary", tmp_path / "o")
    assert_refused(again, "has boundary labels, not seeds", "crf_postprocess.py")


def test_labels_without_the_inside_of_an_object_are_warned_about(seeds, tmp_path, capsys) -> None:
    """Such are masks of few classes whose folder has no note, and labels of empty seeds."""
    words = f"in {seeds} have no pixel inside an object"
    PreviousOutputs({"boundary": seeds}).require(("boundary",), FOLDER_IMAGES)
    assert words in capsys.readouterr().err
    for path in seeds.glob("*.png"):
        save_mask(path, np.zeros_like(load_mask(path)))
    result = labels(seeds, tmp_path / "empty")
    assert f"warning: the seeds in {seeds} have no pixel of a class" in result.stderr
    PreviousOutputs({"boundary": tmp_path / "empty"}).require(("boundary",), FOLDER_IMAGES)
    assert words.replace(str(seeds), str(tmp_path / "empty")) in capsys.readouterr().err
