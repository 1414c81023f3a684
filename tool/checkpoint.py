"""Checkpoints: tensors and plain types, written whole or not at all, read with weights_only."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tool.files import atomic_path

_FULL = "could not be written: is the disk full?"
_ABOUT = "fbr_checkpoint"  # the key of the metadata in an exported file
_KEYS = {"method": str, "config": dict, "model": dict, "step": int}
# what torch.load raises on a damaged file, found by damaging files at random
_UNREADABLE = (
    RuntimeError,
    ValueError,
    EOFError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
)


def save_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain types) to `path` atomically; `OSError` on a full disk."""
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's own writer hides the system's error
            raise OSError(_FULL) from error


def load_tensors(path: Path | str) -> dict[str, Any]:
    """The dictionary in a `.pth` file, on the CPU, executing nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a dictionary, corrupt, or a pickle that carries more than tensors and plain
            types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused: it is corrupt or carries more than tensors and plain types"
        ) from error
    except _UNREADABLE as error:
        raise ValueError(f"{path} is not a readable checkpoint (corrupt or truncated)") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint of `train_fbr.py`, or what `tool.export` made of one.

    Returns:
        {method, config, model, step, ...}; of an exported one, `may_lack` names what was left out.

    Raises:
        FileNotFoundError: missing; the message names the stage that makes it.
        ValueError: unreadable, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: run train_fbr.py first")
    if path.suffix == ".safetensors":
        return _load_exported(path)
    return as_checkpoint(load_tensors(path), path)


def as_checkpoint(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """`content` itself; `ValueError` when it is not a checkpoint of ours."""
    missing = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of train_fbr.py: it lacks {', '.join(missing)}"
        )
    return content


def save_exported(path: Path | str, checkpoint: dict[str, Any]) -> list[str]:
    """Write a checkpoint's weights and configuration as `.safetensors`: no optimizer, no bank.

    Args:
        checkpoint: of `train_fbr.py`; its `not_weights` names what is left out.

    Returns:
        The names that are left out.
    """
    left_out = list(checkpoint.get("not_weights", checkpoint.get("may_lack", ())))
    model = {n: t.contiguous() for n, t in checkpoint["model"].items() if n not in left_out}
    about = {key: checkpoint[key] for key in ("method", "config", "step")}
    about["may_lack"] = left_out
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(model, temporary, {_ABOUT: json.dumps(about, default=str)})
        except safetensors.SafetensorError as error:
            raise OSError(_FULL) from error
    return left_out


def _load_exported(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
        content = {**about, "model": safetensors.torch.load_file(path)}
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a readable .safetensors file: {error}") from error
    if not _are_names(content.get("may_lack", [])):
        raise ValueError(f"{path} is not a file of tool.export: its list of names is none")
    return as_checkpoint(content, path)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, str) and n for n in value)
