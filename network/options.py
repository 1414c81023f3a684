"""Hyper-parameters of a method, the fields of its `Config`: their flags and their checks."""

from __future__ import annotations

import argparse
import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from tool.flags import add_flags, flags_as
from tool.ranges import Range

_LARGEST = 2**31 - 1  # of a count
_RULES = {int: "a whole number", float: "a finite number", bool: "true or false"}


def option(
    default: Any,
    help_text: str = "",
    *,
    choices: Sequence[Any] = (),
    within: Range | None = None,
    inference: bool = False,
) -> Any:
    """Return a field of a method's `Config` with more than a default.

    A plain field (`radius: int = 5`) becomes a flag of train_fbr.py as well. A bool becomes the
    flags `--name` and `--no-name`.

    Args:
        default: A bool, an int, a float or a str.
        help_text: Help of the flag; if empty, the field's line in the docstring of the `Config`.
        choices: The permitted values; empty for all of the default's type.
        within: The range of a number, for its flag and for every other way in which it is given.
        inference: Whether inference alone uses it, so that `infer_cam.py --set` may change it.
    """
    metadata: dict[str, Any] = {"help": help_text, "inference": inference}
    if choices:
        metadata["choices"] = tuple(choices)
    if within is not None:
        metadata["type"] = within
    return dataclasses.field(default=default, metadata=metadata)


def add_option_flags(
    parser: argparse.ArgumentParser,
    config: type,
    method: str,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add a flag for every field of a method's `Config`, in a group of their own.

    Args:
        parser: Receives the flags.
        config: The method's `Config`.
        method: Its name.
        defaults: Defaults in place of those of the fields.

    Raises:
        ValueError: A field has the name of an existing flag, or its default is no bool, int, float
            or str; or a name in `defaults` is no field.
    """
    if unknown := sorted(set(defaults or ()) - option_names(config)):
        raise ValueError(f"short_options of {method}: there is no option {', '.join(unknown)}")
    for field in dataclasses.fields(config):
        if type(field.default) not in (bool, int, float, str):
            shown = "none" if field.default is dataclasses.MISSING else repr(field.default)
            raise ValueError(
                f"the option {field.name!r} of {method} needs a default that is a bool, an int, a "
                f"float or a str, not {shown}"
            )
    try:
        add_flags(parser.add_argument_group(f"options of {method}"), config, defaults=defaults)
    except argparse.ArgumentError as error:
        raise ValueError(
            f"an option of {method} has the name of another flag ({error}): give the field of its "
            "Config another name"
        ) from error


def option_names(config: type) -> set[str]:
    """Return the names of the fields of a method's `Config`."""
    return {field.name for field in dataclasses.fields(config)}


def options_from(config: type, args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the flags of a method's `Config`, by name."""
    return dataclasses.asdict(flags_as(config, args))


def kind_of(field: dataclasses.Field) -> type:
    """Return the type of a hyper-parameter.

    It is the type of the annotation if that is bool, int, float or str, else the type of the
    default. So a field `x: float = 2` is a float, though its default is an int.
    """
    named = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    plain = {kind.__name__: kind for kind in (bool, int, float, str)}
    return plain.get(named, type(field.default))


def check_option(field: dataclasses.Field, value: Any) -> None:
    """Check that a value fits the type, the range and the choices of a hyper-parameter.

    An int must be from 0 to 2^31 - 1. For a float any finite number is valid, ints included.

    Args:
        field: The field of the `Config`.
        value: The value.

    Raises:
        ValueError: The value does not fit; names the field, the value and the rule.
    """
    default, choices, kind = field.default, field.metadata.get("choices"), kind_of(field)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and kind is int:
        fits = 0 <= value <= _LARGEST
    elif fits and kind is float:
        fits = abs(value) < math.inf  # False for NaN
    if not fits:
        rule = _RULES.get(kind, f"a {kind.__name__}")
        raise ValueError(
            f"the hyper-parameter {field.name} is {reprlib.repr(value)}: it must be {rule}, "
            f"like its default {default!r}"
        )
    within = field.metadata.get("type")
    if within is not None and value not in within:
        raise ValueError(
            f"the hyper-parameter {field.name} is {reprlib.repr(value)}: it must be {within}"
        )
    if choices and value not in choices:
        raise ValueError(
            f"the hyper-parameter {field.name} is {reprlib.repr(value)}: there are "
            f"{', '.join(map(str, choices))}"
        )


def inference_options(config: type, given: Sequence[str]) -> dict[str, Any]:
    """Parse the `NAME=VALUE` arguments of `infer_cam.py --set`.

    Args:
        config: A method's `Config`. Only its fields with `inference=True` can be set.
        given: The arguments.

    Returns:
        {NAME: value}, each value in the type of its field.

    Raises:
        ValueError: There is no such field, it is given twice, or the value has another type.
    """
    fields = {f.name: f for f in dataclasses.fields(config) if f.metadata.get("inference")}
    values = {}
    for one in given:
        name, _, text = one.partition("=")
        if name not in fields:
            there = ", ".join(fields) or "no option that inference uses"
            raise ValueError(f"--set {one}: the checkpoint's method has {there}")
        if not text:
            raise ValueError(f"--set {one}: give a value, as in {name}={fields[name].default}")
        if name in values:
            raise ValueError(f"--set {one}: {name} is given twice")
        try:
            values[name] = _parsed(kind_of(fields[name]), text)
        except ValueError:
            rule = _RULES.get(kind_of(fields[name]), "text")
            raise ValueError(f"--set {one}: {text!r} is not {rule}") from None
    return values


def _parsed(kind: type, text: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[_known(text.lower())]
    return kind(text)


def _known(text: str) -> str:
    if text not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return text


def weights_of(config: Any) -> dict[str, float]:
    """Return the fields `weight_NAME` of a `Config`, by NAME."""
    prefix = "weight_"
    values = dataclasses.asdict(config).items()
    return {name.removeprefix(prefix): v for name, v in values if name.startswith(prefix)}
