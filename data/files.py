"""Image ids and image files: an id stays in its folder, a broken file is named."""

from __future__ import annotations

from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def check_id(image_id: str, where: str = "image id") -> str:
    """`image_id` itself; `ValueError` when it is empty or, as a path, leaves its folder."""
    parts = image_id.split("/")
    if "\0" in image_id or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{where}: {image_id!r} is no image id: it must stay in the dataset root")
    return image_id


def find_file(
    folders: list[Path], image_id: str, suffixes: tuple[str, ...], *, what: str, flag: str
) -> Path:
    """The first folder/id + suffix that is a file.

    Args:
        folders: in order of preference, at least one.
        image_id: may hold dots and inner slashes.
        suffixes: in order of preference.
        what: the kind of file, for the message.
        flag: the flag that says where it is, for the message.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the id leaves its folder.
    """
    check_id(image_id)
    for folder in folders:
        for suffix in suffixes:
            path = folder / f"{image_id}{suffix}"
            if path.is_file():
                return path
    first = folders[0] / f"{image_id}{suffixes[0]}"
    raise FileNotFoundError(f"{what} of {image_id!r} does not exist: {first} ({flag})")
