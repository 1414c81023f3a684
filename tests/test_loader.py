"""The loader: its order depends on the seed alone; a worker's error arrives as it was raised."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from data.catalog import Catalog, open_catalog
from data.dataset import InferDataset, TrainDataset
from data.loader import infer_loader, step_batches
from data.transforms import RandomLongSide
from tool.infer.scales import Views


class Keys(Dataset):
    """A dataset that returns its keys."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        epoch, index = key
        return {"image_id": f"{epoch}/{index}", "key": torch.tensor(key)}


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


@pytest.fixture
def dataset(catalog: Catalog) -> TrainDataset:
    inputs = ("image", "label", "saliency")
    ids = catalog.ids("train")
    resize = RandomLongSide(32, 64)
    return TrainDataset(catalog, ids, inputs=inputs, crop=32, resize=resize, seed=3)


def keys(length: int, steps: range, batch_size: int, **settings: int) -> list[list[tuple]]:
    """The (epoch, index) keys of each step."""
    batches = step_batches(
        Keys(length),
        batch_size=batch_size,
        start_step=steps.start,
        steps=steps.stop,
        **({"seed": 0} | settings),
    )
    return [[tuple(key) for key in batch["key"].tolist()] for batch in batches]


def flat(batches: list[list[tuple]]) -> list[tuple]:
    return [key for batch in batches for key in batch]


def test_every_epoch_is_one_permutation_of_its_own() -> None:
    stream = flat(keys(7, range(7), 3))
    epochs = [stream[start : start + 7] for start in (0, 7, 14)]
    orders = [[index for _, index in epoch] for epoch in epochs]
    assert [[e for e, _ in epoch] for epoch in epochs] == [[0] * 7, [1] * 7, [2] * 7]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert stream != flat(keys(7, range(7), 3, seed=1))
    assert stream == flat(keys(7, range(7), 3))


def test_the_stream_does_not_depend_on_the_batch_size() -> None:
    assert flat(keys(5, range(4), 3)) == flat(keys(5, range(1), 12)) == flat(keys(5, range(12), 1))


def test_a_batch_may_exceed_the_dataset() -> None:
    (batch,) = keys(2, range(1), 8)
    assert sorted(batch) == [(epoch, index) for epoch in range(4) for index in range(2)]


def test_a_restart_goes_on_where_it_stopped() -> None:
    whole = keys(7, range(9), 4)
    assert keys(7, range(5, 9), 4) == whole[5:]
    assert keys(7, range(9, 9), 4) == keys(7, range(10, 9), 4) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_share_the_global_batch_in_order(world_size: int) -> None:
    whole = keys(7, range(4), 6)
    parts = [keys(7, range(4), 6, rank=r, world_size=world_size) for r in range(world_size)]
    assert [flat(list(batches)) for batches in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 3), (2, 4), (0, 1)])
