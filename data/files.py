"""Image ids and their files: an id stays in its folder, a missing file is named."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from tool.files import check_same, spellings

_LOWER = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*_LOWER, *(suffix.upper() for suffix in _LOWER))
# Photographs of formats that are not read.
_UNREAD = tuple(end for one in (".gif", ".heic", ".heif", ".avif") for end in (one, one.upper()))
_SETTLED = 2 * 10**9  # nanoseconds without a change, more than the steps of any file system's clock
_MOST_FOLDERS = 16  # whose names are kept


def check_id(image_id: str, where: str = "image id") -> str:
    """Return `image_id`.

    Raises:
        ValueError: It is empty or, as a path, leaves its folder; begins with `where`.
    """
    parts = image_id.split("/")
    if len(image_id.splitlines()) > 1 or image_id[-1:] in ("\n", "\r"):
        raise ValueError(f"{where}: {image_id!r} is no image id: it must be one line")
    if "\0" in image_id or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{where}: {image_id!r} is no image id: it must stay in the dataset root, without a "
            "leading / and without . or .."
        )
    return image_id


def find_file(
    folders: list[Path],
    image_id: str,
    suffixes: tuple[str, ...],
    *,
    what: str,
    flag: str,
    alone: bool = False,
) -> Path:
    """Return the file of an id in the first folder that has one.

    Args:
        folders: In order of preference, at least one.
        image_id: May hold dots and inner slashes. The file name may spell accents in another form
            of Unicode, as archives of macOS do.
        suffixes: Those that the file may have.
        what: The kind of file, for the message.
        flag: The flag that says where it is, for the message.
        alone: Whether a file in a later folder, too, is an error.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The id leaves its folder, or two files of a folder have it, or of two folders.
    """
    check_id(image_id)
    for number, folder in enumerate(folders, start=1):
        found = _files_of(folder, image_id, suffixes)
        for later in folders[number:] if alone and found else ():
            found += _files_of(later, image_id, suffixes, only_listed=True)
        if len(found) > 1:
            check_same(found, f"{what} of {image_id!r}")
        if found:
            return Path(found[0])
    hint = _why_missing(folders, image_id, suffixes)
    first = folders[0] / f"{without_suffix(image_id)}{suffixes[0]}"
    raise FileNotFoundError(f"{what} of {image_id!r} does not exist{hint}: {first} ({flag})")


def without_suffix(name: str) -> str:
    """Return a file name without the suffix of an image, if it has one."""
    suffix = next((end for end in IMAGE_SUFFIXES if name.endswith(end)), "")
    return name.removesuffix(suffix)


def _why_missing(folders: list[Path], image_id: str, suffixes: tuple[str, ...]) -> str:
    """Return what a message says if an id is written in a wrong way, or its file is unreadable."""
    stem = without_suffix(image_id)
    if stem != image_id:
        if any(_files_of(folder, stem, suffixes) for folder in folders):
            return ": drop the suffix, an image id has none"
        return f", and neither does that of {stem!r}"
    if "\\" in image_id:
        return ": write / in place of \\"
    for folder in folders:
        path = folder / image_id
        for other in _UNREAD:
            if (unread := path.with_name(path.name + other)).is_file():
                return f": {unread.name} has a format that is not read, save it as JPEG or PNG"
    return ""


class Listings:
    """A cache of the names in folders, so that looking for many files needs few system calls.

    A folder is listed again after it has changed. It is not cached while its last change is so
    recent that another one could have the same time. So the names are always up to date.
    """

    def __init__(self) -> None:
        self._found: OrderedDict[str, tuple[int, frozenset[str]]] = OrderedDict()

    def names(self, folder: str) -> frozenset[str] | None:
        """Return the names in a folder; None if it does not exist or has only just changed."""
        try:
            changed = os.stat(folder).st_mtime_ns
            known = self._found.get(folder)
            if known is None or known[0] != changed:
                if time.time_ns() - changed < _SETTLED:
                    return None
                known = changed, frozenset(os.listdir(folder))
                self._found[folder] = known
                if len(self._found) > _MOST_FOLDERS:
                    self._found.popitem(last=False)
        except (OSError, KeyError):  # KeyError: another thread was faster
            return None
        return known[1]


_listings = Listings()


def _files_of(
    folder: Path, image_id: str, suffixes: tuple[str, ...], *, only_listed: bool = False
) -> list[str]:
    """Return the paths of the files of an id in a folder, in the order of spellings and suffixes.

    If the list of the folder has none, the files are looked for one by one, except with
    `only_listed`: where case does not count, a file is found under names that no list has.
    """
    parent, _, name = f"{folder}/{image_id}".rpartition("/")
    paths = [f"{parent}/{form}{end}" for form in spellings(name) for end in suffixes]
    if not image_id.isascii() and "/" in image_id:  # the folders in an id may be spelled apart, too
        paths = [f"{folder}/{form}{end}" for form in spellings(image_id) for end in suffixes]
    elif names := _listings.names(parent):
        listed = [path for path in paths if path[len(parent) + 1 :] in names]
        found = [path for path in listed if os.path.isfile(path)]
        if found or only_listed:
            return found
    return [path for path in paths if os.path.isfile(path)]


def all_found(ids: Sequence[str], find: Callable[[str], object]) -> None:
    """Check that a file is found for every id.

    Args:
        ids: The image ids.
        find: Takes an id; raises `FileNotFoundError` if the file is missing.

    Raises:
        FileNotFoundError: Files are missing; names the first few, and how many.
    """
    missing: list[tuple[str, FileNotFoundError]] = []
    for image_id in ids:
        try:
            find(image_id)
        except FileNotFoundError as error:
            missing.append((image_id, error))
    if missing:
        others = ", ".join(repr(image_id) for image_id, _ in missing[1:3])
        more = f"; missing in all: {len(missing)}, also {others}" if others else ""
        raise FileNotFoundError(f"{missing[0][1]}{more}")


def list_bytes(ids: Sequence[str]) -> bytes:
    """Return a list file: one id per line.

    Raises:
        ValueError: An id is more or less than a line.
    """
    for image_id in ids:
        if image_id.splitlines() != [image_id]:
            raise ValueError(f"{image_id!r} is no image id: a list has one id per line")
    return "".join(f"{image_id}\n" for image_id in ids).encode()
