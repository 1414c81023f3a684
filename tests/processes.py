"""The processes of a command, seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

if not Path("/proc/self/task").exists():
    pytest.skip("finds processes in /proc, which Linux alone has", allow_module_level=True)
from typing import TypeVar

Found = TypeVar("Found")

# Seconds until something counts as hanging. What hangs does so for ever; a busy machine stalls for
# some ten seconds.
PATIENCE = 60


def children(pid: int) -> list[int]:
    """The processes that a process has started, in that order; none when it is gone."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to notice does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def command_of(pid: int) -> bytes:
    """The command line of a process; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def wait_for(
    look: Callable[[], Found], enough: Callable[[Found], object], seconds: float = PATIENCE
) -> Found:
    """Look again until it is enough, or the time is over; what was seen last."""
    end = time.monotonic() + seconds
    while not enough(found := look()) and time.monotonic() < end:
        time.sleep(0.005)
    return found
