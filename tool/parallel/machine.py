"""Properties of the machine: spare cores, devices cheap to read from, memory, C++ compiler."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from pathlib import Path

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


def available_memory() -> float:
    """Return the memory in GB that this process may still take on a CPU; 0 if Linux does not say.

    It is what the machine has left, or what the memory limit of the container leaves, if less.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # without a limit there is no file, or "max"
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=0) / 1e9


def keep_freed_memory(device: torch.device) -> bool:
    """Make the C library keep memory that this process frees, for a CPU; return whether it does.

    A training step frees and takes the same large blocks again. By default glibc gives blocks above
    32 MB back to the system and maps them anew, and the kernel fills them with zeros page by page,
    which can take longer than the network where crops are large. Kept blocks fit less well: in the
    course of training the memory taken grows by up to 30 %. So a call returns to the default where
    less than a third of the peak is left. Nothing changes on a GPU, or with another C library than
    glibc.
    """
    if device.type != "cpu":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    keep = available_memory() > peak_memory(device) / 3
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0 if keep else 65536)
    mallopt(trim_threshold, -1 if keep else 128 * 1024)
    return keep


def cpp_compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile would use; None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
