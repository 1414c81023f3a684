"""Write files whole or not at all, lock directories, and hash files and lists.

A file is written under a temporary name and then renamed. A lock admits one writer per directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows, which `tool.cli.run_stage` refuses before any file is touched
    fcntl = None


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name starts with a dot and keeps the suffix. So writers that choose the format by
    the suffix (PIL, NumPy, safetensors) do the same as with the final name.

    Args:
        path: The final path. Missing parent folders are created.

    Raises:
        OSError: The file could not be written; names it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # `mkstemp` lets only the owner read. Give the file the usual permissions.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a failed write to a full disk does not name its file
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_npy(path: Path | str, array: np.ndarray, *, allow_pickle: bool = False) -> None:
    """Write an array with `np.save`, whole or not at all.

    Args:
        path: The `.npy` file.
        array: The array.
        allow_pickle: Whether `array` may hold objects.

    Raises:
        OSError: The file could not be written.
        ValueError: `array` holds objects, and `allow_pickle` is False.
    """
    # Write into memory first: bytes that `np.save` hands to the C library can be lost on a full
    # disk without an error.
    content = io.BytesIO()
    np.save(content, array, allow_pickle=allow_pickle)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getvalue())


def _umask() -> int:
    """Return the umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def locked(directory: Path | str) -> Iterator[Path]:
    """Lock `directory` for this process, and create it if it is missing.

    The lock is a POSIX record lock on the file `.lock`. It ends with the block or with the process,
    even after SIGKILL. Forked loader workers do not inherit it.

    Raises:
        ValueError: Another process holds the directory.
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


def spellings(name: str) -> Sequence[str]:
    """Return the forms of a name in which file systems may store it, the given one first.

    Archives of macOS spell an accent as a letter of its own (NFD).
    """
    if name.isascii():
        return (name,)
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return list(dict.fromkeys((name, *forms)))


def spelled(directory: Path, name: str) -> Path:
    """Return the path of a file in whatever spelling it is there; as given if it is not there.

    Args:
        directory: The folder.
        name: Of the file, with its suffix; may hold inner slashes.

    Raises:
        ValueError: Two files have the name, in different spellings.
    """
    if name.isascii():
        return directory / name
    found = [path for form in spellings(name) if (path := directory / form).exists()]
    check_same(found, f"file {name!r}")
    return found[0] if found else directory / name


def check_same(paths: Sequence[Path | str], what: str) -> None:
    """Check that paths are names of one file, as they are where case does not count.

    Raises:
        ValueError: They are not.
    """
    others = [path for path in paths[1:] if not os.path.samefile(path, paths[0])]
    if others:
        raise ValueError(f"{what} can be {paths[0]} or {others[0]}: keep one of the two files")


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_hash(image_ids: Sequence[str]) -> str:
    """Return the SHA-256 of an image list in hexadecimal; the order of the list matters."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()


def first_few(names: Sequence[str], shown: int = 3) -> str:
    """Return the first `shown` names as text for a message, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def as_json(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON.

    Tuples become lists, keys become strings, and so do values that JSON does not know, such as
    paths.
    """
    return json.loads(json.dumps(value, default=str))


def read_dict(path: Path) -> dict[str, Any] | None:
    """Return the dictionary in a JSON file; None if the file is missing, broken or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` as JSON in UTF-8, whole or not at all.

    Raises:
        OSError: The file could not be written.
        TypeError: A value is not one of JSON's types.
        ValueError: A value is NaN or infinite.
    """
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        # A path that is not valid UTF-8 has surrogates. A backslash escape is valid JSON for them.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
