"""Name temporary files after their process, and remove what killed processes left."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import zlib
from pathlib import Path

_PART = ".part"  # how temporary names begin: .part-HOST-PROCESS-RUN-RANDOM
_RUN = os.urandom(4).hex()  # a container that is started again has the same host and processes


def _host() -> str:
    """Return a short name of this machine, because another one may write into the same folder."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def part_of() -> str:
    """Return how the temporary names of this process begin."""
    return f"{_PART}-{_host()}-{os.getpid()}-{_RUN}-"


@functools.lru_cache(maxsize=4096)  # once per folder and process, which a fork inherits
def remove_left(folder: Path) -> None:
    """Remove the temporary files and folders in `folder` whose processes have ended."""
    mine = f"{_PART}-{_host()}-"
    for entry in os.scandir(folder):
        process = entry.name.removeprefix(mine).partition("-")[0]
        if not entry.name.startswith(mine) or not process.isdecimal():
            continue
        others = int(process) != os.getpid()
        if _runs(int(process)) if others else entry.name.startswith(part_of()):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.unlink(entry.path)


def _runs(process: int) -> bool:
    """Return whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is another user's, or no number of a process
        return True
    return True
