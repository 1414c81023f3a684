"""The CRF, its unaries, masks and seeds."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tool.crf.dense import PRESETS, DenseCRF, Preset, label_unary, preset_of, score_unary
from tool.crf.jobs import mask_task, seed_task, solve, with_background
from tool.formats.cam import Cam, cam_mask

DATA = Path(os.environ.get("WSSS_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
PSA = preset_of("psa80", 5)


def scene(size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray, Cam]:
    """A red square on green, its mask of class 7, and a CAM that is a blurred, shifted blob."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    inside = (abs(y - height // 2) < 10) & (abs(x - width // 2) < 12)
    rng = np.random.default_rng(0)
    image = np.where(inside[..., None], [200, 40, 40], [40, 150, 60]) + rng.integers(
        -5, 6, (*size, 3)
    )
    distance = np.hypot(y - height // 2 - 2, x - width // 2 - 3)
    maps = np.stack([np.exp(-((distance / 14) ** 2)), 0.1 * np.exp(-((distance / 30) ** 2))])
    cam = Cam(np.array([7, 12], np.uint8), maps.astype(np.float32))
    return image.astype(np.uint8), np.where(inside, 7, 0).astype(np.uint8), cam


def crf_mask(image: np.ndarray, cam: Cam, preset: Preset, *, alpha: float) -> np.ndarray:
    return solve(image, mask_task(image, cam, preset, alpha=alpha), preset.crf)


def crf_seed(image: np.ndarray, cam: Cam, preset: Preset, **settings: float) -> np.ndarray:
    return solve(image, seed_task(image, cam, preset, **settings), preset.crf)


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return ((mask == 7) & (truth == 7)).sum() / ((mask == 7) | (truth == 7)).sum()


def test_the_presets_are_the_table() -> None:
    """Gaussian sxy, compat; bilateral sxy, srgb, compat; iterations; on hard labels."""
    table = {
        "label50": (3, 3, 50, 5, 10, 10, True),
        "label20": (3, 3, 20, 5, 10, 10, True),
        "fbr80": (3, 3, 80, 13, 10, 5, False),
        "psa80": (3, 3, 80, 13, 10, 10, False),
        "aff80": (3, 3, 80, 13, 10, 10, True),
        "seam32": (3, 3, 32, 13, 10, 1, False),
        "dlv2": (1, 3, 67, 3, 4, 10, False),
        "mct83": (4, 3, 83, 5, 3, 10, False),
    }
    assert {
        name: (*vars(preset.crf).values(), preset.from_labels) for name, preset in PRESETS.items()
    } == table
    assert preset_of("psa80", 5) == PRESETS["fbr80"]
    assert PRESETS["psa80"].crf.iterations == 10
    with pytest.raises(ValueError, match="label50"):
        preset_of("psa81")


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_marginals_are_probabilities_and_arguments_stay(labels: int) -> None:
    image, _, _ = scene()
    unary = np.random.default_rng(0).random((labels, 48, 64)).astype(np.float32)
    image.flags.writeable = False
    unary.flags.writeable = False
    prob = PSA.crf(image, unary)
    assert prob.shape == unary.shape
    assert prob.dtype == np.float32
    np.testing.assert_allclose(prob.sum(0), 1, atol=1e-4)


def test_views_and_small_images() -> None:
    image, _, _ = scene()
    unary = np.random.default_rng(0).random((3, 48, 64)).astype(np.float32)
    flipped = PSA.crf(image[:, ::-1], unary[:, :, ::-1])
    copied = PSA.crf(image[:, ::-1].copy(), unary[:, :, ::-1].copy())
    np.testing.assert_array_equal(flipped, copied)
    one = PSA.crf(np.zeros((1, 1, 3), np.uint8), np.zeros((2, 1, 1), np.float32))
    assert one.shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("image", "unary"),
    [
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 5, 4), np.float32)),
        (np.zeros((4, 5, 3), np.float32), np.zeros((2, 4, 5), np.float32)),
        (np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5), np.float32)),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.float32)),
    ],
)
def test_what_does_not_fit_is_an_error(image: np.ndarray, unary: np.ndarray) -> None:
    with pytest.raises(ValueError, match="image"):
        PSA.crf(image, unary)


def test_every_parameter_matters() -> None:
    image, _, cam = scene()
    unary = score_unary(with_background(cam, 8))
    base = PSA.crf(image, unary)
    for name, value in vars(PSA.crf).items():
        other = DenseCRF(**{**vars(PSA.crf), name: value * 3})(image, unary)
        assert np.abs(other - base).max() > 1e-4, name


def test_score_unary_is_minus_log_of_clipped_scores() -> None:
    unary = score_unary(np.array([0.0, 1e-7, 0.5, 1.0, 1.5], np.float32))
    np.testing.assert_allclose(unary, [-math.log(1e-5)] * 2 + [math.log(2), 0, 0], rtol=1e-5)


@pytest.mark.parametrize(("n", "gap"), [(2, 0.85), (3, 1.54), (21, 3.84), (91, 5.35)])
def test_label_unary_has_the_energy_gap_of_its_number_of_labels(n: int, gap: float) -> None:
    labels = np.array([[0, 1, 1]])
    unary = label_unary(labels, n_labels=n, gt_prob=0.7)
    assert unary.shape == (n, 1, 3)
    assert unary[0, 0, 1] - unary[1, 0, 1] == pytest.approx(gap, abs=0.01)
    np.testing.assert_array_equal(unary.argmin(0), labels)
    np.testing.assert_allclose(np.exp(-unary).sum(0), 1, rtol=1e-5)


