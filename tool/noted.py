"""Flags that a run's `config.json` notes: checked as those of a command line, then its defaults."""

from __future__ import annotations

import argparse
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tool.documents import read_dict
from tool.files import as_json, file_hash, first_few
from tool.parallel import dist
from tool.ranges import Range

NOT_REPEATED = ("out", "num_workers", "config", "traceback")  # of each run or machine its own
# A flag of the command line that goes without what the file says of these.
INSTEAD_OF = {
    "--dataset": ("root", "list", "labels", "saliency_root"),
    "--weights": ("init", "background"),
}
LARGEST = 4 * 2**20  # bytes of a config.json; that of a run on 254 classes has about 20 kB


def read_noted(path: Path) -> dict[str, Any]:
    """Read the `config.json` of a run.

    Returns:
        Its content. `flags` is a dictionary.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is no `config.json` of a run.
    """
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {wrong}: give the config.json of a run")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is no config.json of a run: it has over {LARGEST // 2**20} MiB")
    noted = read_dict(path)
    if noted is None or not isinstance(noted.get("flags"), dict):
        raise ValueError(f"{path} is no config.json of a run: it has no list of flags")
    return noted


def to_repeat(flags: Mapping[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """Return the noted flags that a run takes which starts again.

    Args:
        flags: The noted flags.
        argv: The command line, whose flags may take the place of others.
    """
    words = {word.partition("=")[0] for word in argv}
    replaced = [name for word, names in INSTEAD_OF.items() if word in words for name in names]
    return {k: v for k, v in flags.items() if k not in (*NOT_REPEATED, *replaced)}


def checked(
    parser: argparse.ArgumentParser, flags: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Check flags that a file notes by the types, ranges and choices of a parser's flags.

    Args:
        parser: Has the flags, which `tool.flags.add_flags` made.
        flags: The noted values by the name of the field.
        path: The file, for a message.

    Returns:
        The values as parsing would return them.

    Raises:
        ValueError: The parser has no such flag, or a value is not possible; names the flag.
    """
    actions = _actions(parser)
    if unknown := sorted(set(flags) - set(actions)):
        shown = first_few([reprlib.repr(name) for name in unknown])
        raise ValueError(f"{path} notes flags that this command does not have: {shown}")
    return {name: _value(actions[name], value, path) for name, value in flags.items()}


def take_defaults(parser: argparse.ArgumentParser, values: Mapping[str, Any]) -> None:
    """Make checked values the defaults of a parser's flags, in the help too."""
    actions = _actions(parser)
    for name, value in values.items():
        actions[name].shown = value  # type: ignore[attr-defined]
        if actions[name].default != argparse.SUPPRESS:
            actions[name].default = value


def other_settings(
    noted: Mapping[str, Any], config: Mapping[str, Any], weights: Path | None
) -> list[str]:
    """Return the names of the settings in which a run differs from a `config.json`.

    Args:
        noted: The content of the `config.json`.
        config: The settings of this run, as `train_fbr.run_config` returns them.
        weights: The file of its first weights; None if it starts from scratch.

    Returns:
        Names of `config`, and "weights" if the first weights differ. Empty if the file has no
        configuration.
    """
    theirs, start = noted.get("config"), noted.get("weights")
    if not isinstance(theirs, dict):
        return []
    own = as_json(dict(config))
    names = [name for name in own if own[name] != theirs.get(name)]
    if isinstance(start, dict) and weights and start.get("sha256") != file_hash(weights):
        names.append("weights")
    return names


def compare_settings(path: Path | None, config: dict[str, Any], weights: Path | None) -> None:
    """With `--config`, print which settings of this run differ from those in its file.

    Args:
        path: The file of `--config`; None without the flag, and nothing is printed.
        config: The settings of this run, as `train_fbr.run_config` returns them.
        weights: The file of the first weights; None if the run starts from scratch.
    """
    if path is not None and dist.is_main():
        other = other_settings(read_noted(path), config, weights)
        print(f"as {path}" + (f", but for {', '.join(other)}" if other else ""))


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the flags of a parser by the name of their field, those of `add_flags` only."""
    return {action.dest: action for action in parser._actions if hasattr(action, "shown")}


def _value(action: argparse.Action, value: Any, path: Path) -> Any:
    """Return a noted value as parsing would return it."""
    if value is None and getattr(action, "optional", False):
        return None
    try:
        if isinstance(action, argparse.BooleanOptionalAction):
            return _plain(action, value)
        if action.nargs in (None, "?"):
            return _parsed(action, value)
        wanted = len(value) if isinstance(value, list) and action.nargs == "+" else action.nargs
        if not isinstance(value, list) or not value or len(value) != wanted:
            raise ValueError(f"{reprlib.repr(value)} is not as many values as it takes")
        return [_parsed(action, one) for one in value]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"{path}: {action.option_strings[0]}: {error}") from error


def _parsed(action: argparse.Action, value: Any) -> Any:
    """Return one value of a flag: its text, parsed as on the command line."""
    kind: Any = action.type or str
    parsed = kind(str(_plain(action, value)))
    if action.choices is not None and parsed not in action.choices:
        raise ValueError(
            f"{reprlib.repr(value)}: choose from {', '.join(map(str, action.choices))}"
        )
    return parsed


def _plain(action: argparse.Action, value: Any) -> Any:
    """Return a value of JSON if it has the type that its flag notes."""
    if isinstance(action, argparse.BooleanOptionalAction):
        kinds, name = (bool,), "true or false"
    elif isinstance(action.type, Range):
        kinds, name = (int, float), "a number"
    else:
        kinds, name = (str,), "a text"
    if type(value) not in kinds:
        raise ValueError(f"{reprlib.repr(value)} is not {name}")
    return value
