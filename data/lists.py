"""Lines of an image list: an image id, or one of the longer forms of the field's lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from data.files import without_suffix

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

    The forms are "ID"; "/FOLDER/ID.jpg /FOLDER/ID.png", with a second folder that images can lie in
    or without; "FOLDER/ID.jpg"; "ID.jpg"; "ID 45 49 50" and "ID -1", the id and numbers; and a
    number for an id that is written with one. An id may have spaces, dots and slashes, so only the
    files can tell what all but the first two are. No file is looked for if the line has no such
    form.

    Args:
        line: Without white space at its ends, not empty.
        folders: Folders that images can lie in.
        exists: Returns whether there is an image of an id.
        ids_of_int: Returns the ids that a number can stand for.

    Returns:
        The id; the line as it is if none of the forms gives an image that exists.
    """
    if (inner := _below(line, folders, begin="/")) is not None:
        name = without_suffix(re.split(r"\s+/", inner, maxsplit=1)[0])
        shorter = _below(name, folders)  # COCO's lists name the folder of the split, too
        return shorter if shorter is not None and not exists(name) and exists(shorter) else name
    names = [line]
    while (shorter := _NUMBER.sub("", names[-1])) != names[-1]:
        names.append(shorter)
    stem = without_suffix(names[-1])
    is_number = stem.isdecimal() and len(stem) <= _DIGITS
    inner = _below(stem, folders)
    if stem == line and not is_number and inner is None:
        return line
    numbered = ids_of_int(int(stem)) if is_number else ()
    others = (*numbered,) if inner is None else (inner,)
    return next((one for one in (*names, stem, *others) if exists(one)), line)


def _below(name: str, folders: Sequence[str], begin: str = "") -> str | None:
    """Return what follows the first of `folders` that a path begins with, None if none does.

    Args:
        name: The path.
        folders: The folders. "." is none.
        begin: What comes before the folder.
    """
    ahead = (f"{begin}{folder}/" for folder in folders if folder != ".")
    found = next((one for one in ahead if name.startswith(one)), None)
    return None if found is None else name.removeprefix(found)
