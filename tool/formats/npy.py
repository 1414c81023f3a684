"""Read `.npy` files of other projects without running anything that is in them.

The field saves Python dictionaries with `np.save`, that is, as pickles. A pickle may name any
function for the reader to call. Here a stand-in of this project (`npy_standins.py`) replaces every
name that a pickle of arrays and tensors needs. A stand-in checks its arguments and builds a NumPy
array from bytes of the file. Any other name or value is refused. torch is never imported.
"""

from __future__ import annotations

import io
import pickle
import struct
import tokenize
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tool.formats import npy_standins
from tool.formats.npy_plain import plain

_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_VERSION = 1001
_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# The errors that reading a damaged or hostile file may raise; a stand-in raises ValueError when it
# refuses its arguments.
MALFORMED = (
    pickle.UnpicklingError,
    tokenize.TokenError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)
_MAGIC = b"\x93NUMPY"


def load_npy(path: Path | str) -> np.ndarray | dict:
    """Read a `.npy` file: an array, or the dictionary inside an object array of shape ().

    Args:
        path: A file written by `np.save`, pickled or not.

    Returns:
        An array of numbers, text or a structure of them, or a dictionary of plain values and such
        arrays. Most of the arrays are read-only. Tensors come back as arrays, bfloat16 as float32.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a `.npy` file, is truncated, announces sizes that it does not
            hold, or is a pickle that carries anything but arrays, tensors and plain containers.
            Nothing in it was run.
    """
    data = Path(path).read_bytes()
    try:
        return parse(data)
    except MALFORMED as error:
        reason = _other_kind(data) or str(error) or type(error).__name__
        raise ValueError(f"{path}: refused, no whole .npy file of np.save: {reason}") from error


def _other_kind(data: bytes) -> str | None:
    """Return what bytes are that are no `.npy` file, for a message; None if they begin as one."""
    if data.startswith(_MAGIC):
        return None
    if not data:
        return "it is empty"
    zipped = data.startswith(b"PK\x03\x04")
    return "it is a .npz or another zip archive" if zipped else "it has another format"


def parse(data: bytes) -> np.ndarray | dict:
    """Return the array or the dictionary in the bytes of a `.npy` file; nothing in it is run.

    Args:
        data: The whole file. Bytes after its content are ignored.

    Returns:
        As `load_npy`. Most of the arrays are read-only; some are views of `data`.

    Raises:
        Exception: One of `MALFORMED`, where `load_npy` raises `ValueError`.
    """
    # NumPy's own functions read the header: the version, the shape, the order and the type.
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = readers[version](file)
    # Without objects the rest of the file is the values. More bytes may follow them.
    if not dtype.hasobject:
        return npy_standins.build_array(
            memoryview(data)[file.tell() :], dtype, shape, fortran=fortran, exact=False
        )
    if dtype != np.dtype("O"):
        raise ValueError(f"type {dtype}")
    # With objects the rest of the file is a pickle.
    value = plain(_Unpickler(file, _ARRAY_NAMES).load(), limit=len(data))
    if not isinstance(value, dict | np.ndarray):
        raise ValueError(f"it holds a {type(value).__name__}, not a dictionary or an array")
    return value


def _storage(data: bytes) -> np.ndarray:
    """Return the values (n,) of a torch storage that a pickled tensor carries.

    This is the stand-in for `torch.storage._load_from_bytes`. The bytes are five pickles (magic
    number, version, system, storage, keys), then n as int64, then the raw values.

    Args:
        data: The bytes; a string if Python 2 wrote them.

    Returns:
        Values of the storage's type; float32 for bfloat16.

    Raises:
        ValueError: The bytes have another layout, or not exactly n values.
        Exception: Another one of `MALFORMED`.
    """
    # Read the five pickles, in which only the types of storages are names.
    file = io.BytesIO(npy_standins.bytes_of(data))
    parts = [_Unpickler(file, _STORAGE_NAMES).load() for _ in range(5)]
    magic, version, system, storage, keys = parts
    if (magic, version) != (_TORCH_MAGIC, _TORCH_VERSION) or not system.get("little_endian"):
        raise ValueError("a torch storage of an unknown form")

    # The storage states its type and its length. There must be exactly one, and no view of it.
    kind, name, key, _location, count, view = storage
    if kind != "storage" or type(key) is not str or keys != [key] or view is not None:
        raise ValueError("a torch storage of an unknown form")

    # Read the values, whose number must agree with both statements of it.
    if struct.unpack("<q", file.read(8)) != (count,):
        raise ValueError("a torch storage of the wrong length")
    values = npy_standins.build_array(
        file.read(), np.dtype(_STORAGE_DTYPES[name]), (count,), fortran=False
    )
    if name == "BFloat16Storage":
        return (values.astype(np.uint32) << 16).view(np.float32)  # the upper half of float32
    return values


