"""Checkpoints: tensors and plain types, written whole or not at all, read with weights_only."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from tool.files import atomic_path

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
    """Write `content` (tensors and plain types) to `path` atomically."""
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


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
    """A checkpoint of `train_fbr.py`: {method, config, model, step, ...}.

    Raises:
        FileNotFoundError: missing; the message names the stage that makes it.
        ValueError: unreadable, or not one of ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: run train_fbr.py first")
    content = load_tensors(path)
    missing = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of train_fbr.py: it lacks {', '.join(missing)}"
        )
    return content
