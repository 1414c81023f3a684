"""Several processes (torchrun) seen as one: gathers, means over the global batch."""

from __future__ import annotations

import os

import torch
import torch.distributed as distributed
from torch import Tensor, nn


def start(device: torch.device) -> None:
    """Join the process group that torchrun announces in the environment; alone, do nothing."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group, if any."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """Index of this process, 0 when alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait for every process."""
    if distributed.is_initialized():
        distributed.barrier()


def pick_device(name: str) -> torch.device:
    """The device called `name`: `auto` takes a GPU where there is one, this rank's under torchrun.

    Raises:
        ValueError: `cuda` was asked for and there is none.
    """
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
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(parts, tensor)
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
    if world_size() == 1:
        return flag
    told = torch.tensor([int(flag)])
    if distributed.get_backend() == "nccl":
        told = told.to(torch.cuda.current_device())
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return bool(told.item())


def is_main() -> bool:
    """True on the rank that writes shared files."""
    return rank() == 0


def env_world_size() -> int:
    """Number of processes as torchrun announces it, before the group is joined."""
    return int(os.environ.get("WORLD_SIZE", 1))
