"""Batches in an order that depends on the seed alone: not on workers, ranks or restarts."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tool.parallel.processes import FORK, Pool
from tool.progress import derive_seed


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
    """Return this rank's batches of the steps start_step .. steps - 1.

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
        ChildProcessError: a worker died.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch size {batch_size} does not divide among {world_size} processes")
    sampler = _StepSampler(
        len(dataset), batch_size, range(start_step, steps), seed, rank, world_size
    )
    batches = _loaded(_Load(dataset, default_collate), sampler, num_workers)
    return map(_pinned, batches) if pin_memory else batches


def infer_loader(
    dataset: Dataset, *, batches: Sequence[Sequence[int]], num_workers: int
) -> Iterator[list[dict[str, object]]]:
    """Return lists of the samples of each list of indices, in order; workers decode ahead.

    Raises:
        ValueError: a broken file, also from a worker.
        OSError: a file that cannot be read, also from a worker.
        ChildProcessError: a worker died.
    """
    return _loaded(_Load(dataset, list), batches, num_workers)


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
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._order = torch.randperm(self.length, generator=generator).tolist()
            self._epoch = epoch
        return epoch, self._order[place]


class _Load:
    """Makes a batch; what a worker runs."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def batch(self, keys: Sequence[object]) -> Any:
        return self.collate([self.dataset[key] for key in keys])

    def __call__(self, keys: Sequence[object]) -> bytes:
        """Return a batch as `pickle.loads` reads it.

        Bytes go through a pipe. Tensors as torch sends them would take a file in /dev/shm or an
        open file each: a container has 64 MB of the one, a process 1,024 of the other.
        """
        torch.set_num_threads(1)
        content = io.BytesIO()
        _Packer(content, protocol=pickle.HIGHEST_PROTOCOL).dump(self.batch(keys))
        return content.getvalue()


class _Packer(pickle.Pickler):
    """Pickles tensors as NumPy arrays, which is a single copy."""

    def reducer_override(self, value: object) -> Any:
        if type(value) is not Tensor or value.requires_grad or value.is_conj() or value.is_neg():
            return NotImplemented
        if value.dtype == torch.bfloat16:  # NumPy has none
            return NotImplemented
        return torch.from_numpy, (value.numpy(),)


def _loaded(load: _Load, keys: Iterable[Sequence[object]], num_workers: int) -> Iterator[Any]:
    """Yield the batch of each of `keys`; at most two per worker are made ahead."""
    if num_workers < 0:
        raise ValueError(f"{num_workers} loader processes: 0, or more")
    if num_workers == 0:
        yield from map(load.batch, keys)
        return
    with Pool(num_workers, load, method=FORK) as pool:
        yield from map(pickle.loads, pool.map(keys, ahead=2 * num_workers))


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tensors in page-locked memory."""
    return {
        key: value.pin_memory() if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
