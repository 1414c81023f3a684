"""Read MXNet's `.params` files (named arrays) without MXNet; every size is checked first.

A file holds, little-endian:

1. a header: the magic number of a list, a reserved 0, and the number of arrays (64 bits each);
2. the arrays, each with its version, storage type, shape, device, data type and values;
3. the number of names (64 bits), and each name with its length (64 bits).

Of an array's fields, older versions lack some.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np

_LIST = 0x112  # the magic number of a list of arrays
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # the magic numbers of an array's versions
_DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")  # by MXNet's code of the data type
_MOST_ARRAYS = 2**16  # a network has thousands; each takes far more memory than its bytes here
_MAX_DIMENSIONS = 32  # the most that NumPy 1 allows


def read_params(path: Path | str) -> dict[str, np.ndarray]:
    """Return the arrays of a `.params` file of any version, by name.

    Args:
        path: The file, little-endian as MXNet writes it on every current machine.

    Returns:
        Arrays with memory of their own. Their names are those of the file (`arg:conv1a_weight`), or
        `[0]`, `[1]`, ... if the file has none. An array that MXNet saved empty has shape (0,).

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another format, is truncated, announces sizes that it does not
            hold, has a sparse array, or has a name twice; names the file.
    """
    data = Path(path).read_bytes()
    try:
        return _File(data).arrays()
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole MXNet .params file: {error}") from error


class _File:
    """The bytes of a file, and a reading position in them."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays of the file, by name.

        Raises:
            ValueError: The file is not a whole `.params` file.
        """
        # The header.
        magic, reserved, count = self.numbers("QQQ")
        if (magic, reserved) != (_LIST, 0):
            raise ValueError(f"it begins with {magic:#x}, {reserved:#x}")
        if count > _MOST_ARRAYS:
            raise ValueError(f"it has {count} arrays, more than {_MOST_ARRAYS}")
        # The arrays; the shortest one is a 4-byte number.
        arrays = [self.array() for _ in self.counted(count, 4)]
        # The names, one per array or none at all; the shortest one is an 8-byte length.
        (named,) = self.numbers("Q")
        if named not in (0, count):
            raise ValueError(f"{named} names for {count} arrays")
        names = [self.name() for _ in self.counted(named, 8)]
        # Nothing may follow.
        if self.position != len(self.data):
            raise ValueError(f"{len(self.data) - self.position} bytes too many")
        if len(set(names)) != len(names):
            raise ValueError("a name twice")
        return dict(zip(names or [f"[{i}]" for i in range(count)], arrays, strict=True))

    def array(self) -> np.ndarray:
        """Read the next array.

        Returns:
            The array, with memory of its own; shape (0,) float32 if MXNet saved it empty.

        Raises:
            ValueError: The array is sparse, has an unknown type or shape, or is cut off.
        """
        (version,) = self.numbers("I")
        # Versions 2 and 3 state the storage type; 0 is dense.
        if version in (_V2, _V3):
            (storage,) = self.numbers("i")
            if storage != 0:
                raise ValueError(f"an array of storage type {storage}: only dense ones can be read")
        # The number of dimensions. The oldest version has no magic number and begins with it, and
        # its sides have 32 bits. The sides of later versions have 64.
        dimensions, width = version, "I"
        if version in (_V1, _V2, _V3):
            dimensions, width = self.numbers("I" if version == _V1 else "i")[0], "q"
        # An array that MXNet saved empty ends here. Version 3 marks it with -1, because there 0
        # dimensions mean a scalar.
        if dimensions == (-1 if version == _V3 else 0):
            return np.zeros(0, np.float32)
        # The sides.
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"an array of {dimensions} dimensions")
        shape = self.numbers(width * dimensions)
        if any(side < 0 for side in shape):
            raise ValueError(f"an array of shape {shape}")
        # The device that held the array, which does not matter here, and the data type.
        _device, _index, code = self.numbers("iii")
        if not 0 <= code < len(_DTYPES):
            raise ValueError(f"an array of data type {code}")
        dtype = np.dtype(_DTYPES[code])
        # The values. The copy frees the array from the bytes of the whole file.
        values = np.frombuffer(self.take(math.prod(shape) * dtype.itemsize), dtype)
        return values.reshape(shape).copy()

    def name(self) -> str:
        """Read the next name: its length, then its bytes in UTF-8."""
        (length,) = self.numbers("Q")
        return self.take(length).decode()

    def numbers(self, form: str) -> tuple[int, ...]:
        """Read the next little-endian integers, one per letter of the `struct` format `form`.

        Raises:
            ValueError: The file ends before them.
        """
        form = f"<{form}"
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def counted(self, count: int, size: int) -> range:
        """Return range(count) if `count` items of at least `size` bytes can still follow.

        The check comes before the items are read, so that a false count costs no time or memory.

        Raises:
            ValueError: The rest of the file is too short for them.
        """
        if count * size > len(self.data) - self.position:
            raise ValueError(
                f"{count} items announced, {len(self.data) - self.position} bytes left"
            )
        return range(count)

    def take(self, size: int) -> bytes:
        """Read the next `size` bytes.

        Raises:
            ValueError: The file has fewer bytes left.
        """
        end = self.position + size
        if end > len(self.data):
            raise ValueError(f"truncated: {size} bytes wanted at byte {self.position}")
        taken = self.data[self.position : end]
        self.position = end
        return taken
