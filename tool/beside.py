"""What others save beside weights: NumPy scores and argparse's arguments, read as nothing.

`torch.load(weights_only=True)` refuses them. Here each name that such an object needs has a
stand-in that takes any arguments and keeps none: nothing in the file runs or comes back. Any other
name stays refused.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

_HARMLESS = {"argparse.Namespace", "types.SimpleNamespace"}
_HARMLESS_MODULES = ("numpy", "pathlib")
_LEGACY_PICKLES = 4  # magic number, version, system, the object


class Skipped:
    """Stands for an object that is not weights; whatever is in it is dropped."""

    def __new__(cls, *_: object, **__: object) -> Skipped:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load_weights_only(path: Path) -> Any:
    """`torch.load` on the CPU with `weights_only=True`, with `Skipped` for what stands beside.

    Raises:
        pickle.UnpicklingError: the file names anything else; and what `torch.load` raises.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        names = [name for name in names_in(path) if _is_harmless(name)]
        if not names:
            raise
    with torch.serialization.safe_globals([(Skipped, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def refused_name(error: pickle.UnpicklingError) -> str | None:
    """Return the name that torch refused, such as `functools.partial`; None: something else."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found and found[1]


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
