"""Several processes (torchrun) seen as one: gathers, means over the global batch, shares of a list.

Torch is imported by what needs it: the stages that compute without it start in a tenth of the time.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Item = TypeVar("Item")

PATIENCE = datetime.timedelta(days=7)  # a rank whose share was done waits for one whose was not
_FAILED = "a_rank_failed"


class _Stopped(Exception):
    """Another rank failed."""


def start(device: torch.device | None = None, *, timeout: datetime.timedelta | None = None) -> None:
    """Join the process group that torchrun announces in the environment; alone, do nothing.

    Args:
        device: where the ranks compute; None: nothing but counts is exchanged.
        timeout: of waiting for another rank; None: torch's default.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or _group():
        return
    import torch.distributed as distributed

    gpu = device is not None and device.type == "cuda"
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=timeout)


def stop() -> None:
    """Leave the process group, if any."""
    if group := _group():
        group.destroy_process_group()


@contextlib.contextmanager
def ranks(device: torch.device | None = None) -> Iterator[None]:
    """Inside, this process is one of the ranks that torchrun announces; the argument of `start`.

    After an error the group is not left: on GPUs that can wait for ranks that are still at work.
    """
    start(device, timeout=PATIENCE)
    yield
    stop()


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """What the ranks do inside succeeds on all of them or ends all of them, with one message.

    Leaving it waits for every rank. Inside, ranks do not wait for each other: one that failed would
    not come.

    Raises:
        Exception: what was raised inside, on the first of the ranks where something was.
        SystemExit: 2, on the other ranks.
        ChildProcessError: another rank died.
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
        failed = _tell_of_failure(error is not None)
    except ChildProcessError:
        if error is None:
            raise
        raise error from None
    if error is not None and failed.argmax() == rank():
        raise error
    if failed.any():
        raise SystemExit(2)


def _tell_of_failure(mine: bool) -> np.ndarray:
    """Whether each rank failed, (world_size,) int64; those still at work hear of this one's."""
    if mine:
        with _others_alive():
            _store().set(_FAILED, "1")
    return sum_over_ranks(mine * (np.arange(world_size()) == rank()))


def watched(items: Iterable[Item]) -> Iterator[Item]:
    """The items, for use inside `agreed`: no further one once another rank has failed."""
    with contextlib.ExitStack() as stack:
        if hasattr(items, "close"):  # a generator, which ends its processes
            stack.callback(items.close)
        for item in items:
            with _others_alive():
                if _group() and _store().check([_FAILED]):
                    raise _Stopped
            yield item


def share(items: Sequence[Item]) -> Sequence[Item]:
    """This rank's part: every N-th of the items, those of all ranks together are each item once."""
    return items[rank() :: world_size()]


def sum_over_ranks(counts: np.ndarray) -> np.ndarray:
    """Counts int64 of any shape -> their sum over all ranks, exact; alone, as they are.

    Raises:
        ChildProcessError: another rank died.
    """
    group = _group()
    if group is None:
        return counts
    import torch

    total = torch.from_numpy(np.array(counts, np.int64)).to(_meeting_device())
    with _others_alive():
        group.all_reduce(total)
    return total.cpu().numpy()


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    """What torch raises inside when a rank is gone becomes a line that a user understands."""
    try:
        yield
    except RuntimeError as error:
        raise ChildProcessError(f"another rank is gone ({error}): run again to go on") from error


def _group() -> ModuleType | None:
    """`torch.distributed` where this process is one of a group; joining one has imported it."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed is not None and distributed.is_initialized() else None


def _store() -> torch.distributed.Store:
    """The notes that all ranks read and write at any time."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _meeting_device() -> str:
    """Where tensors lie that the ranks exchange."""
    group = _group()
    return "cuda" if group and group.get_backend() == "nccl" else "cpu"


def rank() -> int:
    """Index of this process, 0 when alone."""
    group = _group()
    return group.get_rank() if group else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    group = _group()
    return group.get_world_size() if group else 1


def local_cuda() -> str:
    """The GPU of this process: `cuda`, under torchrun `cuda:0`, `cuda:1`, ... by local rank."""
    import torch

    if "LOCAL_RANK" not in os.environ:
        return "cuda"
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"


def pick_device(name: str) -> torch.device:
    """The device called `name`: `auto` takes a GPU where there is one, this rank's under torchrun.

    Raises:
        ValueError: `cuda` was asked for and there is none.
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


def synchronise_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with every trainable BatchNorm taken over all ranks; alone, as it is.

    Raises:
        ValueError: there is such a norm and the ranks are on CPUs, where it cannot be taken over
            them: the result would depend on their number.
    """
    from torch import nn

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if world_size() == 1 or not norms:
        return module
    if device.type == "cpu":
        raise ValueError(
            "training a BatchNorm from scratch in several CPU processes: use one process, a GPU "
            "each, or pretrained weights, whose norms are frozen"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def gather(tensor: Tensor) -> Tensor:
    """(N, ...) of this rank -> (world_size * N, ...) of all, in rank order, without gradient."""
    import torch

    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor)
    return torch.cat(parts)


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of sum(total) / sum(count): the mean of the shares is that global mean.

    Args:
        total: scalar sum over this rank's elements; receives the gradient.
        count: scalar number of this rank's elements. Where no rank has any, the share is 0.
    """
    everyone = gather(count.reshape(1)).sum()
    return total * world_size() / everyone.clamp(min=1e-6)


def agree(flag: bool) -> bool:
    """True when any rank says True: every rank stops at the same step."""
    return bool(sum_over_ranks(np.array(int(flag))) > 0)


def is_main() -> bool:
    """True on the rank that writes shared files."""
    return rank() == 0


def env_world_size() -> int:
    """Number of processes as torchrun announces it, before the group is joined."""
    return int(os.environ.get("WORLD_SIZE", 1))
