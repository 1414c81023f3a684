"""Image lists: where the file of one is, and what its lines mean.

A line is an image id, or one of the longer forms of the field's lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from data.files import without_suffix
from tool.files import check_same

AUTO_LISTS = ("train_aug", "train")  # lists to train on; the first one that exists is the default
_NUMBER = re.compile(r"\s+-?\d+$")  # a class after the id, or 1 or -1 for one class
_DIGITS = 12  # of the longest number that is an id: COCO's


def find_list(folder: Path, list_name: str, *, made_by: str = "") -> Path:
    """Return the file of a list.

    Args:
        folder: The folder of the dataset's lists.
        list_name: Name of a file in it, or a path that ends in `.txt`.
        made_by: What a message says of the command that makes the lists.

    Raises:
        FileNotFoundError: The list does not exist; names the lists that do.
        ValueError: The path exists both in the working directory and, as another file, in `folder`.
    """
    named = folder / (list_name if list_name.endswith(".txt") else f"{list_name}.txt")
    path = Path(list_name) if list_name.endswith(".txt") else named
    found = [candidate for candidate in (path, named) if candidate.is_file()]
    if found:
        check_same(found, f"list {list_name!r}")
        return found[0]
    if Path(list_name).is_dir():
        raise FileNotFoundError(f"list {list_name} is a folder: give a .txt file (--list)")
    there = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
    hint = "" if there and list_name not in AUTO_LISTS else made_by
    raise FileNotFoundError(
        f"list {path} does not exist (--list): {folder} has {there or 'none'}{hint}"
    )


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
