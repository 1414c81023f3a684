"""Properties of the machine: spare cores, devices cheap to read from, memory, C++ compiler."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from tool.parallel.processes import cores


def spare_cores() -> int:
    """Return the default number of loader processes.

    With a GPU it is this process's share of the cores, at most 8. Without a GPU it is the number of
    cores minus 2, in 0..2: on two cores, a network that shares them with a loader is slower than
    one that loads its images itself.
    """
    found = cores()
    if torch.cuda.is_available():
        return min(8, found // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    return min(2, max(0, found - 2))


def reading_is_free(tensor: torch.Tensor) -> bool:
    """Return whether Python can read a tensor's values without waiting, that is, on a CPU.

    Reading from an accelerator would wait for all work that is queued there.
    """
    return tensor.device.type == "cpu"


def peak_memory(device: torch.device) -> float:
    """Return the most memory in GB that this process has taken: of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # not on Windows, where a program still says what it needs

    unit = 1 if sys.platform == "darwin" else 1024  # of getrusage: bytes on macOS, else KiB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile would use; None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
