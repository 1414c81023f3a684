"""The flags of a command that reads the files of a run: its config.json gives the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from data.readable import ListFlags
from tool.flags import parse_flags
from tool.report.run import open_run

Flags = TypeVar("Flags")


def parse_like_run(kind: type[Flags], argv: Sequence[str] | None, *, example: str) -> Flags:
    """Parse a command line that names a run, whose config.json gives the defaults of `ListFlags`.

    Args:
        kind: The dataclass of the command, with `run` and `mask_dir`.
        argv: The arguments; None for those of the process.
        example: Flags of a typical call.

    Raises:
        FileNotFoundError: The run has no masks.
    """
    first: Any = parse_flags(kind, argv, example=example)
    noted = open_run(first.run, mask_dir=first.mask_dir).noted.get("flags")
    known = {field.name for field in dataclasses.fields(ListFlags)}
    defaults = {name: value for name, value in (noted or {}).items() if name in known}
    return parse_flags(kind, argv, example=example, defaults=_as_paths(defaults))


def _as_paths(defaults: dict[str, Any]) -> dict[str, Any]:
    """Return flags of `config.json` with paths where the command has them."""
    paths = ("root", "labels", "saliency_root")
    return {name: Path(v) if name in paths and v else v for name, v in defaults.items()}
