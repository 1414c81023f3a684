"""Stand-ins for what a pickle of arrays and tensors calls: each checks its arguments, runs nothing.

NumPy's own rebuild functions accept states that break memory safety, and torch's
`_load_from_bytes` unpickles without limits, so neither is ever called.
"""

from __future__ import annotations

import math
import re

import numpy as np


def build_array(
    raw: bytes | bytearray | memoryview,
    dtype: np.dtype,
    shape: tuple[int, ...],
    *,
    fortran: bool,
    exact: bool = True,
) -> np.ndarray:
    """A view of `raw` as an array; ValueError where `raw` does not hold what `shape` claims."""
    if len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape) or dtype.itemsize < 1:
        raise ValueError(f"shape {shape} of {dtype}")
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if needed > len(raw) or (exact and needed != len(raw)):
        raise ValueError(f"shape {shape} needs {needed} bytes, {len(raw)} are there")
    flat = np.frombuffer(raw, dtype, count) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


class DtypeStandIn:
    """Stands for `numpy.dtype` in a pickle: a type code and a byte order, nothing else."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not re.fullmatch(r"[biufcSUO]\d{1,6}", code):
            raise ValueError(f"array type {code!r}")
        self.dtype = np.dtype("O" if code[0] == "O" else code)

    def set_state(self, state: tuple) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("a structured array type in a pickle")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class ArrayStandIn:
    """Stands for a `numpy.ndarray` under construction."""

    def __init__(self) -> None:
        self.state: tuple | None = None

    def set_state(self, state: tuple) -> None:
        _version, shape, spec, fortran, raw = state
        self.state = (shape, _dtype_of(spec), bool(fortran), raw)

    def value(self) -> object:
        """The array, or the one element of an object array of shape ()."""
        if self.state is None:
            raise ValueError("an array without its values")
        shape, dtype, fortran, raw = self.state
        if not dtype.hasobject:
            return build_array(bytes_of(raw), dtype, shape, fortran=fortran)
        if shape != () or type(raw) is not list or len(raw) != 1:
            raise ValueError(f"an object array of shape {shape}")
        return raw[0]


def _dtype_of(spec: object) -> np.dtype:
    if type(spec) is not DtypeStandIn:
        raise ValueError("an array without a type")
    return spec.dtype


def bytes_of(raw: object) -> bytes | bytearray:
    """The bytes of an array; Python 2 wrote them as a string."""
    if isinstance(raw, str):
        return raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray):
        raise ValueError(f"array values in a {type(raw).__name__}")
    return raw


def encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return str.encode(text, "latin1")


def empty_bytes() -> bytes:
    """Old protocols write empty bytes as a call without arguments."""
    return b""


def reconstruct(cls: object, shape: object, code: object) -> ArrayStandIn:
    return ArrayStandIn()


def from_buffer(raw: object, spec: object, shape: tuple, order: str) -> np.ndarray:
    dtype = _dtype_of(spec)
    if dtype.hasobject:
        raise ValueError("an object array from bytes")
    return build_array(bytes_of(raw), dtype, shape, fortran=order == "F")


def scalar(spec: object, raw: object) -> np.generic:
    return from_buffer(raw, spec, (1,), "C")[0]


def ordered_dict(*items: object) -> dict:
    return dict(*items)


def rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_unused: object
) -> np.ndarray:
    """The strided view of a storage that a tensor is; ValueError where it leaves the storage."""
    if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor of an impossible shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of shape {size} in a storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    start = storage[offset:] if count else storage[:0]
    return np.lib.stride_tricks.as_strided(start, size, strides, writeable=False)


def rebuild_parameter(data: np.ndarray, *_unused: object) -> np.ndarray:
    return data
