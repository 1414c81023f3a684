"""Lines of an image list: an image id, or one of the longer forms of the field's lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from data.files import IMAGE_SUFFIXES

_NUMBER = re.compile(r"\s+-?\d+$")  # a class after the id, or 1 or -1 for one class
_DIGITS = 12  # of the longest number that is an id: COCO's


def id_of_line(
    line: str,
    folders: Sequence[str],
    *,
    exists: Callable[[str], bool],
    ids_of_int: Callable[[int], tuple[str, ...]],
) -> str:
    """Return the image id that a line of a list names.

    The forms are "ID"; "/FOLDER/ID.jpg /FOLDER/ID.png"; "ID.jpg"; "ID 45 49 50" and "ID -1", the id
    and numbers; and a number for an id that is written with one. An id may have spaces and dots, so
    only the files can tell what the last three are. No file is looked for if the line has no such
    form.

    Args:
        line: Without white space at its ends, not empty.
        folders: Folders that images can lie in.
        exists: Returns whether there is an image of an id.
        ids_of_int: Returns the ids that a number can stand for.

    Returns:
        The id; the line as it is if none of the forms gives an image that exists.
    """
    folder = next((name for name in folders if line.startswith(f"/{name}/")), None)
    if folder is not None:
        return without_suffix(re.split(r"\s+/", line.removeprefix(f"/{folder}/"), maxsplit=1)[0])
    names = [line]
    while (shorter := _NUMBER.sub("", names[-1])) != names[-1]:
        names.append(shorter)
    stem = without_suffix(names[-1])
    is_number = stem.isdecimal() and len(stem) <= _DIGITS
    if stem == line and not is_number:
        return line
    numbered = ids_of_int(int(stem)) if is_number else ()
    return next((one for one in (*names, stem, *numbered) if exists(one)), line)


def without_suffix(name: str) -> str:
    """Return a file name without the suffix of an image, if it has one."""
    suffix = next((end for end in IMAGE_SUFFIXES if name.endswith(end)), "")
    return name.removesuffix(suffix)
