"""`.npy` files with a pickle in them, as the field's code writes them, and worse."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def npy_of_pickle(payload: bytes) -> bytes:
    """A `.npy` file with an object array header and `payload` for its pickle."""
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + payload


def write_object(path: Path, content: object) -> Path:
    array = np.empty((), object)
    array[()] = content
    np.save(path, array, allow_pickle=True)
    return path
