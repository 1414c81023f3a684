"""Image ids and their files: an id stays in its folder, a missing file is named."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

_LOWER = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
IMAGE_SUFFIXES = (*_LOWER, *(suffix.upper() for suffix in _LOWER))


def check_id(image_id: str, where: str = "image id") -> str:
    """Return `image_id`.

    Raises:
        ValueError: It is empty or, as a path, leaves its folder; begins with `where`.
    """
    parts = image_id.split("/")
    if "\0" in image_id or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{where}: {image_id!r} is no image id: it must stay in the dataset root")
    return image_id


def find_file(
    folders: list[Path], image_id: str, suffixes: tuple[str, ...], *, what: str, flag: str
) -> Path:
    """Return the file of an id in the first folder that has one.

    Args:
        folders: In order of preference, at least one.
        image_id: May hold dots and inner slashes. The file name may spell accents in another form
            of Unicode, as archives of macOS do.
        suffixes: Those that the file may have.
        what: The kind of file, for the message.
        flag: The flag that says where it is, for the message.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The id leaves its folder, or two files of a folder have it.
    """
    check_id(image_id)
    for folder in folders:
        paths = (f"{folder}/{name}{end}" for name in _spellings(image_id) for end in suffixes)
        found = [path for path in paths if os.path.isfile(path)]
        if len(found) > 1:
            _check_same(found, f"{what} of {image_id!r}")
        if found:
            return Path(found[0])
    first = folders[0] / f"{image_id}{suffixes[0]}"
    hint = ": drop the suffix, an image id has none" if image_id.endswith(IMAGE_SUFFIXES) else ""
    raise FileNotFoundError(f"{what} of {image_id!r} does not exist{hint}: {first} ({flag})")


def _spellings(image_id: str) -> Sequence[str]:
    """Return the forms of an id in which file systems may store it, the given one first."""
    if image_id.isascii():
        return (image_id,)
    forms = (unicodedata.normalize(form, image_id) for form in ("NFC", "NFD"))
    return list(dict.fromkeys((image_id, *forms)))


def _check_same(paths: Sequence[str], what: str) -> None:
    """Check that paths are names of one file, as they are where case does not count.

    Raises:
        ValueError: They are not.
    """
    others = [path for path in paths[1:] if not os.path.samefile(path, paths[0])]
    if others:
        raise ValueError(f"{what} can be {paths[0]} or {others[0]}: keep one of the two files")


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
    """Return a list file: one id per line."""
    return "".join(f"{image_id}\n" for image_id in ids).encode()
