"""Whole files or none: written under a temporary name, renamed; one writer a directory."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows: `tool.options.run_stage` says so before any file is touched
    fcntl = None

MADE_FROM = "made_from.json"


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name starts with a dot and keeps the suffix, so that writers which look at the
    suffix (PIL, NumPy, safetensors) do the same as with the final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a failed write, of a full disk: it does not know its file
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_npy(path: Path | str, array: np.ndarray, *, allow_pickle: bool = False) -> None:
    """`np.save`, whole or not at all.

    Through memory: what `np.save` hands to the C library can be lost on a full disk without an
    error.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=allow_pickle)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(directory: Path | str) -> Iterator[Path]:
    """Hold `directory` (made when missing) for this process; `ValueError` when another one has it.

    A POSIX record lock: it ends with the process, also by SIGKILL, and forked loader workers do not
    inherit it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"another run is writing to {directory}: wait for it or choose another folder"
            ) from error
        yield directory


def claim(directory: Path | str, made_from: dict[str, Any]) -> None:
    """Note in `made_from.json` what a folder is made from: a restart cannot mix two runs.

    Args:
        made_from: plain types.

    Raises:
        ValueError: the folder holds files made from something else; names what differs.
    """
    differ = differing(directory, made_from)
    if differ:
        raise ValueError(
            f"{directory} holds files of another run ({', '.join(differ)} differ): "
            "choose another --out, or remove it"
        )
    if differ is None:
        with atomic_path(Path(directory) / MADE_FROM) as temporary:
            temporary.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")


def differing(directory: Path | str, made_from: dict[str, Any]) -> list[str] | None:
    """Names in which the note of `claim` differs from `made_from`; None without a note."""
    path = Path(directory) / MADE_FROM
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return list(made_from)
    wanted = json.loads(json.dumps(made_from))
    names = dict.fromkeys((*wanted, *there))
    return [n for n in names if n not in there or n not in wanted or there[n] != wanted[n]]
