"""Batches in an order that depends only on the seed, not on workers, ranks or restarts."""

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
from tool.train.batch import Batch


def step_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    start_step: int,
    steps: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Return an iterator over this rank's batches of the steps start_step .. steps - 1.

    The samples form an endless stream, the concatenation of one permutation per epoch. Each
    permutation is keyed by (seed, epoch). Step s takes the positions s * batch_size ..
    (s + 1) * batch_size - 1 of the stream, which may cross the end of an epoch. They are divided
    into contiguous micro-batches, and rank r takes the r-th contiguous part of each: a micro-batch
    holds the same images whatever the number of ranks.

    Args:
        dataset: Has n >= 1 samples; takes (epoch, index) keys and returns dictionaries.
        batch_size: Samples per step, of all ranks together; may exceed n.
        start_step: The first step, 0 for a new run.
        steps: The step to stop before, which is the length of the whole run.
        seed: Seed of the run.
        rank: Index of this process.
        world_size: Number of processes; times `accumulate` it must divide `batch_size`.
        accumulate: Micro-batches per step.
        num_workers: Number of loader processes; with 0 this process loads. The batches do not
            depend on it.
        pin_memory: Put the tensors in page-locked memory, for a GPU.

    Yields:
        Samples of the dataset, stacked, N = batch_size / world_size of them.

    Raises:
        ValueError: `world_size` times `accumulate` does not divide `batch_size`, `num_workers` is
            negative, or a file is broken, even if a worker reads it.
        OSError: A file cannot be read, even if a worker reads it.
        ChildProcessError: A worker died.
    """
    if batch_size < 1 or batch_size % (world_size * accumulate):
        raise ValueError(
            f"batch size {batch_size} does not divide among {world_size} processes"
            + (f" and {accumulate} micro-batches" if accumulate > 1 else "")
        )
    micro = batch_size // accumulate  # images of a micro-batch, of all ranks
    share = micro // world_size
    places = [
        first + place for first in range(rank * share, batch_size, micro) for place in range(share)
    ]
    sampler = _StepSampler(len(dataset), batch_size, range(start_step, steps), seed, places)
    batches = _loaded(_Load(dataset, default_collate), sampler, num_workers)
    return map(_pinned, batches) if pin_memory else batches


def infer_loader(
    dataset: Dataset, *, batches: Sequence[Sequence[int]], num_workers: int
) -> Iterator[list[dict[str, Any]]]:
    """Return an iterator over lists of samples, one per list of indices, in order.

    Args:
        dataset: Takes an index, returns a sample.
        batches: Lists of indices.
        num_workers: Number of loader processes, which decode in advance; with 0 this process loads.

    Raises:
        ValueError: `num_workers` is negative, or a file is broken, even if a worker reads it.
        OSError: A file cannot be read, even if a worker reads it.
        ChildProcessError: A worker died.
    """
    return _loaded(_Load(dataset, list), batches, num_workers)


class _StepSampler:
    """A sampler that yields the (epoch, index) keys of each step of one rank.

    Args:
        places: The rank's places in each batch, ascending.
    """

    def __init__(
        self, length: int, batch_size: int, steps: range, seed: int, places: Sequence[int]
    ) -> None:
        self.length, self.batch_size, self.steps, self.seed = length, batch_size, steps, seed
        self.places = places
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield [self._key(step * self.batch_size + place) for place in self.places]

    def _key(self, position: int) -> tuple[int, int]:
        """Return the key at a position of the stream; see `step_batches`."""
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._order = torch.randperm(self.length, generator=generator).tolist()
            self._epoch = epoch
        return epoch, self._order[place]


class _Load:
    """The function that a worker runs: it makes a batch from keys."""

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate

    def batch(self, keys: Sequence[object]) -> Any:
        """Return the batch of these keys."""
        return self.collate([self.dataset[key] for key in keys])

    def __call__(self, keys: Sequence[object]) -> bytes:
        """Return a batch in bytes that `pickle.loads` reads.

        Bytes go through a pipe. Torch would send each tensor through a file in /dev/shm or an open
        file. By default a container has 64 MB of /dev/shm, and a process has 1,024 open files.
        """
        torch.set_num_threads(1)
        content = io.BytesIO()
        _Packer(content, protocol=pickle.HIGHEST_PROTOCOL).dump(self.batch(keys))
        return content.getvalue()


class _Packer(pickle.Pickler):
    """A pickler that stores tensors as NumPy arrays, which takes a single copy."""

    def reducer_override(self, value: object) -> Any:
        """Return how to rebuild a plain tensor from an array; leave other values to pickle."""
        if type(value) is not Tensor or value.requires_grad or value.is_conj() or value.is_neg():
            return NotImplemented
        if value.dtype == torch.bfloat16:  # NumPy does not have this type
            return NotImplemented
        return torch.from_numpy, (value.numpy(),)


def _loaded(load: _Load, keys: Iterable[Sequence[object]], num_workers: int) -> Iterator[Any]:
    """Yield the batch of each of `keys`, making at most two per worker in advance."""
    if num_workers < 0:
        raise ValueError(f"{num_workers} loader processes: 0, or more")
    if num_workers == 0:
        yield from map(load.batch, keys)
        return
    with Pool(num_workers, load, method=FORK) as pool:
        yield from map(pickle.loads, pool.map(keys, ahead=2 * num_workers))


def _pinned(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch with its tensors in page-locked memory."""
    return {
        key: value.pin_memory() if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
