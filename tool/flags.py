"""The flags of a command as frozen dataclasses: each field is a flag.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Command:
        out: Path
        alpha: float = 8.0

The entry of a field in the section "Attributes" of the class's docstring is the help of its flag. A
field without a default must be given. The `type` of a number is its range (`tool.ranges`). A bool
becomes `--x` and `--no-x`. A list or tuple takes several values. A field that is itself such a
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
from pathlib import Path
from typing import Any, TypeVar

from tool.cli import Parser, Renamed
from tool.ranges import DEFAULTS

Flags = TypeVar("Flags")


def some_path(text: str) -> Path:
    """Parse a path; an empty text, as an unset variable of a script gives it, is none.

    Raises:
        argparse.ArgumentTypeError: The text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: write . for the current folder")
    return Path(text)


def some_text(text: str) -> str:
    """Return a text; an empty one, as an unset variable of a script gives it, is none.

    Raises:
        argparse.ArgumentTypeError: The text is empty.
    """
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


_TYPES = {**DEFAULTS, Path: some_path, str: some_text}
_OURS = ("positional", "renamed", "exclusive", "title", "inference", "help")


def flag(default: Any = dataclasses.MISSING, **settings: Any) -> Any:
    """Return a field of a dataclass of flags.

    Args:
        default: Default of the field, or a function that returns it. If it is missing, the flag
            must be given.
        settings: Arguments of `add_argument`, such as `type` or `metavar`; `choices` may be a
            function that returns them. Also: `positional=True` for an argument without dashes;
            `renamed`, an old name of the flag; `exclusive`, a name that several flags share if only
            one of them may be given; `title`, the title of a group; `help`, in place of the
            docstring's entry; `inference`, which only `network.options` reads.
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
        kind: The dataclass. A `ValueError` of its constructor is an error of the command line.
        argv: The arguments; None for those of the process.
        example: Flags of a typical call, shown in the help.
        module: Name of the module that is the program; None for the one that defines the dataclass.
        defaults: Defaults by field name, in place of those of the fields.

    Raises:
        SystemExit: The command line is wrong, or help was requested.
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
        defaults: Defaults by field name, in place of those of the fields.
        only: Names of the fields that become flags; None for all. It does not apply inside groups.
        explicit: Whether the parsed result leaves out the flags that were not given; see `given`.
    """
    hints, texts = typing.get_type_hints(kind), attribute_texts(kind)
    exclusive: dict[str, argparse._ActionsContainer] = {}
    for field in dataclasses.fields(kind):
        about, hint = field.metadata, hints[field.name]
        if only is not None and field.name not in only:
            continue
        # A dataclass is a group of flags.
        if dataclasses.is_dataclass(hint):
            group = parser.add_argument_group(about.get("title", field.name))
            add_flags(group, hint, defaults=defaults, explicit=explicit)  # type: ignore[arg-type]
            continue
        # Flags with one `exclusive` name share one group that argparse checks.
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
    """Add the flag of one field.

    Args:
        parser: Receives the flag.
        field: The field, perhaps made by `flag`.
        hint: Its type hint, which gives the type of the values and their number.
        text: The help.
        default: The default; `dataclasses.MISSING` if the flag must be given.
        explicit: As for `add_flags`.
    """
    settings = {name: value for name, value in field.metadata.items() if name not in _OURS}
    name = f"--{field.name.replace('_', '-')}"
    # The type. argparse would take any text for True if the type were bool.
    kind, several = _value_type(hint)
    if settings.get("type") is bool:
        del settings["type"]
        kind = bool
    # What the field states itself overrides what follows from the hint.
    settings = (
        (
            {"action": argparse.BooleanOptionalAction}
            if kind is bool
            else {"type": _TYPES.get(kind, kind)}
        )
        | ({"nargs": "+"} if several else {})
        | settings
    )
    if callable(settings.get("choices")):
        settings["choices"] = settings["choices"]()
    # The name, and whether the flag must be given.
    if field.metadata.get("positional"):
        name = field.name
    elif default is dataclasses.MISSING:
        settings["required"] = True
    else:
        settings["default"] = argparse.SUPPRESS if explicit else default
    action = parser.add_argument(name, help=text.replace("%", "%%"), **settings)
    action.shown = default  # type: ignore[attr-defined] # the default in the help; see `tool.cli`
    action.optional = _may_be_none(hint)  # type: ignore[attr-defined] # see `tool.noted`
    # The old name stays known, hidden, so that its error can name the new one.
    if old := field.metadata.get("renamed"):
        parser.add_argument(old, action=Renamed, nargs="*", const=name, help=argparse.SUPPRESS)


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of a flag's value, and whether the flag takes several values."""
    hint = _plain(hint)
    if typing.get_origin(hint) in (list, tuple):
        return typing.get_args(hint)[0], True
    return hint, False


def _plain(hint: Any) -> Any:
    """Return a type hint without the None that it may permit."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(one for one in typing.get_args(hint) if one is not types.NoneType)
    return hint


def _may_be_none(hint: Any) -> bool:
    """Return whether a type hint permits None."""
    return types.NoneType in typing.get_args(hint)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, or `dataclasses.MISSING` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


@functools.cache
def attribute_texts(kind: type) -> dict[str, str]:
    """Return the text about each attribute in the docstrings of a class and its bases.

    Args:
        kind: The class. Its own entries override those of its bases.

    Returns:
        One line of text per attribute that has an entry.
    """
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        # An entry starts at the section's indent, and its further lines are indented more.
        indent = " " * (len(section) - len(section.lstrip()))
        entries = re.findall(rf"^{indent}(\w+): (.+(?:\n{indent} +.+)*)", section, re.MULTILINE)
        texts |= {name: " ".join(text.split()) for name, text in entries}
    return texts


def flags_as(kind: type[Flags], args: argparse.Namespace) -> Flags:
    """Return the dataclass made of the flags in a namespace.

    Args:
        kind: The dataclass. Its fields that are dataclasses are made of the same namespace.
        args: The values by field name. Fields without a value take their default.

    Raises:
        ValueError: The constructor refuses the values.
    """
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
    """Return the values of the flags that were given, after `add_flags(explicit=True)`.

    Args:
        args: The parsed flags.
        names: Names of the fields to return if they were given.
    """
    values = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
