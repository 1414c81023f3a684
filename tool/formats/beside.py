"""Load files that hold NumPy values or argparse namespaces beside weights, and drop those values.

`torch.load(weights_only=True)` refuses such files. Here a stand-in replaces each name that such a
value needs. The stand-in takes any arguments and keeps none of them. So no code in the file runs,
and none of these values is returned. Any other name is still refused.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import pickletools
import re
import shlex
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tool.files import zip_errors
from tool.formats.pickle_cost import check_calls

_HARMLESS = {"argparse.Namespace", "types.SimpleNamespace"}
_HARMLESS_MODULES = ("numpy", "pathlib")
_LEGACY_PICKLES = 4  # the magic number, the version, the system and the object
_BYTES_PER_BYTE = 16  # texts take up to 4 bytes per letter, and the same text may come twice
_LATEST = 3  # the latest pickle protocol that torch reads with weights_only
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"


class Skipped:
    """A stand-in for an object that is not a weight; it drops the content of the object."""

    def __new__(cls, *_: object, **__: object) -> Skipped:
        """Return a stand-in, whatever the arguments of the object were."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        """Drop the content."""


def load_weights_only(path: Path) -> Any:
    """Load a file with `torch.load(weights_only=True)`; harmless other objects become `Skipped`.

    Args:
        path: The file.

    Returns:
        The content of the file, of any type, with its tensors on the CPU.

    Raises:
        pickle.UnpicklingError: The file names an object that is neither a weight nor harmless.
        Exception: Whatever else `torch.load` raises.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # `refusal` reports it
        # Most files hold nothing but weights.
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            names = [name for name in names_in(path) if _is_harmless(name)]
            if not names:
                raise
        # Map each harmless name to the stand-in, for this call only.
        with torch.serialization.safe_globals([(Skipped, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)


def check_memory(path: Path) -> None:
    """Check that the pickles of a file make no more bytes than a multiple of its size.

    Raises:
        CostError: They do; see `check_calls`.
        ValueError: It is a zip file whose pickle cannot be found or read. torch might read it,
            because it compares no checksums.
    """
    limit = _BYTES_PER_BYTE * path.stat().st_size
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # how torch tells the new form from the old one
        file.seek(0)
        pickles = _pickle_of(file) if zipped else file
        with contextlib.suppress(ValueError):  # no pickle, which torch itself says
            for _ in range(1 if zipped else _LEGACY_PICKLES):
                check_calls(pickles, limit)


def _protocol_of(path: Path) -> int | None:
    """Return the pickle protocol of a `torch.save` file, or None if the file has another format."""
    with open(path, "rb") as file:
        start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            with contextlib.suppress(ValueError):  # the archive has no data.pkl
                start = _pickle_of(file).read(2)
        elif _LEGACY_MAGIC not in start:
            return None
    # A pickle of protocol 2 or later starts with the opcode PROTO, 0x80, and the protocol.
    return start[1] if len(start) > 1 and start[:1] == b"\x80" else None


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Return why a file was refused and, if the reason is known, how to save its weights anew.

    Args:
        path: The refused file.
        error: The error that `load_weights_only` raised for it.

    Returns:
        Text for a message, with a command line if the reason is known.
    """
    named, protocol = re.search(r"GLOBAL ([\w.]+)", str(error)), _protocol_of(path)
    if named:
        reason = f"it carries a {named[1]}, more than tensors and plain types"
    elif protocol is not None and protocol > _LATEST:
        reason = f"it is of pickle protocol {protocol}, which torch does not read with weights_only"
    else:
        return "it is no file of weights, or damaged, or holds more than tensors and plain types"
    file = json.dumps(str(path), ensure_ascii=False)  # in double quotes, which Python reads too
    # The command keeps the tensors of state dicts, of modules and of nested dictionaries.
    code = (
        f'import torch; c = torch.load({file}, map_location="cpu", weights_only=False); '
        "f = lambda v: v if isinstance(v, torch.Tensor) else "
        'f(v.state_dict()) if hasattr(v, "state_dict") else '
        "{n: f(w) for n, w in v.items() if isinstance(w, (dict, torch.Tensor)) "
        'or hasattr(w, "state_dict")}; '
        'torch.save(f(c), "weights.pth")'
    )
    command = f"python -c {shlex.quote(code)}"
    return f"{reason}; if you trust the file, save its weights anew: {command}"


def names_in(path: Path) -> set[str]:
    """Return the names of functions and classes in the pickle of a `.pth` file, without running it.

    Args:
        path: The file. If its pickle is broken, the result has the names up to the broken place.

    Returns:
        Names with their modules, such as "numpy.dtype".
    """
    names: set[str] = set()
    with open(path, "rb") as file, contextlib.suppress(ValueError):  # read as far as it is a pickle
        zipped = file.read(4) == b"PK\x03\x04"  # how torch tells the new form from the old one
        file.seek(0)
        for _ in range(1 if zipped else _LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(_pickle_of(file) if zipped else file):
                if opcode.name == "GLOBAL":
                    names.add(argument.replace(" ", "."))
    return names


def _pickle_of(file: BinaryIO) -> BinaryIO:
    """Return the pickle in a zipped `torch.save` file; raise `ValueError` if it has none."""
    with zip_errors(), zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        return io.BytesIO(archive.read(name))


def _is_harmless(name: str) -> bool:
    """Return whether an object of this name, with its module, may be dropped."""
    return name in _HARMLESS or name.split(".")[0] in _HARMLESS_MODULES
