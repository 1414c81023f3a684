"""Fields of a method's `Config`."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, help_text: str) -> Any:
    """A field of a method's `Config` that becomes a flag with this help."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def weights_of(config: Any) -> dict[str, float]:
    """The fields `weight_NAME` of a `Config`, by NAME."""
    prefix = "weight_"
    values = dataclasses.asdict(config).items()
    return {name.removeprefix(prefix): v for name, v in values if name.startswith(prefix)}
