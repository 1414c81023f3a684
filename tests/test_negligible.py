"""Labels of negligible probability are left out of a CRF, and that changes no clear pixel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_crf import scene

from tool.crf import jobs
from tool.crf.dense import PRESETS, DenseCRF, Preset, label_unary, score_unary
from tool.crf.jobs import NEGLIGIBLE, ROW_SUM, mask_task, relevant_labels, solve
from tool.formats.cam import Cam

ON_SCORES = sorted(name for name, preset in PRESETS.items() if not preset.from_labels)
CLEAR = 0.1  # between the two best marginals of a pixel
SIZE = (40, 56)


def noise(seed: int = 0) -> np.ndarray:
    """A photograph without any two equal neighbours."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def random_scores(labels: int, seed: int, spread: float) -> np.ndarray:
    """Probabilities of a network without any idea: a softmax of blocks of noise."""
    rng = np.random.default_rng(seed)
    likely = rng.random((labels, 1, 1)) * 10
    coarse = spread * rng.standard_normal((labels, 5, 7)) + likely
    logit = np.kron(coarse, np.ones((1, 8, 8)))
    prob = np.exp(logit - logit.max(0))
    return (prob / prob.sum(0)).astype(np.float32)


def scene_scores(labels: int, leak: float) -> np.ndarray:
    """Probabilities of a trained network: the square's class, soft edges, a leak to the others."""
    _, _, cam = scene(SIZE)
    score = np.full((labels, *SIZE), 1e-7, np.float32)
    score[1:] += leak * np.random.default_rng(1).random((labels - 1, *SIZE)) ** 8
    score[7] += cam.cam[0]
    score[0] += 1 - cam.cam[0]
    return score / score.sum(0)