def test_a_batch_must_divide_among_ranks(batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"batch size {batch_size} .* {world_size}"):
        keys(7, range(1), batch_size, world_size=world_size)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_workers(dataset: TrainDataset, num_workers: int) -> None:
    settings = {"batch_size": 3, "start_step": 1, "steps": 6, "seed": 0}
    expected = list(step_batches(dataset, **settings))
    found = list(step_batches(dataset, **settings, num_workers=num_workers))
    assert len(found) == len(expected) == 5
    for ours, theirs in zip(expected, found, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert isinstance(ours["image_id"], list)
        assert ours["image"].shape == (3, 3, 32, 32)
        for key in ("image", "label", "saliency", "valid", "jitter"):
            assert torch.equal(ours[key], theirs[key])


def test_an_image_is_augmented_anew_each_epoch(dataset: TrainDataset) -> None:
    settings = {"batch_size": 8, "start_step": 0, "steps": 2, "seed": 0}
    first, second = (
        dict(zip(batch["image_id"], batch["image"], strict=True))
        for batch in step_batches(dataset, **settings)
    )
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_ambient_generator_alone(num_workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    settings = {"batch_size": 2, "start_step": 0, "steps": 3, "seed": 0}
    list(step_batches(Keys(4), **settings, num_workers=num_workers))
    list(infer_loader(Pairs(), batches=[[0], [1, 2]], num_workers=num_workers))
    assert torch.equal(torch.rand(3), expected)


class Pairs(Dataset):
    """A dataset with a tuple in its samples."""

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image_id": str(index), "size": (index, 2)}

    def __len__(self) -> int:
        return 9


@pytest.mark.parametrize("num_workers", [0, 2])
def test_inference_keeps_the_order_and_the_samples(catalog: Catalog, num_workers: int) -> None:
    dataset = InferDataset(catalog, catalog.ids("train"), views=Views((0.5, 1.0)))
    lists = list(infer_loader(dataset, batches=[[5, 0], [3]], num_workers=num_workers))
    assert [len(samples) for samples in lists] == [2, 1]
    found = lists[0] + lists[1]
    assert [sample["image_id"] for sample in found] == [dataset.ids[i] for i in (5, 0, 3)]
    for index, sample in zip((5, 0, 3), found, strict=True):
        expected = dataset[index]
        assert sample["size"] == expected["size"]
        assert torch.equal(sample["label"], expected["label"])
        assert all(map(torch.equal, sample["images"], expected["images"]))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_arrive_as_they_were_raised(
    catalog: Catalog, dataset: TrainDataset, num_workers: int
) -> None:
    path = catalog.image_path("d6")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="d6") as direct:
        dataset[0, dataset.ids.index("d6")]
    settings = {"batch_size": 2, "start_step": 0, "steps": 20, "seed": 0}
    with pytest.raises(ValueError, match="d6") as error:
        list(step_batches(dataset, **settings, num_workers=num_workers))
    assert type(error.value) is ValueError
    assert str(error.value) == str(direct.value)
    if num_workers:
        assert "read_image" in error.value.__notes__[0], "--traceback shows where in the worker"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_inference_goes_on_until_the_error(catalog: Catalog, num_workers: int) -> None:
    dataset = InferDataset(catalog, ["a1", "d6"], views=Views((1.0,)))
    path = catalog.image_path("d6")
    path.unlink()
    samples = infer_loader(dataset, batches=[[0], [1]], num_workers=num_workers)
    assert [sample["image_id"] for sample in next(samples)] == ["a1"]
    with pytest.raises(FileNotFoundError) as error:
        next(samples)
    assert str(error.value) == f"image of 'd6' does not exist: {path} (--root)"


class Tensors(Dataset):
    """A dataset of tensors of all kinds that a sample may hold."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, key: object) -> dict[str, object]:
        ramp = torch.arange(24.0).view(2, 3, 4)
        return {
            "image_id": str(key),
            "turned": ramp.permute(2, 0, 1),
            "part": ramp[:, 1:2, ::2],
            "bfloat16": ramp.bfloat16(),
            "with gradient": ramp.clone().requires_grad_(True),
            "conjugated": torch.complex(ramp, ramp).conj(),
            "scalar": torch.tensor(3, dtype=torch.int64),
            "none": torch.zeros(0, 5, dtype=torch.uint8),
            "bool": ramp > 3,
            "same": [ramp, ramp],
            "mask": tv_tensors.Mask(torch.ones(1, 2, 2)),
            "large": torch.ones(300, 300),
        }


def test_tensors_arrive_as_they_were_and_can_be_written_to() -> None:
    (samples,) = infer_loader(Tensors(), batches=[[3]], num_workers=1)
    (expected,) = infer_loader(Tensors(), batches=[[3]], num_workers=0)
    assert samples[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        found = samples[0][name]
        if not isinstance(value, torch.Tensor):
            assert str(found) == str(value)
            continue
        assert type(found) is type(value)
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(found, value)
        assert found.requires_grad == value.requires_grad
        found.detach().zero_()  # NumPy's read-only arrays would make torch warn, and crash here


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_samples_take_no_shared_memory_and_no_open_files() -> None:
    """A container has 64 MB of /dev/shm; a process may have 1,024 files open."""
    before = open_files()
    batches = [list(range(64))] * 6
    kept = []
    for samples in infer_loader(Tensors(), batches=batches, num_workers=2):
        kept.append(samples)
        assert "/dev/shm/torch" not in Path("/proc/self/maps").read_text()
        assert open_files() - before < 16
    assert len(kept) == 6


def test_batches_are_pinned_where_that_is_asked_for(monkeypatch) -> None:
    """Without a GPU at hand, whatever `pin_memory` returns arrives."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    settings = {"batch_size": 2, "start_step": 0, "steps": 1, "seed": 0}
    for num_workers in (0, 1):
        (plain,) = step_batches(Keys(4), **settings, num_workers=num_workers)
        (pinned,) = step_batches(Keys(4), **settings, num_workers=num_workers, pin_memory=True)
        assert torch.equal(pinned["key"], plain["key"] + 1)
        assert pinned["image_id"] == plain["image_id"]


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 loader processes"):
        list(infer_loader(Pairs(), batches=[[0]], num_workers=-1))


def test_errors_of_ours_are_not_hidden() -> None:
    class Broken(Keys):
        def __getitem__(self, key: object) -> dict[str, object]:
            raise TypeError("a mistake")

    settings = {"batch_size": 2, "start_step": 0, "steps": 1, "seed": 0}
    with pytest.raises(TypeError, match="a mistake"):
        list(step_batches(Broken(3), **settings))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_micro_batch_holds_the_same_images_on_any_number_of_ranks(accumulate: int) -> None:
    """Ranks divide each micro-batch, not the batch."""
    dataset = [{"index": index} for index in range(17)]

    class Seeded(Dataset):
        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, key: tuple[int, int]) -> dict[str, int]:
            return dataset[key[1]]

    def micro_batches(rank: int, ranks: int) -> list[list[int]]:
        more = {"rank": rank, "world_size": ranks, "accumulate": accumulate}
        steps = step_batches(Seeded(), batch_size=24, start_step=0, steps=3, seed=5, **more)
        parts = [step["index"].chunk(accumulate) for step in steps]
        return [part.tolist() for step in parts for part in step]

    alone = micro_batches(0, 1)
    for ranks in (2, 4):
        shares = [micro_batches(rank, ranks) for rank in range(ranks)]
        assert [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)] == alone
    with pytest.raises(ValueError, match="5 micro-batches"):
        step_batches(Seeded(), batch_size=12, start_step=0, steps=1, seed=0, accumulate=5)
