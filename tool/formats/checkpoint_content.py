"""What a checkpoint may hold: plain tensors under names, and a configuration of plain types.

Files are read and written by `tool.formats.checkpoint`; this is what it checks of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_KEYS = {"method": str, "config": dict, "model": dict, "step": int}
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_DEEPEST, _MOST = 8, 100_000  # a configuration may have this many levels, and this many values
LARGEST_INT = 2**62


def as_checkpoint(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return `content` itself after checking that it is a checkpoint of this project.

    Args:
        content: The dictionary that was loaded from a file.
        path: The file; its size limits the total size of the tensors.

    Raises:
        ValueError: It is not such a checkpoint; says why.
    """
    # The keys that every checkpoint has.
    missing = [key for key, kind in _KEYS.items() if not isinstance(content.get(key), kind)]
    if missing:
        raise ValueError(
            f"{path} is not a checkpoint of train_fbr.py: it lacks {', '.join(missing)}"
        )
    # The tensors, each of them and all together: a small file must not fill the memory.
    model = plain_tensors(content["model"], path)
    total = sum(_bytes(tensor) for tensor in model.values())
    if total > path.stat().st_size:
        raise ValueError(f"{path}: refused: its tensors share memory, {total} bytes in all")
    # The configuration, the step and the lists of names.
    if not _is_plain(content["config"]):
        raise ValueError(f"{path}: refused: its configuration is more than plain types")
    if type(content["step"]) is not int or not 0 <= content["step"] < LARGEST_INT:
        raise ValueError(f"{path}: refused: its step is not a number of steps")
    for key, holder in (("may_lack", content), ("class_names", None)):
        if not are_names((content["config"] if holder is None else holder).get(key, [])):
            raise ValueError(f"{path}: refused: its {key} are no list of names")
    return content


def plain_tensors(tensors: dict[Any, Any], path: Path | str) -> dict[str, Tensor]:
    """Return `tensors` itself after checking that it maps names to plain tensors.

    A plain tensor is a dense tensor of numbers on the CPU that is no larger than its file.

    Args:
        tensors: The entries to check.
        path: The file from which they came.

    Raises:
        ValueError: An entry is something else, such as a sparse, quantised, meta or expanded
            tensor; names the first one.
    """
    largest = Path(path).stat().st_size
    for name, tensor in tensors.items():
        reason = _oddity(name, tensor, largest)
        if reason:
            raise ValueError(f"{path}: refused: {str(name)[:80]!r} in it is {reason}")
    return tensors


def _oddity(name: Any, tensor: Any, largest: int) -> str | None:
    """Return why an entry of a state dict is refused, or None if it is a plain tensor.

    Args:
        name: The key of the entry.
        tensor: Its value.
        largest: The largest number of bytes that a tensor may have.
    """
    if not isinstance(name, str) or name == "__metadata__" or not name.isprintable():
        return "not the name of a tensor"
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}, not a tensor"
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return f"a tensor on {tensor.device} of layout {tensor.layout}, not a dense one"
    if tensor.is_quantized or tensor.dtype not in _DTYPES or tensor.is_neg():
        return f"a tensor of {tensor.dtype}"
    if _bytes(tensor) > largest:
        return f"a tensor of {_bytes(tensor)} bytes in a file of {largest}"
    return None


def _bytes(tensor: Tensor) -> int:
    """Return the number of bytes of a tensor's values."""
    return tensor.numel() * tensor.element_size()


def _is_plain(config: dict[Any, Any]) -> bool:
    """Return whether JSON can hold a configuration of limited depth and size.

    Plain are None, numbers, strings, lists and tuples, and dictionaries whose keys are strings.
    """
    # A stack in place of recursion, because a hostile file may be nested arbitrarily deep.
    remaining, seen = [(config, 0)], 0
    while remaining:
        value, depth = remaining.pop()
        if isinstance(value, dict | list | tuple):
            seen += len(value)
            if depth > _DEEPEST or seen > _MOST:
                return False
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                return False
            inside = value.values() if isinstance(value, dict) else value
            remaining.extend((item, depth + 1) for item in inside)
        elif isinstance(value, int):
            if abs(value) > LARGEST_INT:
                return False
        elif not isinstance(value, str | float | None):
            return False
    return True


def are_names(value: Any) -> bool:
    """Return whether `value` is a list of non-empty strings; the list itself may be empty."""
    return isinstance(value, list) and all(isinstance(n, str) and n for n in value)
