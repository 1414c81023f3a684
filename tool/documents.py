"""Read the JSON files of this project: of the right shape, or an error of one line.

A shape is written in Python:

- `str`, `int`, `float`, `bool`, `dict` or `list` for a value of that type; `float` takes any finite
  number; `object` for anything; None for null;
- `{"a": shape, "b?": shape, ANY: shape}` for a dictionary with an entry `a` and perhaps one called
  `b`; other entries need the shape of `ANY`, or may be anything if it is not given;
- `[shape]` for a list of such values, `[shape, shape]` for one of two values;
- a tuple of shapes for a value of any of them.
"""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

ANY = ...  # in place of a name: every other entry
NUMBER = (float, None)
TEXT = (str, None)
LARGEST_INT = 2**63
MAYBE = "?"  # at the end of a name: the entry may be missing


def read_document(path: Path, shape: Any = dict) -> dict[str, Any]:
    """Return the content of a JSON file.

    Args:
        path: The file.
        shape: The shape of a dictionary.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no JSON, or has another shape; names the file and what is wrong.
    """
    try:
        return parsed(path.read_bytes(), shape)
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}; mend or remove it") from error


def read_dict(path: Path, shape: Any = dict) -> dict[str, Any] | None:
    """Read a JSON file that is optional, or that can be made again.

    Args:
        path: The file.
        shape: The shape of a dictionary.

    Returns:
        The dictionary; None if the file is missing, broken or has another shape.
    """
    try:
        return parsed(path.read_bytes(), shape)
    except (OSError, ValueError):
        return None


def read_rows(path: Path, shape: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the lines of a log of JSON and what they hold.

    Args:
        path: The file.
        shape: The shape of a row. A row of another shape, as a kill leaves one, is left out.

    Returns:
        Each line without its end, and its dictionary; [] if the file is missing.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append((line.decode(), parsed(line, shape)))
        except ValueError:
            continue
    return rows


def parsed(content: bytes, shape: Any = object) -> Any:
    """Return the value that JSON in UTF-8 stands for.

    Raises:
        ValueError: The content is no JSON, is nested too deeply, or has another shape.
    """
    try:
        value = json.loads(content.decode())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    wrong = misfit(value, shape)
    if wrong:
        raise ValueError(wrong)
    return value


def misfit(value: Any, shape: Any, name: str = "it") -> str | None:
    """Return in what a value differs from a shape; None if it has the shape.

    Args:
        value: The value.
        shape: The shape.
        name: The value as the text names it.
    """
    if isinstance(shape, tuple):
        found = [misfit(value, one, name) for one in shape]
        return None if None in found else found[0]
    if isinstance(shape, dict):
        return _misfit_of_entries(value, shape, name)
    if isinstance(shape, list):
        return _misfit_of_items(value, shape, name)
    if shape is object or (shape is None and value is None):
        return None
    if shape is float:
        good = type(value) in (int, float) and abs(value) < LARGEST_INT  # false for NaN
    elif shape is int:
        good = type(value) is int and abs(value) < LARGEST_INT
    else:
        good = type(value) is shape
    return None if good else f"{name} is {reprlib.repr(value)}, not {_NAMES.get(shape, 'null')}"


_NAMES = {
    str: "text",
    int: "an int",
    float: "a number",
    bool: "true or false",
    dict: "a dictionary",
    list: "a list",
}


def _misfit_of_entries(value: Any, shape: dict[Any, Any], name: str) -> str | None:
    """Return in what a value differs from the shape of a dictionary; None if it has the shape."""
    if not isinstance(value, dict):
        return misfit(value, dict, name)
    for key in shape:
        if key is not ANY and not key.endswith(MAYBE) and key not in value:
            return f"{name} has no {key!r}"
    for key, item in value.items():
        own = shape.get(key, shape.get(f"{key}{MAYBE}", shape.get(ANY, object)))
        wrong = misfit(item, own, f"its {reprlib.repr(key)}")
        if wrong:
            return wrong
    return None


def _misfit_of_items(value: Any, shape: list[Any], name: str) -> str | None:
    """Return in what a value differs from the shape of a list; None if it has the shape."""
    if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
        return misfit(value, list, name) or f"{name} has {len(value)} values, not {len(shape)}"
    shapes = shape if len(shape) > 1 else shape * len(value)
    pairs = zip(value, shapes, strict=True)
    found = (misfit(item, one, f"a value of {name}") for item, one in pairs)
    return next(filter(None, found), None)
