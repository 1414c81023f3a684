"""Load files that hold NumPy values or argparse namespaces beside weights, and drop those values.

`torch.load(weights_only=True)` refuses them. Here each name that such an object needs has a
stand-in that takes any arguments and keeps none: nothing in the file runs or comes back. Any other
name stays refused.
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

_HARMLESS = {"argparse.Namespace", "types.SimpleNamespace"}
_HARMLESS_MODULES = ("numpy", "pathlib")
_LEGACY_PICKLES = 4  # magic number, version, system, the object
_LATEST = 3  # protocol of pickle that torch reads with weights_only
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"


class Skipped:
    """Stands for an object that is not weights; whatever is in it is dropped."""

    def __new__(cls, *_: object, **__: object) -> Skipped:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load_weights_only(path: Path) -> Any:
    """Load a file with `torch.load` and `weights_only=True`, other objects in it as `Skipped`.

    Raises:
        pickle.UnpicklingError: the file names anything else; and what `torch.load` raises.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol")  # see `refusal`
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            names = [name for name in names_in(path) if _is_harmless(name)]
            if not names:
                raise
        with torch.serialization.safe_globals([(Skipped, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)


def _protocol_of(path: Path) -> int | None:
    """Return the pickle protocol of a file of `torch.save`; None if it is no such file."""
    with open(path, "rb") as file:
        start = file.read(64)
        if start.startswith(b"PK\x03\x04"):
            with contextlib.suppress(ValueError):  # no such file in it
                start = _pickle_of(file).read(2)
        elif _LEGACY_MAGIC not in start:
            return None
    return start[1] if len(start) > 1 and start[:1] == b"\x80" else None


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Say what in a file was refused and, if that is known, how to save its weights anew."""
    named, protocol = re.search(r"GLOBAL ([\w.]+)", str(error)), _protocol_of(path)
    if named:
        reason = f"it carries a {named[1]}, more than tensors and plain types"
    elif protocol is not None and protocol > _LATEST:
        reason = f"it is of pickle protocol {protocol}, which torch does not read with weights_only"
    else:
        return "it is corrupt or carries more than tensors and plain types"
    file = json.dumps(str(path), ensure_ascii=False)  # with double quotes, in Python's form too
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
    """Return the names of functions and classes in the pickle of a `.pth` file, running nothing."""
    names: set[str] = set()
    with open(path, "rb") as file, contextlib.suppress(ValueError):  # as far as it is a pickle
        zipped = file.read(4) == b"PK\x03\x04"  # as torch tells the old form from the new
        file.seek(0)
        for _ in range(1 if zipped else _LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(_pickle_of(file) if zipped else file):
                if opcode.name == "GLOBAL":
                    names.add(argument.replace(" ", "."))
    return names


def _pickle_of(file: BinaryIO) -> BinaryIO:
    with zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")]
        return io.BytesIO(archive.read(name))


def _is_harmless(name: str) -> bool:
    return name in _HARMLESS or name.split(".")[0] in _HARMLESS_MODULES
