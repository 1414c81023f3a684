"""Work of several processes (torchrun): gathers, means over the global batch, shares of a list.

Every function also works in a single process, which is then rank 0 of 1.

Torch is imported only in the functions that need it. So the stages that compute without it start in
a tenth of the time.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")

# How long a rank that has finished its share waits for the others.
PATIENCE = datetime.timedelta(days=7)
_FAILED = "a_rank_failed"


class _Stopped(Exception):
    """The end of a loop in `until_a_rank_fails` because another rank failed."""


def start(device: torch.device | None = None, *, timeout: datetime.timedelta | None = None) -> None:
    """Join the process group that torchrun announces in the environment, if there is one.

    Args:
        device: The device on which the ranks compute. None if they only exchange counts.
        timeout: How long to wait for another rank; None for torch's default.

    Raises:
        ChildProcessError: Another rank died before this one had joined, or cannot be reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or _group():
        return
    import torch.distributed as distributed

    gpu = device is not None and device.type == "cuda"
    with _naming_lost_ranks():
        distributed.init_process_group("nccl" if gpu else "gloo", timeout=timeout)


def stop() -> None:
    """Leave the process group, if there is one."""
    if group := _group():
        group.destroy_process_group()


@contextlib.contextmanager
def ranks(device: torch.device | None = None) -> Iterator[None]:
    """Make this process one of the ranks that torchrun announces, for the duration of the block.

    If the block raises, the process does not leave the group, because on GPUs leaving can wait for
    ranks that are still computing.

    Args:
        device: As for `start`.
    """
    start(device, timeout=PATIENCE)
    yield
    stop()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Make the block succeed on all ranks, or end all of them with one message.

    The end of the block waits for every rank. Inside it, ranks must not wait for each other,
    because a rank that failed never reaches the place where the others wait.

    Raises:
        Exception: The error of the block, on the lowest rank that failed. If another rank died, on
            every rank that failed.
        SystemExit: Status 2, on the other ranks.
        ChildProcessError: Another rank died, and this one did not fail.
    """
    if not _group():
        yield
        return
    # Run the block, and keep its error until the ranks have agreed.
    error = None
    try:
        yield
    except _Stopped:
        pass
    except Exception as caught:
        error = caught
    # Tell the others, and learn which ranks failed. This rank's own error matters more than the
    # loss of another rank.
    try:
        failed = _announce_failure(error is not None)
    except ChildProcessError:
        if error is None:
            raise
        raise error from None
    # One rank reports its error; the others end silently.
    if error is not None and failed.argmax() == rank():
        raise error
    if failed.any():
        raise SystemExit(2)


def _announce_failure(mine: bool) -> np.ndarray:
    """Tell all ranks whether this one failed, and return which ranks failed.

    Ranks that are still in `until_a_rank_fails` learn of a failure at once. The function itself
    waits for every rank.

    Args:
        mine: Whether this rank failed.

    Returns:
        (world_size,) int64 {0, 1}.

    Raises:
        ChildProcessError: Another rank died.
    """
    if mine:
        with _naming_lost_ranks():
            _store().set(_FAILED, "1")
    return sum_over_ranks(mine * (np.arange(world_size()) == rank()))


def until_a_rank_fails(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items, but stop as soon as another rank has failed.

    Use it inside `all_or_none`, which catches the exception that stops the loop.

    Args:
        items: The items; a generator is closed at the end, which ends its processes.

    Raises:
        ChildProcessError: Another rank died.
    """
    with contextlib.ExitStack() as stack:
        if hasattr(items, "close"):
            stack.callback(items.close)
        for item in items:
            with _naming_lost_ranks():
                if _group() and _store().check([_FAILED]):
                    raise _Stopped
            yield item


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's part of a list: every world_size-th item, starting at the rank.

    The parts of all ranks together hold each item once.
    """
    return items[rank() :: world_size()]


def sum_over_ranks(counts: np.ndarray) -> np.ndarray:
    """Return the exact sum of counts over all ranks.

    Args:
        counts: int64 of any shape; the shape is the same on all ranks.

    Returns:
        int64 of the same shape; `counts` itself in a single process.

    Raises:
        ChildProcessError: Another rank died.
    """
    group = _group()
    if group is None:
        return counts
    import torch

    total = torch.from_numpy(np.array(counts, np.int64)).to(_exchange_device())
    with _naming_lost_ranks():
        group.all_reduce(total)
    return total.cpu().numpy()


def on_main(make: Callable[[], Item]) -> Item:
    """Return on every rank what `make` returns on the one that writes shared files.

    It is called on no other rank, as what reads many files should be.

    Args:
        make: Returns something small.
    """
    made: list[Item | None] = [None]
    with all_or_none():
        if is_main():
            made[0] = make()
    if group := _group():
        with _naming_lost_ranks():
            group.broadcast_object_list(made)
    return cast(Item, made[0])


@contextlib.contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    """Replace the error that torch raises when a rank is gone by one that a user understands.

    Raises:
        ChildProcessError: The block raised a `RuntimeError`: another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(f"another rank is gone ({error}): run again to go on") from error


def _group() -> ModuleType | None:
    """Return `torch.distributed` if this process has joined a group, else None.

    Joining a group has imported the module, so this function never imports torch.
    """
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None


def _store() -> torch.distributed.Store:
    """Return the key-value store that all ranks can read and write at any time."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _exchange_device() -> str:
    """Return the device of the tensors that the ranks exchange."""
    group = _group()
    return "cuda" if group and group.get_backend() == "nccl" else "cpu"


def rank() -> int:
    """Return the index of this process, 0 in a single process."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Return the number of processes, 1 in a single process."""
    group = _group()
    return group.get_world_size() if group else 1


def gather(tensor: Tensor) -> Tensor:
    """Gather a tensor from all ranks, in rank order and without gradient.

    Args:
        tensor: (N, ...), of the same shape on every rank.

    Returns:
        (world_size * N, ...).
    """
    import torch

    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()  # the backends send contiguous memory only
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Compute this rank's share of the global mean sum(total) / sum(count) over all ranks.

    share = total * world_size / sum(count), so that the mean of the shares over the ranks is the
    global mean. DDP averages gradients over the ranks in the same way.

    Args:
        total: Scalar sum over this rank's elements; receives the gradient.
        count: Scalar number of this rank's elements. If no rank has any, `total` is 0 and so is the
            share.

    Returns:
        A scalar, attached to the graph of `total`.
    """
    everyone = gather(count.reshape(1)).sum()
    return total * world_size() / everyone.clamp(min=1e-6)  # no division by 0


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is True on any rank; every rank must call it.

    With it all ranks decide alike, for example to stop at the same step.

    Raises:
        ChildProcessError: Another rank died.
    """
    return bool(sum_over_ranks(np.array(int(flag))) > 0)


def is_main() -> bool:
    """Return whether this is the rank that writes shared files."""
    return rank() == 0


def print_once(line: str) -> None:
    """Print a line, on the rank that writes shared files only."""
    if is_main():
        print(line, flush=True)


def env_world_size() -> int:
    """Return the number of processes that torchrun announces, even before `start`; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))
