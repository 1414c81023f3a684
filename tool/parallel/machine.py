"""Properties of the machine: spare cores, costs of reading, the C++ compiler."""

from __future__ import annotations

import os
import shutil

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


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would take, or None if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)
