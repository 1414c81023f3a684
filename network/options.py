"""Fields of a method's `Config`."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, help_text: str) -> Any:
    """A field of a method's `Config` that becomes a flag with this help."""
    return dataclasses.field(default=default, metadata={"help": help_text})
