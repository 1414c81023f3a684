"""Batches in an order that depends on the seed alone: not on workers, ranks or restarts."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from tool.keyed import seed_of

DATA_ERRORS = (ValueError, OSError)


def step_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    start_step: int,
    steps: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[dict[str, object]]:
    """This rank's batches of the steps start_step .. steps - 1.

    The stream is the endless concatenation of one permutation an epoch, keyed by (seed, epoch).
    Step s takes its positions s * batch_size .. (s + 1) * batch_size - 1, across the end of an
    epoch where need be; rank r takes its contiguous part.

    Args:
        dataset: takes (epoch, index) keys, gives dictionaries; it has n >= 1 samples.
        batch_size: B of all ranks together; may exceed n.
        start_step: the first step, 0 for a new run.
        steps: the step to stop before, the length of the whole run.
        seed: of the run.
        rank: of this process.
        world_size: number of processes; must divide `batch_size`.
        num_workers: loader processes; 0 loads in this one. The batches do not depend on it.
        pin_memory: page-locked memory, for a GPU.

    Yields:
        The batch of `TrainDataset`, N = batch_size / world_size.

    Raises:
        ValueError: `world_size` does not divide `batch_size`; a broken file, also from a worker.
        OSError: a file that cannot be read, also from a worker.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch size {batch_size} does not divide among {world_size} processes")
    sampler = _StepSampler(
        len(dataset), batch_size, range(start_step, steps), seed, rank, world_size
    )
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_stand_aside,
        generator=_idle_generator(),
    )
    return _unwrapped(loader)


def infer_loader(
    dataset: Dataset, *, batches: Sequence[Sequence[int]], num_workers: int
) -> Iterator[list[dict[str, object]]]:
    """Lists of the samples of each list of indices, in order; workers decode ahead.

    Raises:
        ValueError: a broken file, also from a worker.
        OSError: a file that cannot be read, also from a worker.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=_uncollated,
        num_workers=num_workers,
        worker_init_fn=_stand_aside,
        generator=_idle_generator(),
    )
    return _unwrapped(loader)


class _StepSampler:
    """The (epoch, index) keys of each step of one rank."""

    def __init__(
        self, length: int, batch_size: int, steps: range, seed: int, rank: int, world_size: int
    ) -> None:
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.share = batch_size // world_size
        self.offset = rank * self.share
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            first = step * self.batch_size + self.offset
            yield [self._key(position) for position in range(first, first + self.share)]

    def _key(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            self._order = torch.randperm(self.length, generator=generator).tolist()
            self._epoch = epoch
        return epoch, self._order[place]


class _Failure:
    """An error on its way from a worker to the main process, its traceback as a note."""

    def __init__(self, error: Exception) -> None:
        if get_worker_info() is not None:
            error.add_note(traceback.format_exc())
        self.error = error


class _Guarded(Dataset):
    """`dataset` that returns its errors: raised in a worker, their text would be a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: object) -> object:
        try:
            return self.dataset[key]
        except DATA_ERRORS as error:
            return _Failure(error)


def _collate(samples: list[object]) -> object:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return default_collate(samples)


def _uncollated(samples: list[object]) -> object:
    return next((sample for sample in samples if isinstance(sample, _Failure)), samples)


def _unwrapped(loader: DataLoader) -> Iterator[dict[str, object]]:
    for batch in loader:
        if isinstance(batch, _Failure):
            raise batch.error
        yield batch


def _idle_generator() -> torch.Generator:
    """A generator of the loader's own: without one it would draw from the ambient generator."""
    return torch.Generator().manual_seed(0)


def _stand_aside(worker: int) -> None:
    """Leave signals to the main process: it saves, then ends its workers.

    Ctrl-C reaches a whole process group, so a worker leaves that group.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgrp()
