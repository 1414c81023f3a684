"""Seeded dropout: a mask belongs to (seed, step, name, call), not to the generator or the rank."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from network.dropout import SeededDropout, begin_step
from tool.progress import Progress

STEP = Progress(step=3, steps=10, seed=5)
BATCH = torch.ones(4, 6, 5, 5)


def masks(progress: Progress, batch: Tensor = BATCH, *, channels: bool = False) -> list[Tensor]:
    """Two calls of one dropout in one step."""
    dropout = SeededDropout(0.5, channels=channels)
    dropout.begin(progress, "head")
    return [dropout(batch), dropout(batch)]


def test_it_keeps_the_mean_and_drops_the_share() -> None:
    dropout = SeededDropout(0.3, channels=False)
    dropout.begin(STEP, "a")
    feature = torch.full((2, 16, 40, 40), 2.0)
    result = dropout(feature)
    assert (result == 0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert result.max().item() == pytest.approx(2 / 0.7)
    assert result.mean().item() == pytest.approx(2, abs=0.05)
    assert feature.min() == feature.max() == 2


def test_channel_dropout_zeroes_whole_channels() -> None:
    per_channel = masks(STEP, torch.ones(8, 32, 3, 3), channels=True)[0].flatten(2)
    assert torch.equal(per_channel.amin(2), per_channel.amax(2))
    assert {0.0, 2.0} == set(per_channel.unique().tolist())
    assert not torch.equal(per_channel[0], per_channel[1])


def test_evaluation_is_the_identity() -> None:
    dropout = SeededDropout(0.5, channels=True).eval()
    assert dropout(BATCH) is BATCH


def test_the_global_generator_neither_matters_nor_moves() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = masks(STEP)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, masks(STEP), strict=True))


@pytest.mark.parametrize("other", [{"step": 4}, {"seed": 6}, {"micro": 1}])
def test_another_step_seed_or_micro_batch_draws_anew(other: dict[str, int]) -> None:
    assert not torch.equal(masks(STEP)[0], masks(dataclasses.replace(STEP, **other))[0])


def test_another_call_and_another_name_draw_anew() -> None:
    one, two = masks(STEP)
    assert not torch.equal(one, two)
    renamed = SeededDropout(0.5, channels=False)
    renamed.begin(STEP, "tail")
    assert not torch.equal(renamed(BATCH), one)


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_ranks_masks_are_slices_of_the_global_one(world_size: int, channels: bool) -> None:
    everyone = masks(STEP, channels=channels)
    share = len(BATCH) // world_size
    for rank in range(world_size):
        progress = dataclasses.replace(STEP, rank=rank, world_size=world_size)
        mine = masks(progress, BATCH[:share], channels=channels)
        for whole, part in zip(everyone, mine, strict=True):
            assert torch.equal(part, whole[rank * share : (rank + 1) * share])


def test_begin_step_reaches_every_dropout_under_its_own_name() -> None:
    net = nn.Sequential(
        SeededDropout(0.5, channels=False), nn.Sequential(SeededDropout(0.5, channels=False))
    )
    begin_step(net, STEP)
    one, two = net[0](BATCH), net[1][0](BATCH)
    assert not torch.equal(one, two)
    again = net[0](BATCH)
    assert not torch.equal(again, one)
    begin_step(net, STEP)
    assert torch.equal(net[0](BATCH), one)