_ARRAY_NAMES: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): npy_standins.DtypeStandIn,
    ("_codecs", "encode"): npy_standins.encode,
    ("__builtin__", "bytes"): npy_standins.empty_bytes,
    ("builtins", "bytes"): npy_standins.empty_bytes,
    ("collections", "OrderedDict"): npy_standins.ordered_dict,
    ("torch._utils", "_rebuild_tensor"): npy_standins.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): npy_standins.rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): npy_standins.rebuild_parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}
for _core in ("numpy.core", "numpy._core"):
    _ARRAY_NAMES[f"{_core}.multiarray", "_reconstruct"] = npy_standins.reconstruct
    _ARRAY_NAMES[f"{_core}.multiarray", "scalar"] = npy_standins.scalar
    _ARRAY_NAMES[f"{_core}.numeric", "_frombuffer"] = npy_standins.from_buffer
_STORAGE_NAMES: dict[tuple[str, str], object] = {("torch", name): name for name in _STORAGE_DTYPES}


def _load_build(unpickler: _Unpickler) -> None:
    """Run the pickle's opcode BUILD, which sets the state of an object, for stand-ins only.

    Python's own BUILD sets attributes of any object on the stack.

    Raises:
        ValueError: The object is not a stand-in for a type or an array.
    """
    state = unpickler.stack.pop()
    target = unpickler.stack[-1]
    if (
        type(target) not in (npy_standins.DtypeStandIn, npy_standins.ArrayStandIn)
        or type(state) is not tuple
    ):
        raise ValueError("a pickled object that is not an array")
    target.set_state(state)


def _load_bytearray(unpickler: _Unpickler) -> None:
    """Run the opcode BYTEARRAY8; Python's own takes the memory before it reads the bytes."""
    (count,) = struct.unpack("<Q", unpickler.read(8))
    content = unpickler.read(count)
    if len(content) < count:
        raise EOFError("bytes cut off")
    unpickler.append(bytearray(content))


def _checked(opcode: bytes, keys: slice) -> Callable[[_Unpickler], None]:
    """Return a function that runs an opcode after it has checked what will be hashed.

    The hash of nested tuples that share their parts takes time that doubles with each level.

    Args:
        opcode: Its operands lie on the stack: above the last mark, or on top without a mark.
        keys: Which of them will be hashed.
    """
    run = pickle._Unpickler.dispatch[opcode[0]]

    def checked(unpickler: _Unpickler) -> None:
        for key in unpickler.stack[keys]:
            npy_standins.check_key(key)
        run(unpickler)

    return checked


# This derives from the unpickler in Python, not from the one in C. Its BUILD can be replaced. Its
# memo is a dictionary, so that an index of 2**31 in a hostile file allocates nothing.
class _Unpickler(pickle._Unpickler):
    """An unpickler that knows only the given names, so that a pickle can call nothing else.

    Args:
        file: The pickle.
        names: The stand-in of each (module, name).
    """

    dispatch: dict[int, Callable] = pickle._Unpickler.dispatch | {
        pickle.BUILD[0]: _load_build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.SETITEM[0]: _checked(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, slice(0, None, 2)),
        pickle.DICT[0]: _checked(pickle.DICT, slice(0, None, 2)),
        pickle.ADDITEMS[0]: _checked(pickle.ADDITEMS, slice(None)),
        pickle.FROZENSET[0]: _checked(pickle.FROZENSET, slice(None)),
    }

    def __init__(self, file: io.BytesIO, names: dict[tuple[str, str], object]) -> None:
        super().__init__(file, encoding="latin1")
        self.names = names

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in of a name; raise `ValueError` if it has none."""
        if (module, name) not in self.names:
            raise ValueError(f"it names {module}.{name}, which is never run")
        return self.names[module, name]

    def persistent_load(self, pid: object) -> object:
        """Return the description of a torch storage; raise `ValueError` in any other pickle."""
        if self.names is not _STORAGE_NAMES:
            raise ValueError("a reference to something outside the pickle")
        return pid
