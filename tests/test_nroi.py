"""k-means against a reference, its corner cases, and the bank as a ring buffer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from network.contrast.nroi import NROIBank, kmeans
from tool.progress import Progress

STEP = Progress(step=1, steps=10, seed=2)


def lloyd(points: Tensor, centroid: Tensor, iterations: int) -> Tensor:
    """k-means of one image in loops; clusters must not empty."""
    for _ in range(iterations):
        owner = torch.stack([(points - c).norm(dim=1) for c in centroid]).argmin(dim=0)
        centroid = torch.stack([points[owner == k].mean(dim=0) for k in range(len(centroid))])
    return centroid


def inertia(points: Tensor, centroid: Tensor) -> float:
    return float(torch.cdist(points, centroid).amin(dim=1).square().sum())


@pytest.fixture
def blobs() -> tuple[Tensor, Tensor, Tensor]:
    """Features (2, 60, 4) around three places, members (2, 60) and priorities."""
    generator = torch.Generator().manual_seed(0)
    centre = 4 * torch.randn(3, 4, generator=generator)
    noise = torch.randn(2, 60, 4, generator=generator)
    feature = centre[torch.arange(60) % 3] + noise
    member = torch.rand(2, 60, generator=generator) < 0.7
    return feature, member, torch.rand(2, 60, generator=generator)


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_kmeans_equals_a_loop_over_images_and_clusters(blobs, iterations: int) -> None:
    feature, member, priority = blobs
    centroid, valid = kmeans(feature, member, priority, clusters=4, iterations=iterations)
    assert valid.all()
    for image in range(2):
        points = feature[image][member[image]]
        seeds = priority[image][member[image]].argsort(descending=True)[:4]
        expected = lloyd(points, points[seeds], iterations)
        assert torch.allclose(centroid[image], expected, atol=1e-4)


def test_kmeans_lowers_the_distance_and_is_determined_by_its_priorities(blobs) -> None:
    feature, member, priority = blobs
    points = feature[0][member[0]]
    values = [
        inertia(points, kmeans(feature, member, priority, clusters=4, iterations=n)[0][0])
        for n in (0, 1, 2, 10)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8 * values[0]
    torch.manual_seed(0)
    one = kmeans(feature, member, priority, clusters=4, iterations=10)[0]
    torch.manual_seed(1)
    assert torch.equal(kmeans(feature, member, priority, clusters=4, iterations=10)[0], one)
    assert not torch.equal(kmeans(feature, member, 1 - priority, clusters=4, iterations=0)[0], one)


def test_cells_that_are_no_members_do_not_count(blobs) -> None:
    feature, member, priority = blobs
    other = torch.where(member[:, :, None], feature, 1e3)
    one, two = (kmeans(f, member, priority, clusters=4, iterations=5)[0] for f in (feature, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_as_many_members_as_clusters_or_fewer_are_given_themselves(count: int) -> None:
    feature = torch.randn(1, 20, 4)
    feature[0, 1] = feature[0, 0]  # two cells that look the same stay two
    member = torch.arange(20)[None] < count
    centroid, valid = kmeans(feature, member, torch.rand(1, 20), clusters=8, iterations=5)
    assert valid.sum() == count
    assert sorted(centroid[0][valid[0]].tolist()) == sorted(feature[0, :count].tolist())
    assert centroid.isfinite().all()


def test_an_image_smaller_than_the_clusters() -> None:
    feature = torch.randn(2, 5, 4)
    centroid, valid = kmeans(
        feature, torch.ones(2, 5, dtype=torch.bool), torch.rand(2, 5), clusters=8, iterations=3
    )
    assert centroid.shape == (2, 5, 4)
    assert valid.all()


def test_an_empty_cluster_takes_the_farthest_member() -> None:
    # both seeds are the same point: the second cluster gets nobody
    feature = torch.tensor([[[0.0], [0.0], [0.1], [9.0]]])
    priority = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    member = torch.ones(1, 4, dtype=torch.bool)
    first, _ = kmeans(feature, member, priority, clusters=2, iterations=1)
    assert sorted(first.flatten().tolist()) == pytest.approx([9.1 / 4, 9.0])
    centroid, _ = kmeans(feature, member, priority, clusters=2, iterations=5)
    assert sorted(centroid.flatten().tolist()) == pytest.approx([0.1 / 3, 9.0])


def test_empty_clusters_take_different_members() -> None:
    feature = torch.tensor([[[0.0], [0.0], [0.0], [5.0], [9.0]]])
    priority = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.2]])
    member = torch.ones(1, 5, dtype=torch.bool)
    centroid, _ = kmeans(feature, member, priority, clusters=3, iterations=1)
    assert sorted(centroid.flatten().tolist()) == pytest.approx([14 / 5, 5.0, 9.0])


def rows(first: int, count: int) -> Tensor:
    """(count, 2) rows that say their number, from 1 on."""
    return torch.arange(first, first + count).float()[:, None].expand(-1, 2) + 1


def held(bank: NROIBank) -> set[int]:
    return {int(value) for value in bank.storage[: int(bank.filled), 0]}


def everything(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


def test_the_bank_is_first_in_first_out_and_wraps_around() -> None:
    bank = NROIBank(5, 2)
    assert held(bank) == set()
    bank.enqueue(rows(0, 3), everything(3))
    assert held(bank) == {1, 2, 3}
    bank.enqueue(rows(3, 4), everything(4))
    assert held(bank) == {3, 4, 5, 6, 7}
    bank.enqueue(rows(7, 1), everything(1))
    assert held(bank) == {4, 5, 6, 7, 8}
    assert int(bank.written) == 8
    assert bank.storage[-1].abs().max() == 0


def test_the_bank_takes_the_valid_rows_only() -> None:
    bank = NROIBank(4, 2)
    bank.enqueue(rows(0, 5), torch.tensor([True, False, True, False, True]))
    assert held(bank) == {1, 3, 5}
    bank.enqueue(rows(5, 2), torch.tensor([False, False]))
    assert held(bank) == {1, 3, 5}
    assert int(bank.filled) == 3


def test_more_rows_than_the_bank_holds_leave_the_last() -> None:
    bank = NROIBank(3, 2)
    bank.enqueue(rows(0, 1), everything(1))
    bank.enqueue(rows(1, 8), everything(8))
    assert held(bank) == {7, 8, 9}
    bank.enqueue(rows(9, 1), everything(1))
    assert held(bank) == {8, 9, 10}


def test_no_row_is_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator would leave either of two writes."""
    written, copy = [], torch.Tensor.index_copy_

    def spy(tensor: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
        written.extend(i for i in index.tolist() if i < len(tensor) - 1)  # the last takes the rest
        return copy(tensor, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_copy_", spy)
    NROIBank(3, 2).enqueue(rows(0, 8), everything(8))
    assert sorted(written) == [0, 1, 2]


def test_a_bank_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        NROIBank(0, 8)


def test_samples_come_from_the_filled_part_uniformly() -> None:
    bank = NROIBank(100, 2)
    assert bank.sample((3, 4), STEP, "n").abs().max() == 0  # empty: zeros
    bank.enqueue(rows(0, 4), everything(4))
    drawn = bank.sample((2, 5000), STEP, "n")
    assert drawn.shape == (2, 5000, 2)
    share = torch.bincount(drawn[..., 0].long().flatten(), minlength=5) / 10_000
    assert share.tolist() == pytest.approx([0, 0.25, 0.25, 0.25, 0.25], abs=0.02)
    assert torch.equal(bank.sample((2, 5000), STEP, "n"), drawn)
    second = bank.sample((2, 5000), STEP, "n", rows=torch.tensor([1]))
    assert torch.equal(second, drawn[1:])
    later = bank.sample((2, 5000), dataclasses.replace(STEP, step=2), "n")
    assert not torch.equal(later, drawn)


def test_the_bank_is_state() -> None:
    bank = NROIBank(6, 2)
    bank.enqueue(rows(0, 4), everything(4))
    other = NROIBank(6, 2)
    other.load_state_dict(bank.state_dict())
    for b in (bank, other):
        b.enqueue(rows(4, 4), everything(4))
    assert torch.equal(bank.storage, other.storage)
    assert torch.equal(bank.written, other.written)
