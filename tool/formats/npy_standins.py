"""Stand-ins for the functions and classes that a pickle of arrays and tensors calls.

Each stand-in checks its arguments and runs no code of the file. The originals are never called:
NumPy's own rebuild functions accept states that break memory safety, and torch's `_load_from_bytes`
unpickles without limits.
"""

from __future__ import annotations

import math
import re
from types import NoneType

import numpy as np


def build_array(
    raw: bytes | bytearray | memoryview,
    dtype: np.dtype,
    shape: tuple[int, ...],
    *,
    fortran: bool,
    exact: bool = True,
) -> np.ndarray:
    """Return a view of `raw` as an array.

    Args:
        raw: The bytes of the values.
        dtype: The type of the values.
        shape: The sides of the array, at most 32.
        fortran: Whether the values are in column-major order.
        exact: Whether `raw` must hold nothing beyond the values.

    Raises:
        ValueError: `raw` does not hold as many values as `shape` needs, or `shape` is impossible.
    """
    # `type(n) is not int` also refuses bools and objects with an __index__ of their own.
    if len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape) or dtype.itemsize < 1:
        raise ValueError(f"shape {shape} of {dtype}")
    # Compare with the bytes that the file has before anything is allocated.
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if needed > len(raw) or (exact and needed != len(raw)):
        raise ValueError(f"shape {shape} needs {needed} bytes, {len(raw)} are there")
    flat = np.frombuffer(raw, dtype, count) if count else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


class DtypeStandIn:
    """A stand-in for `numpy.dtype` in a pickle: a type code and a byte order, nothing else.

    Args:
        code: The kind of type and its size in bytes or characters, such as "f4".
        align: Ignored.
        copy: Ignored.

    Raises:
        ValueError: The code is not one of numbers, text, bytes or objects.
    """

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        # Six digits limit the size, and the pattern admits no structured or date type.
        if not re.fullmatch(r"[biufcSUO]\d{1,6}", code):
            raise ValueError(f"array type {code!r}")
        self.dtype = np.dtype("O" if code[0] == "O" else code)

    def set_state(self, state: tuple) -> None:
        """Set the byte order from a pickled state.

        Args:
            state: (version, byte order, subarray, names, fields, ...), as NumPy writes it.

        Raises:
            ValueError: The type is structured, or the byte order is none.
        """
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("a structured array type in a pickle")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class ArrayStandIn:
    """A stand-in for a `numpy.ndarray` whose values follow later in the pickle."""

    def __init__(self) -> None:
        self.state: tuple | None = None

    def set_state(self, state: tuple) -> None:
        """Set the shape, the type, the order and the values from a pickled state.

        Args:
            state: (version, shape, type, column-major or not, values), as NumPy writes it.

        Raises:
            ValueError: The state has another form.
        """
        _version, shape, spec, fortran, raw = state
        self.state = (shape, _dtype_of(spec), bool(fortran), raw)

    def value(self) -> object:
        """Return the array, or the one element of an object array of shape ().

        Raises:
            ValueError: There are no values, or they do not fit the shape and the type.
        """
        if self.state is None:
            raise ValueError("an array without its values")
        shape, dtype, fortran, raw = self.state
        if not dtype.hasobject:
            return build_array(bytes_of(raw), dtype, shape, fortran=fortran)
        # `np.save` of a dictionary makes an object array of shape (), whose values are a list.
        if shape != () or type(raw) is not list or len(raw) != 1:
            raise ValueError(f"an object array of shape {shape}")
        return raw[0]


def _dtype_of(spec: object) -> np.dtype:
    """Return the type of a `DtypeStandIn`; raise `ValueError` for anything else."""
    if type(spec) is not DtypeStandIn:
        raise ValueError("an array without a type")
    return spec.dtype


def bytes_of(raw: object) -> bytes | bytearray:
    """Return the bytes of an array.

    Args:
        raw: Bytes, or a string whose latin-1 codes are the bytes, as Python 2 wrote them.

    Raises:
        ValueError: `raw` is neither bytes nor a string.
    """
    if isinstance(raw, str):
        return raw.encode("latin1")
    if not isinstance(raw, bytes | bytearray):
        raise ValueError(f"array values in a {type(raw).__name__}")
    return raw


def encode(text: str, encoding: str) -> bytes:
    """Return `text` encoded as latin-1; raise `ValueError` for any other encoding.

    It stands for `_codecs.encode`, which old protocols use to write bytes.
    """
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return str.encode(text, "latin1")


def empty_bytes() -> bytes:
    """Return empty bytes; old protocols write them as a call of `bytes` without arguments."""
    return b""


def reconstruct(cls: object, shape: object, code: object) -> ArrayStandIn:
    """Return an empty stand-in for an array, whose state follows in the pickle.

    It stands for NumPy's `_reconstruct`, whose arguments describe an empty array and are ignored.
    """
    return ArrayStandIn()


def from_buffer(raw: object, spec: object, shape: tuple, order: str) -> np.ndarray:
    """Return an array of plain values from its bytes; it stands for NumPy's `_frombuffer`.

    Args:
        raw: As for `bytes_of`.
        spec: The type, a `DtypeStandIn`.
        shape: The sides of the array.
        order: "F" for column-major order; anything else is row-major.

    Raises:
        ValueError: The type is an object, or `raw` does not hold exactly the values of `shape`.
    """
    dtype = _dtype_of(spec)
    if dtype.hasobject:
        raise ValueError("an object array from bytes")
    return build_array(bytes_of(raw), dtype, shape, fortran=order == "F")


def scalar(spec: object, raw: object) -> np.generic:
    """Return a single value from its bytes; it stands for NumPy's `scalar`.

    Raises:
        ValueError: The type is an object, or `raw` does not hold exactly one value.
    """
    return from_buffer(raw, spec, (1,), "C")[0]


def ordered_dict(*items: object) -> dict:
    """Return a plain dictionary in place of an ordered one.

    Raises:
        ValueError: A key is none of `check_key`, or `items` is no list of pairs.
    """
    pairs = items[0] if items else []
    if len(items) > 1 or type(pairs) is not list:
        raise ValueError("a dictionary of something else than a list of pairs")
    for key, _ in pairs:
        check_key(key)
    return dict(pairs)


def check_key(key: object) -> None:
    """Raise `ValueError` unless a key of a dictionary is a plain value, or a tuple of these."""
    plain = (str, bytes, bool, int, float, complex, NoneType, np.generic)
    if not isinstance(key, plain) and not (
        type(key) is tuple and all(isinstance(part, plain) for part in key)
    ):
        raise ValueError(f"a {type(key).__name__} as a key")


def rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_unused: object
) -> np.ndarray:
    """Return a tensor as a read-only array, a strided view of its storage.

    Args:
        storage: (n,), contiguous.
        offset: The position of the first element in the storage.
        size: The shape of the tensor.
        stride: The step between neighbours in each dimension, in elements.

    Raises:
        ValueError: The view would leave the storage, or is impossible.
    """
    # `as_strided` checks nothing itself, so everything that it takes is checked here.
    if type(storage) is not np.ndarray or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("a tensor of an impossible shape")
    # The last element must lie in the storage. An expanded tensor, which has more elements than its
    # storage, is refused too, because a small file could claim a huge one.
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > storage.size or (count and last >= storage.size):
        raise ValueError(f"a tensor of shape {size} in a storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    start = storage[offset:] if count else storage[:0]
    return np.lib.stride_tricks.as_strided(start, size, strides, writeable=False)


def rebuild_parameter(data: np.ndarray, *_unused: object) -> np.ndarray:
    """Return the tensor of a parameter, without its other attributes."""
    return data
