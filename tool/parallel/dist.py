"""Several processes (torchrun) seen as one: gathers, means over the global batch, shares of a list.

Torch is imported only in the functions that need it. So the stages that compute without it start in
a tenth of the time.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Item = TypeVar("Item")
Module = TypeVar("Module", bound="nn.Module")

# A rank whose share is done waits for a rank whose share is not.
PATIENCE = datetime.timedelta(days=7)
_FAILED = "a_rank_failed"


class _Stopped(Exception):
    """The end of a loop in `until_a_rank_fails` because another rank failed."""


def start(device: torch.device | None = None, *, timeout: datetime.timedelta | None = None) -> None:
    """Join the process group that torchrun announces in the environment; do nothing when alone.

    Args:
        device: The device on which the ranks compute. None if they only exchange counts.
        timeout: How long to wait for another rank. None is torch's default.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or _group():
        return
    import torch.distributed as distributed

    gpu = device is not None and device.type == "cuda"
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=timeout)


def stop() -> None:
    """Leave the process group, if there is one."""
    if group := _group():
        group.destroy_process_group()


@contextlib.contextmanager
def ranks(device: torch.device | None = None) -> Iterator[None]:
    """Make this process one of the ranks that torchrun announces, for the duration of the block.

    After an error the group is not left: on GPUs that can wait for ranks that are still at work.

    Args:
        device: As for `start`.
    """
    start(device, timeout=PATIENCE)
    yield
    stop()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """Make the block succeed on all ranks, or end all of them with one message.

    Leaving the block waits for every rank. Inside it, ranks must not wait for each other, because a
    rank that failed would not come.

    Raises:
        Exception: What the block raised, on the first of the ranks that failed. If another rank
            died, on any rank that failed.
        SystemExit: Status 2, on the other ranks.
        ChildProcessError: Another rank died, and this one did not fail.
    """
    if not _group():
        yield
        return
    error = None
    try:
        yield
    except _Stopped:
        pass
    except Exception as caught:
        error = caught
    try:
        failed = _announce_failure(error is not None)
    except ChildProcessError:
        if error is None:
            raise
        raise error from None
    if error is not None and failed.argmax() == rank():
        raise error
    if failed.any():
        raise SystemExit(2)


def _announce_failure(mine: bool) -> np.ndarray:
    """Return which ranks failed, (world_size,) int64, and let ranks still at work know of this one.

    Args:
        mine: Whether this rank failed.
    """
    if mine:
        with _naming_lost_ranks():
            _store().set(_FAILED, "1")
    return sum_over_ranks(mine * (np.arange(world_size()) == rank()))


def until_a_rank_fails(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items until another rank has failed; for use inside `all_or_none`."""
    with contextlib.ExitStack() as stack:
        if hasattr(items, "close"):  # closing a generator ends its processes
            stack.callback(items.close)
        for item in items:
            with _naming_lost_ranks():
                if _group() and _store().check([_FAILED]):
                    raise _Stopped
            yield item


def share(items: Sequence[Item]) -> Sequence[Item]:
    """Return this rank's part: every N-th item. The parts of all ranks hold each item once."""
    return items[rank() :: world_size()]


def sum_over_ranks(counts: np.ndarray) -> np.ndarray:
    """Compute the exact sum of counts over all ranks; return them as they are when alone.

    Args:
        counts: int64 of any shape, the same on all ranks.

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


@contextlib.contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    """Turn the error that torch raises if a rank is gone into a line that a user understands.

    Raises:
        ChildProcessError: Another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(f"another rank is gone ({error}): run again to go on") from error


def _group() -> ModuleType | None:
    """Return `torch.distributed` if this process is one of a group, which has imported it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None


def _store() -> torch.distributed.Store:
    """Return the notes that all ranks can read and write at any time."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _exchange_device() -> str:
    """Return the device of the tensors that the ranks exchange."""
    group = _group()
    return "cuda" if group and group.get_backend() == "nccl" else "cpu"


def rank() -> int:
    """Return the index of this process; 0 when alone."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Return the number of processes; 1 when alone."""
    group = _group()
    return group.get_world_size() if group else 1


def local_cuda() -> str:
    """Return the name of this process's GPU.

    It is `cuda`, or under torchrun `cuda:0`, `cuda:1`, ... by local rank.
    """
    import torch

    if "LOCAL_RANK" not in os.environ:
        return "cuda"
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"


def pick_device(name: str) -> torch.device:
    """Return the device called `name`.

    `auto` takes a GPU if there is one. Under torchrun `auto` and `cuda` take this rank's GPU.

    Raises:
        ValueError: `name` is `cuda` and there is no GPU.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is available; use --device cpu")
        index = int(os.environ.get("LOCAL_RANK", 0))
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device(name)


def synchronise_norms(module: Module, device: torch.device) -> Module:
    """Return the module with every trainable BatchNorm synchronised over all ranks.

    When alone, the module stays as it is.

    Args:
        module: Changed in place, except for a module that is itself a norm.
        device: The device on which the ranks compute.

    Raises:
        ValueError: The module has such a norm and the ranks are on CPUs, where it cannot be
            synchronised. The result would depend on the number of ranks.
    """
    from torch import nn

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if world_size() == 1 or not norms:
        return module
    if device.type == "cpu":
        raise ValueError(
            "training a BatchNorm in several CPU processes: use one process, a GPU each, or "
            "pretrained weights with --norm frozen"
        )
    return cast(Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))


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
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Compute this rank's share of sum(total) / sum(count) over all ranks.

    The mean of the shares over the ranks is that global mean.

    Args:
        total: Scalar sum over this rank's elements; receives the gradient.
        count: Scalar number of this rank's elements. If no rank has any, the share is 0.
    """
    everyone = gather(count.reshape(1)).sum()
    return total * world_size() / everyone.clamp(min=1e-6)


def any_rank(flag: bool) -> bool:
    """Return True if any rank says True, so that every rank stops at the same step."""
    return bool(sum_over_ranks(np.array(int(flag))) > 0)


def is_main() -> bool:
    """Return whether this is the rank that writes shared files."""
    return rank() == 0


def print_once(line: str) -> None:
    """Print a line on the rank that writes shared files."""
    if is_main():
        print(line, flush=True)


def env_world_size() -> int:
    """Return the number of processes that torchrun announces, before the group is joined."""
    return int(os.environ.get("WORLD_SIZE", 1))
