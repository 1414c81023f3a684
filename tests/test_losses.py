"""The hosts' losses on maps: closed forms, and channel 0 as the background everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from network import losses
from network.maps import at_cells, min_max, over_maximum, resize, resize_area


def maps(*channels: list[list[float]]) -> Tensor:
    """(1, C, h, w) from nested lists."""
    return torch.tensor(channels)[None]


LABEL = torch.tensor([[1.0, 0.0]])


def test_over_maximum_and_min_max_of_one_channel() -> None:
    feature = maps([[-1.0, 1.0], [2.0, 4.0]])
    assert over_maximum(feature)[0, 0].flatten().tolist() == pytest.approx(
        [0, 0.25, 0.5, 1], abs=1e-4
    )
    shifted = maps([[1.0, 1.0], [3.0, 5.0]])
    assert min_max(shifted)[0, 0].flatten().tolist() == pytest.approx([0, 0, 0.5, 1], abs=1e-4)
    assert min_max(torch.full((1, 1, 2, 2), 3.0)).abs().max() == 0


@pytest.mark.parametrize("function", [over_maximum, min_max])
def test_normalisations_treat_images_and_channels_apart(function) -> None:
    feature = torch.rand(3, 2, 4, 5) * torch.tensor([1.0, 10.0])[None, :, None, None]
    together = function(feature)
    for image in range(3):
        for channel in range(2):
            alone = function(feature[image : image + 1, channel : channel + 1])
            assert torch.equal(together[image, channel], alone[0, 0])


@pytest.mark.parametrize("function", [over_maximum, min_max])
def test_an_empty_map_stays_empty(function) -> None:
    feature = torch.zeros(2, 3, 4, 4, requires_grad=True)
    result = function(feature)
    result.sum().backward()
    assert result.abs().max() == 0
    assert feature.grad.isfinite().all()


def test_resize_area_averages_the_pixels_of_a_cell() -> None:
    fine = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_area(fine, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_classification_is_the_multi_label_soft_margin() -> None:
    logit, label = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    signed = [2.0, 1.0, 0.5]
    expected = sum(math.log1p(math.exp(-value)) for value in signed) / 3
    assert losses.classification(logit, label).item() == pytest.approx(expected, rel=1e-5)


def saliency_loss(
    prob: Tensor, saliency: Tensor, label: Tensor = LABEL, **settings: float
) -> Tensor:
    return losses.saliency_match(prob, label, saliency, **({"tau": 0.4, "lam": 0.5} | settings))


def test_saliency_match_is_zero_on_a_perfect_estimate() -> None:
    saliency = maps([[1.0, 0.0], [0.0, 0.0]])
    prob = torch.cat([1 - saliency, saliency, torch.zeros_like(saliency)], dim=1)
    assert saliency_loss(prob, saliency) == 0


def test_saliency_match_weighs_foreground_by_lambda() -> None:
    saliency = maps([[1.0, 1.0]])
    prob = maps([[0.1, 0.3]], [[0.6, 0.7]], [[0.3, 0.0]])
    for lam in (0.5, 0.9):
        estimate = [lam * f + (1 - lam) * (1 - b) for f, b in ((0.6, 0.1), (0.7, 0.3))]
        expected = sum((value - 1) ** 2 for value in estimate) / 2
        assert saliency_loss(prob, saliency, lam=lam).item() == pytest.approx(expected, rel=1e-5)


def test_a_class_off_the_salient_area_counts_as_background() -> None:
    saliency = maps([[1.0, 0.0, 0.0, 0.0]])
    foreground = maps([[0.9, 0.9, 0.9, 0.9]])  # a quarter of it is salient
    prob = torch.cat([1 - foreground, foreground, 0 * foreground], dim=1)
    # background + invalid foreground = 1 everywhere, foreground 0: the estimate is 0
    assert saliency_loss(prob, saliency, tau=0.4).item() == pytest.approx(0.25, rel=1e-5)
    valid = [(0.9 - 1) ** 2] + 3 * [0.9**2]
    assert saliency_loss(prob, saliency, tau=0.2).item() == pytest.approx(sum(valid) / 4, rel=1e-5)


def test_at_a_cold_start_the_saliency_pulls_the_present_class_up() -> None:
    prob = torch.full((1, 3, 2, 2), 1 / 3, requires_grad=True)  # rounds to 0 everywhere
    saliency_loss(prob, torch.ones(1, 1, 2, 2)).backward()
    background, present, absent = prob.grad[0].mean(dim=(1, 2))
    assert present < 0 < background
    assert absent == 0


def test_saliency_is_averaged_down_to_the_cells() -> None:
    fine = torch.zeros(1, 1, 6, 6)
    fine[..., :3, 0] = 1.0  # a third of the first cell, not its middle nor its whole
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0]])[None, None] / 3
    prob = torch.cat([1 - first, first, 0 * first], dim=1)
    assert saliency_loss(prob, fine).item() == pytest.approx(0, abs=1e-12)


def test_min_pool_is_the_mean_of_the_lowest_quarter() -> None:
    values = torch.arange(16.0).flip(0).view(1, 1, 4, 4)
    refined = torch.cat([torch.full_like(values, 50.0), values, values + 100], dim=1)
    assert losses.min_pool(refined, LABEL).item() == pytest.approx((0 + 1 + 2 + 3) / 4)
    both = torch.ones(1, 2)
    assert losses.min_pool(refined, both).item() == pytest.approx(100 + 1.5)
    assert losses.min_pool(-refined, LABEL) == 0
    assert losses.min_pool(refined[..., :1, :1], LABEL) == 15  # fewer than four cells: one


def test_equivariance_is_zero_for_two_sizes_of_one_map_and_looks_at_present_classes() -> None:
    torch.manual_seed(0)
    cam = torch.randn(2, 3, 8, 8)
    label = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    normal = resize(min_max(cam), (4, 4))
    stretched = min_max(normal)
    expected = ((normal - stretched)[:, 1:] * label[:, :, None, None]).abs().mean()
    assert losses.equivariance(cam, normal, label).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    changed = cam.clone()
    changed[0, 0], changed[0, 2], changed[1, 1] = 9.0, 9.0, 9.0  # background and absent classes
    assert losses.equivariance(changed, cam, label) == losses.equivariance(cam, cam, label) == 0


def test_one_hot_max_keeps_the_background_and_the_maximal_foreground_channel() -> None:
    feature = maps([[0.9, 0.1]], [[0.2, 0.4]], [[0.3, 0.1]])
    kept = losses.one_hot_max(feature)
    assert torch.equal(kept, maps([[0.9, 0.1]], [[0.0, 0.4]], [[0.3, 0.0]]))


def test_cross_refinement_takes_channel_0_as_the_background() -> None:
    cam = maps([[7.0, 7.0]], [[0.0, 2.0]], [[3.0, 1.0]])  # the raw background is not looked at
    perfect = maps([[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]])
    assert losses.cross_refinement(cam, perfect, LABEL).item() == pytest.approx(0, abs=1e-4)
    swapped = perfect[:, [1, 0, 2]]
    assert losses.cross_refinement(cam, swapped, LABEL).item() == pytest.approx(1, abs=1e-4)


def test_cross_refinement_is_a_mean_over_present_classes_and_background() -> None:
    torch.manual_seed(1)
    cam, refined = torch.randn(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    narrow = losses.cross_refinement(cam, refined, LABEL)
    more = torch.rand(1, 5, 4, 4)
    wide = losses.cross_refinement(
        torch.cat([cam, more], dim=1), torch.cat([refined, more], dim=1), torch.eye(7)[:1, :7]
    )
    assert wide.item() == pytest.approx(narrow.item(), rel=1e-5)  # absent classes do not dilute it


def test_cross_refinement_trains_the_refined_map_only() -> None:
    cam = torch.rand(1, 3, 4, 4, requires_grad=True)
    refined = torch.rand(1, 3, 4, 4, requires_grad=True)
    losses.cross_refinement(cam, refined, LABEL).backward()
    assert cam.grad is None
    assert refined.grad[:, :2].abs().max() > 0
    assert refined.grad[:, 2].abs().max() == 0


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_seeds_of_cells_are_those_of_pillows_nearest_resize(stride: int) -> None:
    seed = torch.randint(0, 256, (48, 64), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(seed.numpy().astype("uint8"))
    small = image.resize((64 // stride, 48 // stride), Image.Resampling.NEAREST)
    found = at_cells(seed[None], stride)
    assert found[0].tolist() == np.asarray(small).tolist()


def test_the_last_cell_of_a_seed_may_be_cut() -> None:
    seed = torch.arange(5)[None, None].expand(1, 1, 5)
    assert at_cells(seed, 4).tolist() == [[[2, 4]]]
