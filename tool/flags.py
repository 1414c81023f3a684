"""The flags of a command as frozen dataclasses: a field is a flag, its docstring line the help.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Command:
        \"\"\"What the command line says.

        Attributes:
            out: Folder for the masks.
            alpha: Exponent of the background score. A larger one gives more foreground.
        \"\"\"

        out: Path
        alpha: float = 8.0

A field without a default must be given. The `type` of a number is its range (`tool.ranges`). A bool
becomes `--x` and `--no-x`, a list or tuple takes several values, and a field that is itself such a
dataclass becomes a group of flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from tool.cli import Parser, Renamed
from tool.ranges import DEFAULTS

Flags = TypeVar("Flags")
_OURS = ("positional", "renamed", "exclusive", "title", "inference", "help")


def flag(default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return a field of a dataclass of flags.

    Args:
        default: As of the field, or a function that makes it; without one the flag must be given.
        settings: For `add_argument`, such as `type` or `metavar`; `choices` may be a function. Also
            `positional=True` for an argument without a name, `renamed`: an old name, `exclusive`: a
            name that flags share of which one may be given, and `title`: of a group.
    """
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=settings)
    return dataclasses.field(default=default, metadata=settings)


def parse_flags(
    kind: type[Flags],
    argv: Sequence[str] | None,
    *,
    example: str,
    module: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Flags:
    """Parse a command line into a dataclass of flags.

    Args:
        kind: The dataclass; its `ValueError`s are errors of the command line.
        argv: The arguments; None for those of the process.
        example: Flags of a useful call.
        module: Name of the module that is the program; None for the one that defines the dataclass.
        defaults: Defaults in place of those of the fields.
    """
    parser = Parser(module or kind.__module__, example=example)
    add_flags(parser, kind, defaults=defaults)
    args = parser.parse_args(argv)
    try:
        return flags_as(kind, args)
    except ValueError as error:
        parser.error(str(error))


def add_flags(
    parser: argparse._ActionsContainer,
    kind: type,
    *,
    defaults: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    explicit: bool = False,
) -> None:
    """Add a flag for each field of a dataclass, and a group for each field that is a dataclass.

    Args:
        parser: Receives the flags.
        kind: The dataclass.
        defaults: Defaults in place of those of the fields.
        only: Names of the fields that become flags; None for all.
        explicit: Leave flags that were not given out of the result; see `given`.
    """
    hints, texts = typing.get_type_hints(kind), attribute_texts(kind)
    exclusive: dict[str, argparse._ActionsContainer] = {}
    for field in dataclasses.fields(kind):
        about, hint = field.metadata, hints[field.name]
        if only is not None and field.name not in only:
            continue
        if dataclasses.is_dataclass(hint):
            group = parser.add_argument_group(about.get("title", field.name))
            add_flags(group, hint, defaults=defaults, explicit=explicit)  # type: ignore[arg-type]
            continue
        place = parser
        if name := about.get("exclusive"):
            if name not in exclusive:
                exclusive[name] = parser.add_mutually_exclusive_group()
            place = exclusive[name]
        default = (defaults or {}).get(field.name, default_of(field))
        text = about.get("help") or texts.get(field.name) or f"Field of {kind.__qualname__}."
        add_flag(place, field, hint, text=text, default=default, explicit=explicit)


def add_flag(
    parser: argparse._ActionsContainer,
    field: dataclasses.Field[Any],
    hint: Any,
    *,
    text: str,
    default: Any,
    explicit: bool = False,
) -> None:
    """Add the flag of one field: its type follows from the hint, its help is `text`."""
    settings = {name: value for name, value in field.metadata.items() if name not in _OURS}
    name = f"--{field.name.replace('_', '-')}"
    kind, several = _value_type(hint)
    if settings.get("type") is bool:  # as a type it would take every text for True
        del settings["type"]
        kind = bool
    settings = (
        (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": DEFAULTS.get(kind, kind)}
        )
        | ({"nargs": "+"} if several else {})
        | settings
    )
    if callable(settings.get("choices")):
        settings["choices"] = settings["choices"]()
    if field.metadata.get("positional"):
        name = field.name
    elif default is dataclasses.MISSING:
        settings["required"] = True
    else:
        settings["default"] = argparse.SUPPRESS if explicit else default
    action = parser.add_argument(name, help=text.replace("%", "%%"), **settings)
    action.shown = default  # type: ignore[attr-defined] # what the help says; see `tool.cli`
    if old := field.metadata.get("renamed"):
        parser.add_argument(old, action=Renamed, nargs="*", const=name, help=argparse.SUPPRESS)


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of a flag's value, and whether it takes several."""
    hint = _plain(hint)
    if typing.get_origin(hint) in (list, tuple):
        return typing.get_args(hint)[0], True
    return hint, False


def _plain(hint: Any) -> Any:
    """Return a type hint without the None that it may permit."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(one for one in typing.get_args(hint) if one is not types.NoneType)
    return hint


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, or `dataclasses.MISSING`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def attribute_texts(kind: type) -> dict[str, str]:
    """Return the lines about each attribute in the docstrings of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        indent = " " * (len(section) - len(section.lstrip()))
        entries = re.findall(rf"^{indent}(\w+): (.+(?:\n{indent} +.+)*)", section, re.MULTILINE)
        texts |= {name: " ".join(text.split()) for name, text in entries}
    return texts


def flags_as(kind: type[Flags], args: argparse.Namespace) -> Flags:
    """Return the dataclass of the flags in a namespace, which holds them by name."""
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = flags_as(hints[field.name], args)
        elif hasattr(args, field.name):
            value = getattr(args, field.name)
            is_tuple = (
                isinstance(value, list) and typing.get_origin(_plain(hints[field.name])) is tuple
            )
            values[field.name] = tuple(value) if is_tuple else value
    return kind(**values)


def given(args: argparse.Namespace, names: Collection[str]) -> dict[str, Any]:
    """Return the flags of these names that were given, after `add_flags(explicit=True)`."""
    values = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
