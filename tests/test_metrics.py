"""Counts and scores against a plain count; the sweep against separate evaluations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tool.formats.cam import Cam, cam_mask
from tool.score.evaluation import Evaluation
from tool.score.metrics import (
    THRESHOLDS,
    Sweep,
    count_confusion,
    count_leak,
    scores_of,
    sweep_bin,
)


def plain_confusion(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for row, column in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if 255 not in (row, column):
            counts[row, column] += 1
    return counts


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 80, 254]))
@settings(max_examples=30, deadline=None)
def test_confusion_is_a_plain_count(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.array([*range(classes + 1), 255], np.uint8)
    truth, prediction = rng.choice(values, (2, 7, 9))
    counts = count_confusion(truth, prediction, classes)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, plain_confusion(truth, prediction, classes))


def test_scores_by_hand() -> None:
    """Class 2 is nowhere, class 3 only predicted, class 1 half found."""
    scores = scores_of(np.array([[6, 1, 0, 1], [2, 2, 0, 0], [0] * 4, [0] * 4]))
    np.testing.assert_allclose(scores.iou, [6 / 10, 2 / 5, np.nan, 0])
    np.testing.assert_allclose(scores.precision, [6 / 8, 2 / 3, np.nan, 0])
    np.testing.assert_allclose(scores.recall, [6 / 8, 2 / 4, np.nan, np.nan])
    assert scores.miou == pytest.approx((0.6 + 0.4 + 0) / 3)


def test_counts_do_not_overflow() -> None:
    """Counts beyond 2**31 and 2**53 neighbours stay integers."""
    big = np.array([[2**40, 0], [0, 2**40]])
    assert scores_of(big + big).miou == 1
    assert np.isnan(scores_of(np.zeros((3, 3), np.int64)).miou)


def test_sizes_that_differ_are_an_error() -> None:
    one, other = np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"is 3x4, .* is 4x3"):
        count_confusion(one, other, 2)
    with pytest.raises(ValueError, match=r"is 3x4, .* is 4x3"):
        count_leak(one, other, np.ones(2))


def edge_scores() -> np.ndarray:
    """Scores at, just below and just above every threshold, float16's neighbours, and extremes."""
    exact = THRESHOLDS.astype(np.float32)
    half = THRESHOLDS.astype(np.float16)
    steps = [np.nextafter(exact, np.float32(side)) for side in (-1, 2)]
    halves = [np.nextafter(half, np.float16(side)).astype(np.float32) for side in (-1, 2)]
    special = np.array([-np.inf, np.inf, -1, 0, -0.0, 1, 1e-30, 0.995, 2, 1e30], np.float32)
    return np.concatenate([exact, half.astype(np.float32), *steps, *halves, special])


def test_sweep_bin_counts_the_thresholds_below() -> None:
    score = np.concatenate([edge_scores(), np.random.default_rng(0).random(5000, np.float32)])
    above = np.stack([score > float(t) for t in THRESHOLDS])
    np.testing.assert_array_equal(sweep_bin(score), above.sum(0))
    assert (np.diff(above.astype(int), axis=0) <= 0).all()


def random_cam(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> Cam:
    present = int(rng.integers(0, min(classes, 4) + 1))
    index = np.sort(rng.choice(classes, present, replace=False) + 1).astype(np.uint8)
    pool = edge_scores()[np.isfinite(edge_scores())]
    maps = rng.random((present, *size)).astype(np.float16).astype(np.float32)
    ties = rng.random(maps.shape) < 0.5
    maps[ties] = rng.choice(pool, int(ties.sum()))
    if rng.random() < 0.3:
        index = np.concatenate([[0], index]).astype(np.uint8)
        maps = np.concatenate([rng.random((1, *size)).astype(np.float32), maps])
    return Cam(index, maps)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 80]))
@settings(max_examples=25, deadline=None)
def test_the_sweep_equals_separate_evaluations(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.array([0, *range(min(classes, 6) + 1), 255], np.uint8)
    images = [
        (rng.choice(values, (8, 9)), random_cam(rng, min(classes, 6), (8, 9))) for _ in range(3)
    ]
    swept = Evaluation(classes, 0.22, "background", Sweep.empty(classes))
    for truth, cam in images:
        swept.add(truth, cam)
    scores = swept.sweep.scores()
    assert len(scores) == 100
    for i in range(0, 100, 3):
        counts = sum(plain_confusion(t, cam_mask(c, i / 100), classes) for t, c in images)
        expected = scores_of(counts)
        assert scores[i].miou == expected.miou
        for name in ("iou", "precision", "recall"):
            np.testing.assert_array_equal(getattr(scores[i], name), getattr(expected, name))
    assert scores[22].miou == swept.scores().miou


def test_parts_of_a_sweep_add_up() -> None:
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 4, (6, 6)).astype(np.uint8), random_cam(rng, 3, (6, 6)))] * 2
    whole, first, second = (Evaluation(3, 0.3, "background", Sweep.empty(3)) for _ in range(3))
    for (truth, cam), part in zip(images, (first, second), strict=True):
        whole.add(truth, cam)
        part.add(truth, cam)
    first.sweep += second.sweep
    np.testing.assert_array_equal(first.sweep.histogram, whole.sweep.histogram)
    np.testing.assert_array_equal(first.sweep.true, whole.sweep.true)


def test_rules_for_a_predicted_255() -> None:
    truth = np.array([[0, 1, 1, 255, 0]], np.uint8)
    prediction = np.array([[255, 255, 1, 255, 0]], np.uint8)
    before = prediction.copy()
    background = Evaluation(1, 0.22, "background")
    assert background.add(truth, prediction)[0, :3].tolist() == [0, 0, 1]
    assert background.confusion.tolist() == [[2, 0], [1, 1]]
    assert background.unknown_pixels == 2
    ignore = Evaluation(1, 0.22, "ignore")
    ignore.add(truth, prediction)
    assert ignore.confusion.tolist() == [[1, 0], [0, 1]]
    assert ignore.unknown_pixels == 2
    with pytest.raises(ValueError, match="2 pixels are predicted 255"):
        Evaluation(1, 0.22, "error").add(truth, prediction)
    np.testing.assert_array_equal(prediction, before)


def test_an_empty_cam_without_a_size_is_all_background() -> None:
    evaluation = Evaluation(2, 0.22, "background", Sweep.empty(2))
    evaluation.add(
        np.array([[0, 1]], np.uint8), Cam(np.zeros(0, np.uint8), np.zeros((0, 0, 0), np.float32))
    )
    assert evaluation.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert evaluation.sweep.scores()[0].miou == evaluation.scores().miou


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_an_error(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Evaluation(2, threshold, "background")


def test_nothing_to_score_is_an_error() -> None:
    evaluation = Evaluation(2, 0.22, "background")
    evaluation.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match="no pixel"):
        evaluation.scores()


def test_leak_counts_context_labelled_as_its_own_object() -> None:
    context = np.array([[1, 1, 1, 2, 2, 0, 3, 255]], np.uint8)
    prediction = np.array([[1, 2, 0, 2, 2, 1, 3, 255]], np.uint8)
    present = np.array([1, 1, 0], np.float32)
    # Class 3 is not in the image, its context does not count; 1 labelled as 2 is no leak.
    assert count_leak(context, prediction, present).tolist() == [[3, 2, 0], [1, 2, 0]]
