"""Fields of a method's `Config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def option(default: Any, help_text: str, *, inference: bool = False) -> Any:
    """A field of a method's `Config` that becomes a flag of train_fbr.py with this help.

    `inference`: training does not use it, so `infer_cam.py --option` may change it.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, "inference": inference})


def inference_options(config: type, given: Sequence[str]) -> dict[str, Any]:
    """The values of `NAME=VALUE`s, for fields of a method's `Config` that inference alone uses.

    Raises:
        ValueError: another field, one given twice, or a value of another type; lists the fields
            that there are.
    """
    kinds = {f.name: type(f.default) for f in dataclasses.fields(config) if f.metadata["inference"]}
    values = {}
    for one in given:
        name, _, text = one.partition("=")
        if name not in kinds:
            there = ", ".join(kinds) or "no such option"
            raise ValueError(f"--option {one}: the checkpoint's method has {there}")
        if name in values:
            raise ValueError(f"--option {one}: {name} is given twice")
        try:
            values[name] = kinds[name](text)
        except ValueError:
            raise ValueError(f"--option {one}: {text!r} is no {kinds[name].__name__}") from None
    return values


def weights_of(config: Any) -> dict[str, float]:
    """The fields `weight_NAME` of a `Config`, by NAME."""
    prefix = "weight_"
    values = dataclasses.asdict(config).items()
    return {name.removeprefix(prefix): v for name, v in values if name.startswith(prefix)}
