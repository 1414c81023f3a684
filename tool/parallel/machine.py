"""What the machine at hand has."""

from __future__ import annotations

import os
import shutil

import torch

from tool.parallel.processes import cores


def spare_cores() -> int:
    """Loader processes: beside a GPU a share of the cores, at most 8; else cores - 2, at most 2.

    A network on two cores is slower with a loader beside it than with one that takes turns.
    """
    here = cores()
    if torch.cuda.is_available():
        return min(8, here // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(2, max(0, here - 2))


def reading_is_free(tensor: torch.Tensor) -> bool:
    """Return whether Python may read values: on a CPU. An accelerator would stop its stream."""
    return tensor.device.type == "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; on a CPU torch has no type for that."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error)
    return "allocate memory" in text or "out of memory" in text or "could not create a" in text


def cpp_compiler() -> str | None:
    """The C++ compiler that torch.compile would take, if there is one."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
