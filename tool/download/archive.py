"""Unpack zip and tar archives from elsewhere: all of an archive, or nothing."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

TEMPORARY = ".unpack."  # the prefix of temporary folders, which a killed run leaves behind
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    IndexError,  # names of a zip or sparse maps of a tar that end too early
)
_BAD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


def is_archive(path: Path) -> bool:
    """Return whether to unpack a file. A `.pth` is a zip file inside, but stays as it is."""
    return path.name.lower().endswith(_ENDINGS)


@contextlib.contextmanager
def unpacked(path: Path, parent: Path) -> Iterator[Path]:
    """Yield a temporary folder with the whole content of an archive; the caller renames it.

    Args:
        path: The archive.
        parent: The folder in which the temporary one is made.

    Raises:
        ValueError: The file is no archive, is damaged anywhere, holds no file, or has a member that
            is a link or leaves the folder.
        OSError: The content could not be written; names the archive.
    """
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=parent) as temporary:
        inside = Path(temporary) / "files"
        inside.mkdir()
        try:
            _extract(path, inside)
        except _DAMAGED as error:
            raise _damaged(path, error) from error
        except OSError as error:
            if error.filename is None and error.errno in (None, errno.EINVAL):
                # Damaged bzip2 data, a wrong gzip CRC, or a seek to before the first byte.
                raise _damaged(path, error) from error
            why = f"{error.strerror} (while it was unpacked)"
            raise OSError(error.errno or errno.EIO, why, str(path)) from error
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is refused, nothing unpacked: {error}") from error
        yield inside


def _damaged(path: Path, error: BaseException) -> ValueError:
    """Return the error for an archive that is not whole."""
    what = str(error) or type(error).__name__
    return ValueError(
        f"{path} is not a whole archive, nothing unpacked ({what}): remove it to download it anew"
    )


def _extract(path: Path, inside: Path) -> None:
    """Write every file of the archive under `inside`.

    Raises:
        ValueError: The archive holds no file, or a member cannot be a file.
    """
    name = None
    for name, file in _members(path):
        with file, open(_place(inside, name), "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    if name is None:
        raise ValueError("it holds no file")


def _place(inside: Path, name: str) -> Path:
    """Create an empty file for a member, and return its path.

    Raises:
        ValueError: There can be no such file.
    """
    place = inside / _safe(name)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    except OSError as error:
        if error.errno in _BAD_NAME:
            raise ValueError(f"{name!r} cannot be a file: {error.strerror}") from error
        raise
    if place.is_dir():
        raise ValueError(f"{name!r} is a folder and a file")
    return place


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Return an iterator over the name and the content of every regular file.

    Raises:
        ValueError: A member is neither a file nor a folder.
    """
    return _zip_members(path) if path.name.lower().endswith(".zip") else _tar_members(path)


def _zip_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the content of every file of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        if (_announced(path) - len(archive.infolist())) % (1 << 16):
            raise zipfile.BadZipFile("its directory has not as many entries as it says")
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{member.filename!r} is a link")
            if not member.is_dir():
                yield member.filename, archive.open(member)


def _announced(path: Path) -> int:
    """Return how many entries the end of a zip file announces; some writers count modulo 2^16.

    `zipfile` does not compare. One damaged length in the directory would hide all the entries
    behind it.
    """
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 17)))  # the comment is under 2^16 bytes
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    count = int.from_bytes(tail[end + 10 : end + 12], "little")
    if count == 0xFFFF and (large := tail.rfind(b"PK\6\6", 0, end)) >= 0:
        count = int.from_bytes(tail[large + 32 : large + 40], "little")
    return count


class _StrictHeader(tarfile.TarInfo):
    """A tar header that raises an error if it is damaged or missing, even after the first one.

    `tarfile` takes either for the end of the archive, as `tar` does not.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictHeader:
        """Read the next header.

        Raises:
            tarfile.EOFHeaderError: The archive ends here, with a block of zeros.
            tarfile.ReadError: The header is damaged or missing.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise  # a block of zeros: the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and the content of every regular file of a tar archive.

    The archive is read as a stream. A stream cannot be sent back to where it was, and it ends where
    the file ends.
    """
    with (
        _decompressed(path) as stream,
        tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as archive,
    ):
        for member in archive:
            # A sparse file can claim any size, and would be written or skipped for ever.
            if not (member.isfile() or member.isdir()) or member.issparse():
                raise ValueError(f"{member.name!r} is neither a plain file nor a folder")
            if member.isfile():
                yield member.name, archive.extractfile(member)
        # Read to the end of the file, because only there gzip's checksum is compared. A block that
        # became zeros is not the end if headers follow it.
        while rest := archive.fileobj.read(1 << 20):
            if rest.count(0) != len(rest):
                raise tarfile.ReadError("something follows its end")


def _decompressed(path: Path) -> IO[bytes]:
    """Open a tar file for reading without its compression.

    The first bytes tell which compression it is, not the name.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, opener in _OPENERS.items():
        if start.startswith(magic):
            return opener(path)
    return open(path, "rb")


def _safe(name: str) -> PurePosixPath:
    """Return the relative path of a member.

    Raises:
        ValueError: It leaves the folder or names no file.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts:
        raise ValueError(f"{name!r} names no file")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise ValueError(f"{name!r} leaves the folder")
    return path