def solved(image: np.ndarray, score: np.ndarray, preset: Preset, backend: str) -> np.ndarray:
    """The mask of a network's probabilities, background first."""
    cam = Cam(np.arange(len(score), dtype=np.uint8), score)
    return solve(image, mask_task(image, cam, preset, alpha=8), preset.crf, backend=backend)


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_row_sums_of_the_kernels_are_below_their_bound(name: str, backend: str) -> None:
    """One step on constant marginals (3/4, 1/4) tells them: it adds half of each row's sum."""
    crf = dataclasses.replace(PRESETS[name].crf, iterations=1)
    unary = np.zeros((2, *SIZE), np.float32)
    unary[1] = np.log(3)
    stripes = np.tile(np.array([0, 255], np.uint8)[:, None, None], (SIZE[0] // 2, SIZE[1], 3))
    lonely = np.full((*SIZE, 3), 90, np.uint8)
    lonely[20, 28] = 90 + np.array([13, 26, 39])
    for image in (scene(SIZE)[0], noise(), stripes, lonely):
        prob = crf(image, unary, backend=backend)
        row_sum = 2 * (np.log(prob[0]) - np.log(prob[1]) - np.log(3))
        assert row_sum.max() < 0.75 * ROW_SUM * (crf.gaussian_compat + crf.bilateral_compat)


@pytest.mark.parametrize("name", ON_SCORES)
@pytest.mark.parametrize("labels", [3, 21, 81])
def test_labels_left_out_would_never_have_won(name: str, labels: int) -> None:
    crf = PRESETS[name].crf
    left_out = 0
    for image, score in (
        (scene(SIZE)[0], scene_scores(max(labels, 8), 1e-3)),
        (scene(SIZE)[0], scene_scores(max(labels, 8), 0.0)),
        *((noise(seed), random_scores(labels, seed, 1.0)) for seed in range(3)),
    ):
        unary = score_unary(score)
        kept = relevant_labels(unary, crf)
        assert (np.diff(kept) > 0).all()
        others = np.setdiff1d(np.arange(len(unary)), kept)
        left_out += len(others)
        for iterations in (1, 2, crf.iterations) if len(others) else ():
            full = dataclasses.replace(crf, iterations=iterations)(image, unary)
            assert full[others].sum(0).max() <= NEGLIGIBLE
            assert np.isin(full.argmax(0), kept).all()
    assert left_out or labels == 3


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("name", ON_SCORES)
def test_clear_pixels_are_those_of_all_labels(name: str, backend: str) -> None:
    preset, fewer = PRESETS[name], 0
    scenes = [(scene(SIZE)[0], scene_scores(21, leak)) for leak in (0.0, 1e-3, 3e-3)]
    for image, score in (*scenes, *((noise(s), random_scores(21, s, 1.0)) for s in range(3))):
        unary = score_unary(score)
        fewer += len(relevant_labels(unary, preset.crf)) < 21
        full = preset.crf(image, unary, backend=backend)
        second, best = np.partition(full, -2, axis=0)[-2:]
        differ = solved(image, score, preset, backend) != full.argmax(0)
        assert not (differ & (best - second > CLEAR)).any()
        assert differ.mean() < 0.002
    assert fewer >= 3


def test_what_matters_stays() -> None:
    crf = PRESETS["dlv2"].crf
    everywhere = np.full((5, *SIZE), 0.2, np.float32)
    assert relevant_labels(score_unary(everywhere), crf).tolist() == [0, 1, 2, 3, 4]
    sure = np.zeros((5, *SIZE), np.float32)
    sure[3] = 1
    assert relevant_labels(score_unary(sure), crf).tolist() == [3]
    sure[1, 7, 9] = 0.01  # one pixel is enough
    assert relevant_labels(score_unary(sure), crf).tolist() == [1, 3]
    hard = label_unary(sure.argmax(0), n_labels=5, gt_prob=0.7)
    assert len(relevant_labels(hard, PRESETS["aff80"].crf)) == 5, "the others share 0.3"
    one = relevant_labels(np.zeros((1, *SIZE), np.float32), crf)
    assert one.tolist() == [0]


def test_labels_count_together() -> None:
    """Each of 80 is negligible, all of them are not; the least likely ones go first."""
    crf = PRESETS["dlv2"].crf
    score = np.full((81, *SIZE), NEGLIGIBLE / 40, np.float32)
    score[1:11] *= 1.5
    score[0] = 1 - score[1:].sum(0)
    kept = relevant_labels(score_unary(score), crf).tolist()
    assert kept[0] == 0
    assert 81 - 45 < len(kept) < 81 - 30
    assert set(range(1, 11)) <= set(kept)


def test_stronger_kernels_leave_out_less() -> None:
    score = np.full((2, *SIZE), 0.9 * NEGLIGIBLE, np.float32)
    score[0] = 1 - score[1]
    strong = DenseCRF(3, 30, 80, 13, 30, 10)
    assert relevant_labels(score_unary(score), PRESETS["dlv2"].crf).tolist() == [0]
    assert relevant_labels(score_unary(score), strong).tolist() == [0, 1]


def test_the_crf_gets_the_labels_that_matter_and_the_mask_their_values() -> None:
    image, truth, _ = scene(SIZE)
    score = scene_scores(21, 0.0)
    task = mask_task(image, Cam(np.arange(21, dtype=np.uint8), score), PRESETS["dlv2"], alpha=8)
    assert [unary.shape for unary in task.unaries] == [(2, *SIZE)]
    mask = solve(image, task, PRESETS["dlv2"].crf)
    assert set(np.unique(mask)) == {0, 7}
    assert ((mask == 7) & (truth == 7)).sum() > 0.9 * (truth == 7).sum()


def test_one_label_needs_no_crf_and_the_background_may_go_too() -> None:
    image = noise()
    score = np.zeros((3, *SIZE), np.float32)
    score[2] = 1
    cam = Cam(np.array([0, 4, 9], np.uint8), score)
    task = mask_task(image, cam, PRESETS["dlv2"], alpha=8)
    assert task.unaries == []
    mask = task.finish([])
    assert mask.dtype == np.uint8
    assert (mask == 9).all()


def test_the_few_classes_of_a_cam_give_the_bytes_of_all_labels(monkeypatch) -> None:
    image, _, cam = scene(SIZE)
    pruned = solve(image, mask_task(image, cam, PRESETS["psa80"], alpha=8), PRESETS["psa80"].crf)
    monkeypatch.setattr(jobs, "relevant_labels", lambda unary, crf: np.arange(len(unary)))
    full = solve(image, mask_task(image, cam, PRESETS["psa80"], alpha=8), PRESETS["psa80"].crf)
    np.testing.assert_array_equal(pruned, full)
