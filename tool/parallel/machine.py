"""Properties of the machine: spare cores, costs of reading, memory errors, the C++ compiler."""

from __future__ import annotations

import os
import resource
import shutil
import sys

import torch

from tool.parallel.processes import cores


def spare_cores() -> int:
    """Return the default number of loader processes.

    Beside a GPU it is this process's share of the cores, at most 8. Otherwise it is cores - 2, at
    most 2: a network on two cores is slower with a loader beside it than with one that takes turns.
    """
    found = cores()
    if torch.cuda.is_available():
        return min(8, found // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(2, max(0, found - 2))


def reading_is_free(tensor: torch.Tensor) -> bool:
    """Return whether Python may read values, that is, on a CPU.

    Reading from an accelerator would stop its stream.
    """
    return tensor.device.type == "cpu"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice.

    On a CPU torch has no type for that error, so its message decides.
    """
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    text = str(error)
    return "allocate memory" in text or "out of memory" in text or "could not create a" in text


def peak_memory(device: torch.device) -> float:
    """Return the most memory in GB that this process has taken: of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage: bytes on macOS, else KiB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would take, or None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
