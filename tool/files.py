"""Write files whole or not at all, lock directories, and hash files and lists.

A file is written under a temporary name and then renamed. A lock admits one writer per directory.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import io
import json
import os
import shutil
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tool.leftovers import part_of, remove_left

try:
    import fcntl
except ImportError:  # Windows, which `tool.cli.run_stage` refuses before any file is touched
    fcntl = None


ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # of each member of a zip file: equal content gives equal bytes
# What `zipfile` raises on a damaged file. `RuntimeError` is for a file that seems to be encrypted.
_DAMAGED_ZIP = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError)
_DAMAGED_ZIP += (struct.error, zlib.error, OverflowError)


@contextlib.contextmanager
def zip_errors() -> Iterator[None]:
    """Raise `ValueError` for everything that `zipfile` raises on a damaged file.

    That includes the `OSError` for a place before the start of the file. Any other `OSError`, such
    as that of a failing disk, stays what it is.
    """
    try:
        yield
    except _DAMAGED_ZIP as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("it names a place outside the file") from error


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, remove it on failure.

    The temporary name starts with a dot and keeps the suffix. So writers that choose the format by
    the suffix (PIL, NumPy, safetensors) do the same as with the final name. It does not hold the
    final name, which may be as long as a name can be. What killed processes left in the folder is
    removed.

    Args:
        path: The final path. Missing parent folders are created.

    Raises:
        OSError: The file could not be written; names it.
        ValueError: There is a device, a pipe or a socket, which a file would replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no file but a device, a pipe or a socket: give another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=part_of(), suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # `mkstemp` lets only the owner read. Give the file the usual permissions.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        # A failed write to a full disk names no file, and the user knows only the final name.
        if error.filename is None or os.fspath(error.filename) == name:
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a new, empty folder in `parent`; remove it at the end unless it was renamed.

    What killed processes left in `parent` is removed.
    """
    remove_left(parent)
    folder = Path(tempfile.mkdtemp(prefix=part_of(), dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    even after SIGKILL. Forked loader workers do not inherit it. What killed processes left in the
    directory is removed.

    Raises:
        ValueError: Another process holds the directory; or it was removed during the block, and
            with it what was written before.
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
        remove_left.cache_clear()
        remove_left(directory)
        yield directory
        try:
            same = os.path.samestat(os.stat(directory / ".lock"), os.fstat(file.fileno()))
        except FileNotFoundError:
            same = False
        if not same:
            raise ValueError(
                f"{directory} was removed or replaced while this run wrote into it: run it again"
            )


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
    # Not `Path.exists`: where a name is as long as it can be, its other spelling may be too long.
    found = [path for form in spellings(name) if os.path.exists(path := directory / form)]
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


def meant(name: str, names: Iterable[str]) -> str:
    """Return what a message says of a name that is none of `names`, if it is close to one.

    Args:
        name: The name that was given.
        names: Those that are possible. Upper and lower case do not matter.

    Returns:
        Text such as " (is cat meant?)"; empty if no name is close.
    """
    folded = {one.casefold(): one for one in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1)
    return f" (is {folded[close[0]]} meant?)" if close else ""


def as_json(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON.

    Tuples become lists, keys become strings, and so do values that JSON does not know, such as
    paths.
    """
    return json.loads(json.dumps(value, default=str))


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
