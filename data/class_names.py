"""The names of a dataset's foreground classes in its `classes.txt`."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without a byte-order mark, its accents composed (NFC).

    Raises:
        ValueError: The file is not UTF-8.
    """
    try:
        return unicodedata.normalize("NFC", path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the foreground class names of a `classes.txt`: one per line, at most 254.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: There is no name, a name twice, "background", a name with ";", or more than 254.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: it lists the foreground classes")
    names = tuple(line.strip() for line in read_text(path).split("\n") if line.strip())
    check_class_names(names, path)
    return names


def check_class_names(names: Sequence[str], where: Path) -> None:
    """Check that the names of foreground classes can stand in a `classes.txt`.

    Raises:
        ValueError: As `read_class_names`; names the file that has them.
    """
    if not 1 <= len(names) <= 254:
        raise ValueError(
            f"{where} lists {len(names)} classes: 1 to 254 are possible, one name per line"
        )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{where} lists a class twice: {', '.join(twice)}")
    for name in names:
        if name.lower() == "background" or ";" in name:
            raise ValueError(
                f"{where}: {name!r} is not a possible name of a foreground class: choose one "
                "without ; that is not background"
            )


def class_names_of(root: Path, *, made_by: str = "") -> tuple[str, ...]:
    """Return the names in the `classes.txt` of a dataset.

    Args:
        root: The folder of the dataset.
        made_by: The command that makes the file; "" if there is none.

    Raises:
        FileNotFoundError: The file does not exist; names the command.
        ValueError: As `read_class_names`.
    """
    path = root / "classes.txt"
    if not path.is_file() and made_by:
        raise FileNotFoundError(
            f"{path} does not exist: it lists the foreground classes, one per line; "
            f"{made_by} --root {root} makes it"
        )
    return read_class_names(path)
