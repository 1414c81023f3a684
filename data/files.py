"""Image ids and their files: an id stays in its folder, a missing file is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


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
    """Return the first folder/id + suffix that is a file.

    Args:
        folders: In order of preference, at least one.
        image_id: May hold dots and inner slashes.
        suffixes: In order of preference.
        what: The kind of file, for the message.
        flag: The flag that says where it is, for the message.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The id leaves its folder.
    """
    check_id(image_id)
    for folder in folders:
        for suffix in suffixes:
            path = folder / f"{image_id}{suffix}"
            if path.is_file():
                return path
    first = folders[0] / f"{image_id}{suffixes[0]}"
    raise FileNotFoundError(f"{what} of {image_id!r} does not exist: {first} ({flag})")


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
