"""Checkpoints: tensors and plain types, written whole or not at all, read with weights_only."""

from __future__ import annotations

import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tool.cli import one_line
from tool.files import atomic_path
from tool.formats.beside import load_weights_only, refusal

_FULL = "could not be written: is the disk full?"
_ABOUT = "fbr_checkpoint"  # the key of the metadata in an exported file
_KEYS = {"method": str, "config": dict, "model": dict, "step": int}
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool}
_DTYPES |= {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_DEEPEST, _MOST = 8, 100_000  # of a configuration: levels, and values in all
LARGEST_INT = 2**62
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
# and safetensors; a deeply nested text is a RecursionError, which is a RuntimeError
_NO_SAFETENSORS = (
    safetensors.SafetensorError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    MemoryError,
)


def save_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain types) to `path` atomically; `OSError` on a full disk.

    Equal content gives equal bytes, if its tensors are equal as they lie in memory: a view writes
    its whole storage, two views of one storage write it once. torch gets an open file: it writes
    the name of a path that it opens itself, here a random one, into every entry.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(_canonical(content, {}), file)
        except RuntimeError as error:  # torch's own writer hides the system's error
            raise OSError(_FULL) from error


def _canonical(value: Any, seen: dict[bytes, bytes]) -> Any:
    """Return `value` in new plain containers, equal texts and equal bytes as one object.

    A pickle refers back to an object that it has seen. So its bytes depend on which equal parts are
    the same object, and that differs once a part has been read from a file. Tensors stay as they
    are.

    Args:
        seen: the bytes that were met; it grows.
    """
    if isinstance(value, dict):
        return {_canonical(key, seen): _canonical(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_canonical(item, seen) for item in value]
        return (
            torch.Size(items)
            if isinstance(value, torch.Size)
            else (items if isinstance(value, list) else tuple(items))
        )
    if type(value) is bytes:
        return seen.setdefault(value, value)
    return sys.intern(value) if type(value) is str else value


def load_tensors(path: Path | str) -> dict[str, Any]:
    """The dictionary in a `.pth` file, on the CPU, executing nothing.

    NumPy's values and argparse's arguments in it come back as `Skipped`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a dictionary, corrupt, compressed, or a pickle that carries more than
            tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        _refuse_compressed(path)
        content = load_weights_only(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused: {refusal(path, error)}") from error
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is not a readable checkpoint (corrupt, truncated or compressed)"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint of `train_fbr.py`, or what `network.export` made of one.

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
    model = plain_tensors(content["model"], path)
    total = sum(_bytes(tensor) for tensor in model.values())
    if total > path.stat().st_size:
        raise ValueError(f"{path}: refused: its tensors share memory, {total} bytes in all")
    if not _is_plain(content["config"]):
        raise ValueError(f"{path}: refused: its configuration is more than plain types")
    if type(content["step"]) is not int or not 0 <= content["step"] < LARGEST_INT:
        raise ValueError(f"{path}: refused: its step is not a number of steps")
    for key, holder in (("may_lack", content), ("class_names", None)):
        if not are_names((content["config"] if holder is None else holder).get(key, [])):
            raise ValueError(f"{path}: refused: its {key} are no list of names")
    return content


def plain_tensors(tensors: dict[Any, Any], path: Path | str) -> dict[str, Tensor]:
    """`tensors` itself: names to dense tensors of numbers on the CPU that `path` has room for.

    Raises:
        ValueError: names the first that is something else: sparse, quantised, meta, expanded, ...
    """
    largest = Path(path).stat().st_size
    for name, tensor in tensors.items():
        reason = _oddity(name, tensor, largest)
        if reason:
            raise ValueError(f"{path}: refused: {str(name)[:80]!r} in it is {reason}")
    return tensors


def _oddity(name: Any, tensor: Any, largest: int) -> str | None:
    """What is odd about an entry of a state dict; None: nothing."""
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
    return tensor.numel() * tensor.element_size()


def _is_plain(config: dict[Any, Any]) -> bool:
    """Whether JSON can hold it: names to numbers, text and lists, nested a few levels."""
    left, seen = [(config, 0)], 0
    while left:
        value, depth = left.pop()
        if isinstance(value, dict | list | tuple):
            seen += len(value)
            if depth > _DEEPEST or seen > _MOST:
                return False
            if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
                return False
            inside = value.values() if isinstance(value, dict) else value
            left.extend((item, depth + 1) for item in inside)
        elif isinstance(value, int):
            if abs(value) > LARGEST_INT:
                return False
        elif not isinstance(value, str | float | None):
            return False
    return True


def _refuse_compressed(path: Path) -> None:
    """A file of torch stores its tensors as they are; a small one must not unpack to a huge one."""
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch tells the old form from the new
    if zipped:
        with zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")


def save_exported(path: Path | str, checkpoint: dict[str, Any], left_out: Sequence[str]) -> None:
    """Write a checkpoint's weights and configuration as `.safetensors`, without the optimizer.

    Args:
        left_out: names in its model that are not written: what is not weights.
    """
    kept = {n: t.detach() for n, t in checkpoint["model"].items() if n not in left_out}
    # copies: safetensors refuses tensors that share memory
    model = {n: t.clone(memory_format=torch.contiguous_format) for n, t in kept.items()}
    about = {key: checkpoint[key] for key in ("method", "config", "step")}
    about["may_lack"] = list(left_out)
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(model, temporary, {_ABOUT: json.dumps(about, default=str)})
        except safetensors.SafetensorError as error:
            raise OSError(_FULL) from error


def load_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata that `network.export` wrote ({} if none).

    Raises:
        ValueError: unreadable, or exported by a version that lost the norms' scale and shift.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
        if not isinstance(about, dict):
            raise ValueError("its metadata is not of network.export")
        tensors = plain_tensors(safetensors.torch.load_file(path), path)
    except _NO_SAFETENSORS as error:
        reason = one_line(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path} is not a readable .safetensors file: {reason}") from error
    _refuse_lost_norms(tensors, about, path)
    return tensors, about


def _refuse_lost_norms(tensors: dict[str, Tensor], about: dict[str, Any], path: Path | str) -> None:
    """Refuse an export that left out `weight` and `bias` of norms whose statistics it has."""
    left_out = about.get("may_lack", [])
    for name in left_out if are_names(left_out) else ():
        norm, _, part = name.rpartition(".")
        if part in ("weight", "bias") and f"{norm}.running_mean" in tensors:
            raise ValueError(
                f"{path} was exported by an older version without the norms' scale and shift "
                f"({name}, ...): export its checkpoint again"
            )


def _load_exported(path: Path) -> dict[str, Any]:
    tensors, about = load_safetensors(path)
    return as_checkpoint({**about, "model": tensors}, path)


def are_names(value: Any) -> bool:
    """Whether it is a list of texts, none of them empty."""
    return isinstance(value, list) and all(isinstance(n, str) and n for n in value)
