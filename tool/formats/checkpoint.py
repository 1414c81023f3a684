"""Checkpoints of tensors and plain types: written whole or not at all, read with weights_only."""

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
from tool.files import atomic_path, zip_errors
from tool.formats.beside import check_memory, load_weights_only, refusal
from tool.formats.checkpoint_content import are_names, as_checkpoint, plain_tensors
from tool.formats.pickle_cost import CostError

_FULL = "could not be written: is the disk full?"
_ABOUT = "fbr_checkpoint"  # the key of the metadata of an exported file
# What torch and safetensors raise on a damaged file; found by damaging files at random. A deeply
# nested text raises RecursionError, a RuntimeError.
_DAMAGED = (RuntimeError, ValueError, TypeError, LookupError, MemoryError)
_UNREADABLE = (*_DAMAGED, EOFError, AttributeError, AssertionError, OverflowError)
_UNREADABLE += (struct.error,)
_NO_SAFETENSORS = (*_DAMAGED, safetensors.SafetensorError)


def save_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain types) to `path`, whole or not at all.

    Equal content gives equal bytes if the storages of its tensors are equal: a view writes its
    whole storage, and two views of one storage write it once.

    Args:
        path: The `.pth` file.
        content: The dictionary to write.

    Raises:
        OSError: The file could not be written, for example because the disk is full.
    """
    # torch gets an open file. If it opened the path itself, it would write the file's name into
    # every entry of the archive, and the temporary name is random.
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(_canonical(content, {}), file)
        except RuntimeError as error:  # torch's own writer hides the error of the system
            raise OSError(_FULL) from error


def _canonical(value: Any, seen: dict[bytes, bytes]) -> Any:
    """Return `value` in new containers, in which equal strings are one object and so are bytes.

    A pickle stores an object once and refers back to it afterwards. So its bytes depend on which
    equal parts are the same object, and that may change when a part is read from a file. Tensors
    are not copied.

    Args:
        value: Tensors, plain types, and containers of them.
        seen: The bytes objects that were found so far, by value; new ones are added to it.
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
    """Load the dictionary in a `.pth` file onto the CPU without running any code in the file.

    Returns:
        The dictionary, in which NumPy values and argparse namespaces are replaced by `Skipped`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file holds no dictionary, is corrupt or compressed, or is a pickle that
            carries more than tensors and plain types; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        _refuse_compressed(path)
        check_memory(path)
        content = load_weights_only(path)
        if isinstance(content, dict) and {"method", "config"} <= content.keys():
            _refuse_changed(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused: {refusal(path, error)}") from error
    except CostError as error:
        raise ValueError(f"{path}: refused: {error}") from error
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is not a readable checkpoint: it is damaged, cut off or compressed, or no "
            "file of PyTorch; copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint of `train_fbr.py`, or the `.safetensors` file that `network.export` makes.

    Returns:
        {method, config, model, step, ...}. In an exported one, `may_lack` names the entries of the
        model that were left out.

    Raises:
        FileNotFoundError: The file does not exist; the message names the stage that makes it.
        ValueError: The file is unreadable, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir():
            raise FileNotFoundError(f"checkpoint {path} is a folder: give the checkpoint.pth in it")
        raise FileNotFoundError(f"checkpoint {path} does not exist: run train_fbr.py first")
    if path.suffix == ".safetensors":
        return _load_exported(path)
    return as_checkpoint(load_tensors(path), path)


def _refuse_compressed(path: Path) -> None:
    """Raise `ValueError` if a file unpacks to more than its size.

    torch stores tensors uncompressed. A small file must not unpack to a huge one.
    """
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # how torch tells the new form from the old one
    if zipped:
        with zip_errors(), zipfile.ZipFile(path) as file:
            if sum(entry.file_size for entry in file.infolist()) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")


def _refuse_changed(path: Path) -> None:
    """Raise `ValueError` if bytes in a file of ours differ from what was written.

    torch writes checksums, and does not compare them. Files of other code may have none.
    """
    if zipfile.is_zipfile(path):
        with zip_errors(), zipfile.ZipFile(path) as file:
            if (name := file.testzip()) is not None:
                raise ValueError(f"{name} in it differs from its checksum")


def save_exported(path: Path | str, checkpoint: dict[str, Any], left_out: Sequence[str]) -> None:
    """Write a checkpoint's weights and configuration as `.safetensors`, without the optimizer.

    Args:
        path: The `.safetensors` file.
        checkpoint: A checkpoint as `load_checkpoint` returns it.
        left_out: Names in its model that are not written, because they are not weights.

    Raises:
        OSError: The file could not be written.
    """
    kept = {n: t.detach() for n, t in checkpoint["model"].items() if n not in left_out}
    # Copies, because safetensors refuses tensors that share memory.
    model = {n: t.clone(memory_format=torch.contiguous_format) for n, t in kept.items()}
    about = {key: checkpoint[key] for key in ("method", "config", "step")}
    about["may_lack"] = list(left_out)
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(model, temporary, {_ABOUT: json.dumps(about, default=str)})
        except safetensors.SafetensorError as error:
            raise OSError(_FULL) from error


def load_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a `.safetensors` file, and the metadata that `network.export` wrote.

    Returns:
        The tensors by name, and the metadata; {} if the file has none.

    Raises:
        ValueError: The file is unreadable, or an older version exported it without the norms'
            scale and shift.
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
    """Raise `ValueError` if an export left out scale or shift of norms whose statistics it has.

    Args:
        tensors: The tensors of the file, by name.
        about: Its metadata; `may_lack` names what was left out.
        path: The file, as the message names it.
    """
    left_out = about.get("may_lack", [])
    for name in left_out if are_names(left_out) else ():
        norm, _, part = name.rpartition(".")
        if part in ("weight", "bias") and f"{norm}.running_mean" in tensors:
            raise ValueError(
                f"{path} was exported by an older version without the norms' scale and shift "
                f"({name}, ...): export its checkpoint again"
            )


def _load_exported(path: Path) -> dict[str, Any]:
    """Load a `.safetensors` file as a checkpoint; see `load_checkpoint`."""
    tensors, about = load_safetensors(path)
    return as_checkpoint({**about, "model": tensors}, path)
