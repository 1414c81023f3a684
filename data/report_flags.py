"""The flags of a command that reads the files of a run: its config.json gives the defaults."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from data.readable import ListFlags
from tool.flags import add_flags, parse_flags
from tool.noted import checked
from tool.report.run import CONFIG, Run, open_run

Flags = TypeVar("Flags")


def parse_like_run(kind: type[Flags], argv: Sequence[str] | None, *, example: str) -> Flags:
    """Parse a command line that names a run, whose config.json gives the defaults of `ListFlags`.

    Args:
        kind: The dataclass of the command, with `run` and `mask_dir`.
        argv: The arguments; None for those of the process.
        example: Flags of a typical call.

    Raises:
        FileNotFoundError: The run has no masks.
        ValueError: The run's config.json has a value that no flag can have.
    """
    first: Any = parse_flags(kind, argv, example=example)
    defaults = noted_data(open_run(first.run, mask_dir=first.mask_dir))
    return parse_flags(kind, argv, example=example, defaults=defaults)


def noted_data(run: Run) -> dict[str, Any]:
    """Return what the run's `config.json` says of its dataset and list, by the names of the flags.

    Raises:
        ValueError: The file has a value that no flag can have.
    """
    flags = run.noted.get("flags")
    if not isinstance(flags, dict):
        return {}
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser, ListFlags)
    known = {field.name for field in dataclasses.fields(ListFlags)}
    some = {name: value for name, value in flags.items() if name in known}
    return checked(parser, some, run.home / CONFIG)