def test_label_unary_of_one_label_is_finite() -> None:
    assert not label_unary(np.zeros((2, 3), int), n_labels=1, gt_prob=0.7).any()


def test_background_is_a_power_of_what_is_left_or_the_row_of_the_cam() -> None:
    maps = np.array([[[0.0, 0.5, 1.0, 1.2]], [[0.0, 0.2, 0.1, 0.0]]], np.float32)
    score = with_background(Cam(np.array([1, 2], np.uint8), maps), 8)
    np.testing.assert_allclose(score[0], [[1, 0.5**8, 0, 0]])
    np.testing.assert_array_equal(score[1:], maps)
    own = with_background(Cam(np.array([0, 2], np.uint8), maps), 8)
    np.testing.assert_array_equal(own, maps)


@pytest.mark.parametrize("name", PRESETS)
def test_the_mask_follows_the_image(name: str) -> None:
    image, truth, cam = scene()
    before = cam.cam.copy()
    mask = crf_mask(image, cam, preset_of(name), alpha=8)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 7, 12}
    np.testing.assert_array_equal(cam.cam, before)
    if name == "psa80":
        assert iou(mask, truth) > 0.97 > iou(cam_mask(cam, 0.22), truth)


def test_the_mask_uses_alpha_and_the_background_row() -> None:
    image, _, cam = scene()
    areas = [(crf_mask(image, cam, PSA, alpha=alpha) > 0).sum() for alpha in (0.2, 8, 60)]
    assert areas == sorted(areas)
    assert areas[0] < areas[2]
    for level, expected in ((1.0, False), (1e-5, True)):
        row = np.full((1, 48, 64), level, np.float32)
        own = Cam(np.array([0, 7, 12], np.uint8), np.concatenate([row, cam.cam * 0.9]))
        assert (crf_mask(image, own, PSA, alpha=8) > 0).any() == expected


@pytest.mark.parametrize("index", [[], [0]])
def test_without_a_class_everything_is_background(index: list[int]) -> None:
    image, _, _ = scene()
    cam = Cam(np.array(index, np.uint8), np.ones((len(index), 48, 64), np.float32))
    assert not crf_mask(image, cam, PSA, alpha=8).any()
    assert not crf_seed(image, cam, PRESETS["label50"], fg=0.3, bg=0.05, n_labels=1).any()


def test_an_all_zero_cam_is_background() -> None:
    image, _, _ = scene()
    cam = Cam(np.array([3], np.uint8), np.zeros((1, 48, 64), np.float32))
    assert not crf_mask(image, cam, PSA, alpha=8).any()


def test_another_size_is_an_error() -> None:
    image, _, cam = scene()
    with pytest.raises(ValueError, match="image"):
        crf_mask(image[:-1], cam, PSA, alpha=8)
    with pytest.raises(ValueError, match="image"):
        crf_seed(image[:-1], cam, PRESETS["label50"], fg=0.3, bg=0.05, n_labels=3)


@pytest.mark.parametrize("n_labels", [3, 21])
def test_seeds_are_sure_where_both_labellings_agree(n_labels: int) -> None:
    """With kernels that weigh nothing the seed is the two thresholds alone."""
    image, _, cam = scene()
    idle = Preset(DenseCRF(1, 0, 1, 1, 0, 1), from_labels=True)
    seed = crf_seed(image, cam, idle, fg=0.6, bg=0.1, n_labels=n_labels)
    best = cam.cam.max(0)
    np.testing.assert_array_equal(seed == 7, best > 0.6)
    np.testing.assert_array_equal(seed == 0, best <= np.float32(0.1))
    np.testing.assert_array_equal(seed == 255, (best > np.float32(0.1)) & (best <= 0.6))
    real = crf_seed(image, cam, PRESETS["label50"], fg=0.6, bg=0.1, n_labels=n_labels)
    assert (real != seed).any()
    equal = crf_seed(image, cam, PRESETS["label50"], fg=0.3, bg=0.3, n_labels=n_labels)
    assert 255 not in equal


def test_seed_thresholds_are_factors_of_a_background_row() -> None:
    image, _, cam = scene()
    half = Cam(
        np.array([0, 7, 12], np.uint8),
        np.concatenate([np.full((1, 48, 64), 0.5, np.float32), cam.cam]),
    )
    settings = {"preset": PRESETS["label50"], "n_labels": 3}
    np.testing.assert_array_equal(
        crf_seed(image, half, fg=0.6, bg=0.2, **settings),
        crf_seed(image, cam, fg=0.3, bg=0.1, **settings),
    )


def test_a_photograph_at_full_size() -> None:
    folder = DATA / "voc_full"
    photographs = sorted(folder.glob("JPEGImages/*.jpg"))[:1]
    for path in photographs:
        image = np.asarray(Image.open(path).convert("RGB"))
        saliency = Image.open(folder / "saliency" / f"{path.stem}.png").convert("L")
        maps = np.asarray(saliency, np.float32)[None] / 255
        mask = crf_mask(image, Cam(np.array([5], np.uint8), maps), PSA, alpha=8)
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 5}
