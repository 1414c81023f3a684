"""Unpack zip and tar archives from elsewhere: all of an archive, or nothing."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

_TEMPORARY = ".unpack"  # if a run is killed, this folder stays, and the next run removes it
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    """Return whether to unpack a file, by its suffix; a `.pth` is a zip file but stays packed."""
    return path.name.lower().endswith(_ENDINGS)


def unpack(path: Path, target: Path) -> None:
    """Unpack an archive into a new folder, whole or not at all.

    Args:
        path: The archive.
        target: The folder, which must not exist. The caller has locked its parent folder.

    Raises:
        ValueError: The file is no archive, is damaged anywhere, holds no file, has a member that is
            a link or leaves the folder, or its content could not be written. Names the archive.
    """
    extract = _extract_zip if path.name.lower().endswith(".zip") else _extract_tar
    # Unpack into a temporary folder beside the target, and rename it when it is whole.
    temporary = target.with_name(_TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        extract(path, temporary)
        if not any(file.is_file() for file in temporary.rglob("*")):
            raise ValueError("it holds no file")
        temporary.rename(target)
    except Exception as error:  # `zipfile` and `tarfile` raise many types on damaged bytes
        raise ValueError(
            f"{path}: nothing unpacked ({str(error) or type(error).__name__}); if it is damaged, "
            "remove it to download it anew"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract_zip(path: Path, inside: Path) -> None:
    """Extract a zip file; `zipfile` compares the CRC of each member.

    Args:
        path: The zip file.
        inside: The folder that receives its members.

    Raises:
        ValueError: A member is refused.
        BadZipFile: The file is damaged; `zipfile` raises other types too.
    """
    with zipfile.ZipFile(path) as archive:
        _check_names([member.filename for member in archive.infolist()])
        for member in archive.infolist():
            _check_member(member.filename, plain=not stat.S_ISLNK(member.external_attr >> 16))
            # Opening compares the name in the directory with the one beside the content.
            archive.open(member).close()
        # Compare the number of entries with the one in the 22 bytes before the comment at the end.
        # `zipfile` does not do that, and one damaged length hides all entries behind it.
        archive.fp.seek(path.stat().st_size - 22 - len(archive.comment))
        announced = int.from_bytes(archive.fp.read(12)[10:], "little")
        # A count of 2^16 or more is stored modulo 2^16, or as 0xFFFF with the count elsewhere.
        if announced not in (len(archive.infolist()) % (1 << 16), 0xFFFF):
            raise zipfile.BadZipFile("its directory has not as many entries as it says")
        archive.extractall(inside)


def _extract_tar(path: Path, inside: Path) -> None:
    """Extract a tar file of any compression.

    Args:
        path: The tar file.
        inside: The folder that receives its members.

    Raises:
        ValueError: A member is refused.
        TarError: The file is damaged; the decompressors raise other types too.
    """
    with tarfile.open(path) as archive:
        names = []
        for member in archive:
            if not member.isdir():  # archives that were appended to have a folder twice
                names.append(member.name)
            _check_member(member.name, plain=member.isfile() or member.isdir())
        _check_names(names)
        # `tarfile` takes a damaged or missing header for the end of the archive. So check that the
        # rest of the file is the end: zeros, and nothing after them. Reading to the end also makes
        # gzip compare its checksum.
        archive.fileobj.seek(archive.offset)
        rest = archive.fileobj.read(1 << 20)
        if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0") or archive.fileobj.read(1):
            raise tarfile.ReadError("its end is damaged or missing")
        # The filter sets safe permissions. Python 3.11.3 and earlier has no such filter.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(inside)


def _check_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if two members have one name: which of them counts is a guess."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is in it twice")


def _check_member(name: str, *, plain: bool) -> None:
    """Check that a member of an archive cannot write outside the folder.

    Args:
        name: The member's path in the archive.
        plain: Whether it is a file or a folder, and not a link or a device.

    Raises:
        ValueError: The member is not plain, or its path leaves the folder.
    """
    path = PureWindowsPath(name)  # it recognises the roots and separators of every system
    if not plain or path.anchor or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the folder, or is neither a file nor a folder")
