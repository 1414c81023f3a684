"""The device that a process computes on, and the norms of its network under torchrun.

Torch is imported only in the functions, as in `tool.parallel.dist`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar, cast

from tool.parallel import dist

if TYPE_CHECKING:
    import torch
    from torch import nn
Module = TypeVar("Module", bound="nn.Module")


def local_cuda() -> str:
    """Return the name of this process's GPU.

    It is `cuda` in a single process. Under torchrun it is `cuda:0`, `cuda:1`, ... by local rank;
    processes share GPUs if there are fewer GPUs than processes.
    """
    import torch

    if "LOCAL_RANK" not in os.environ:
        return "cuda"
    return f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}"


def pick_device(name: str) -> torch.device:
    """Return the device called `name`.

    Args:
        name: "auto" for a GPU if there is one and else the CPU, or a name of torch such as "cuda"
            or "cpu". Under torchrun "auto" and "cuda" mean this rank's GPU.

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
    """Return the module with every BatchNorm of torch synchronised over all ranks.

    In a single process the module is returned unchanged.

    Args:
        module: It is changed in place, unless it is a norm itself. Frozen norms are of a class of
            their own and are not changed.
        device: The device on which the ranks compute.

    Raises:
        ValueError: The module has such a norm and there are several ranks on CPUs, where it cannot
            be synchronised. The result would depend on the number of ranks.
    """
    from torch import nn

    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if dist.world_size() == 1 or not norms:
        return module
    if device.type == "cpu":
        raise ValueError(
            "training a BatchNorm (from scratch, or --norm live) in several CPU processes: use one "
            "process, a GPU each, or pretrained weights with --norm frozen"
        )
    return cast(Module, nn.SyncBatchNorm.convert_sync_batchnorm(module))
