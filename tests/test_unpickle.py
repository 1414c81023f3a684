"""`.npy` files of others: what the field writes is read, and nothing in a file is ever run."""

from __future__ import annotations

import _codecs
import builtins
import collections
import contextlib
import os
import pickle
import random
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pickled import Calls, npy_of_pickle, write_object

from tool.formats.npy import load_npy


@pytest.mark.parametrize("dtype", ["f4", "f2", ">f8", "i4", "u1", "?", "U3", "c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_plain_arrays(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    read = load_npy(tmp_path / "a.npy")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_dictionaries_of_arrays(tmp_path: Path, protocol: int) -> None:
    content = {
        "2007_000032": np.arange(6, dtype="f4").reshape(2, 3).T,
        np.int32(2007000033): np.arange(3, dtype=">i8"),
        7: [np.float32(0.5), (1, "text", None, True, b"bytes"), {"inner": np.zeros((0, 4), "u1")}],
    }
    array = np.empty((), object)
    array[()] = content
    path = tmp_path / "d.npy"
    path.write_bytes(npy_of_pickle(pickle.dumps(array, protocol)))
    read = load_npy(path)
    assert list(read) == list(content)
    for key in list(content)[:2]:
        assert read[key].dtype == content[key].dtype
        np.testing.assert_array_equal(read[key], content[key])
    assert read[7][:2] == content[7][:2]
    assert type(read[7][0]) is np.float32
    assert read[7][2]["inner"].shape == (0, 4)


def test_files_of_older_numpy_and_python_2(tmp_path: Path) -> None:
    """NumPy 1 names its modules numpy.core; Python 2 writes bytes as strings."""
    payload = pickle.dumps({"a": np.arange(3, dtype="<f4")}, 2)
    older = payload.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert older != payload
    # GLOBAL names by line, so the shorter name needs no other change.
    path = tmp_path / "old.npy"
    path.write_bytes(npy_of_pickle(older))
    np.testing.assert_array_equal(load_npy(path)["a"], np.arange(3, dtype="f4"))
    raw = np.float32(1.5).tobytes()
    python2 = (
        b"\x80\x02}U\x01ac"
        + b"numpy.core.multiarray\nscalar\n"
        + b"cnumpy\ndtype\nU\x02f4K\x00K\x01"
        b"\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x04" + raw + b"\x86Rs."
    )
    path.write_bytes(npy_of_pickle(python2))
    assert load_npy(path) == {"a": np.float32(1.5)}


def hostile_calls(target: Path) -> dict[str, object]:
    command = f"touch {target}"
    python = f"open({str(target)!r}, 'w')"
    return {
        "system": Calls(os.system, command),
        "popen": Calls(os.popen, command),
        "eval": Calls(eval, python),
        "exec": Calls(exec, python),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "subprocess": Calls(subprocess.Popen, ["touch", str(target)]),
        "open": Calls(open, str(target), "w"),
        "loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, command))),
        "numpy load": Calls(np.load, str(target), None, True),
        "fromfile": Calls(np.fromfile, "/dev/zero"),
    }


@pytest.mark.parametrize("name", sorted(hostile_calls(Path("x"))))
@pytest.mark.parametrize("where", ["top", "value", "key", "object array", "list"])
def test_a_call_is_refused_and_not_made(tmp_path: Path, name: str, where: str) -> None:
    target = tmp_path / "ran"
    call = hostile_calls(target)[name]
    inner = np.empty(2, object)
    inner[:] = [call, 1]
    wrapped = {
        "top": call,
        "value": {"cam": call},
        "key": {Calls(tuple, [call]): 1},
        "object array": {"cam": inner},
        "list": [np.zeros(3), [call]],
    }[where]
    for protocol in (0, 2, 4):
        array = np.empty((), object)
        array[()] = wrapped
        path = tmp_path / "hostile.npy"
        path.write_bytes(npy_of_pickle(pickle.dumps(array, protocol)))
        with pytest.raises(ValueError, match=r"hostile\.npy: refused"):
            load_npy(path)
        assert not target.exists()


def test_the_hostile_files_would_run_if_they_were_loaded(tmp_path: Path) -> None:
    """The guard of the tests above: their payloads work."""
    target = tmp_path / "ran"
    write_object(tmp_path / "h.npy", {"cam": Calls(os.system, f"touch {target}")})
    np.load(tmp_path / "h.npy", allow_pickle=True)
    assert target.exists()


class Stateful:
    """Pickles with a state, so that a BUILD follows."""

    def __init__(self, function: object, arguments: tuple, state: object) -> None:
        self.call = (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.call


OTHER_CONTENT = {
    "dtype": np.dtype("f4"),
    "dtype with objects": np.dtype([("a", "O")]),
    "masked array": np.ma.masked_array([1, 2]),
    "dates": np.array(["2020-01-01"], "M8[D]"),
    "object array": np.array([{}, {}]),
    "object array of one": np.array([{}]),
    "structured array": np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")]),
    "path": Path("x"),
    "generator": random.Random(0),
    "counter": collections.Counter("ab"),
    "object": object(),
    "function": len,
    "allocation": Calls(np.ndarray, (10**4,), np.dtype("O")),
    "bytearray": Calls(builtins.bytearray, 10**4),
    "bytes": Calls(builtins.bytes, 10**4),
    "encoding": Calls(_codecs.encode, "é", "utf-8"),
    "state": Stateful(collections.OrderedDict, (), {"x": 1}),
}


@pytest.mark.parametrize("name", OTHER_CONTENT)
def test_other_content_is_refused(tmp_path: Path, name: str) -> None:
    path = write_object(tmp_path / "o.npy", {"cam": OTHER_CONTENT[name]})
    with pytest.raises(ValueError, match="refused"):
        load_npy(path)


def test_a_later_version_of_the_format_is_named(tmp_path: Path) -> None:
    """NumPy writes version 3 for structured arrays with names beyond latin-1."""
    np.save(tmp_path / "a.npy", np.zeros(2, [("λ", "f4")]))
    with pytest.raises(ValueError, match=r"a\.npy.*version \(3, 0\) of the format"):
        load_npy(tmp_path / "a.npy")


@pytest.mark.parametrize("content", [3, [1], "text", (1, 2), None])
def test_the_outermost_object_is_a_dictionary(tmp_path: Path, content: object) -> None:
    with pytest.raises(ValueError, match="not a dictionary"):
        load_npy(write_object(tmp_path / "o.npy", content))


@pytest.mark.parametrize(
    "payload",
    [
        b"cnumpy\ndtype\n(dX\x08\x00\x00\x00__init__Nsb.",  # BUILD on one of our functions
        b"c_codecs\nencode\nN}X\x03\x00\x00\x00abcNs\x86b.",
        b"\x80\x02(cnumpy\ndtype\nX\x02\x00\x00\x00f4o.",  # OBJ
        b"(X\x02\x00\x00\x00f4inumpy\ndtype\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pstorage\n.",  # PERSID
        b"}X\x01\x00\x00\x00aX\x01\x00\x00\x00bQs.",  # BINPERSID
        b"cnumpy\ndtype\n.",
        b"(lp0\ng0\na.",  # a list inside itself
        b"(dp0\nX\x01\x00\x00\x00ag0\ns.",  # a dictionary inside itself
        b"r\xff\xff\xff\x7f",  # a memo index of 2**31 on an empty stack
        b"}r\xff\xff\xff\x7f0.",
        b"h\x09.",
        b".",
        b"",
        b"]" * 5000 + b"a" * 4999 + b".",
    ],
)
def test_damaged_and_odd_pickles_are_a_value_error(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "p.npy"
    path.write_bytes(npy_of_pickle(payload))
    with pytest.raises(ValueError, match=r"p\.npy: refused"):
        load_npy(path)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x80\x02]N\x85b.",  # BUILD on a list
        b"\x80\x02}N\x85b.",  # BUILD on a dictionary
        b"\x80\x02cnumpy\ndtype\nN\x85b.",  # BUILD on one of our functions
        b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4tR(lb.",  # the state is a list
    ],
)
def test_only_stand_ins_get_a_state(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "p.npy"
    path.write_bytes(npy_of_pickle(payload))
    with pytest.raises(ValueError, match="a pickled object that is not an array"):
        load_npy(path)


def test_shared_references_do_not_multiply(tmp_path: Path) -> None:
    nested: list = [0]
    for _ in range(12):
        nested = [nested] * 50
    path = write_object(tmp_path / "n.npy", {"a": nested})
    with pytest.raises(ValueError, match="values in"):  # a reader would write them out
        load_npy(path)
    few = [[0] * 5] * 3
    assert load_npy(write_object(path, {"a": few})) == {"a": few}


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not numpy",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00",
        header("(1000000000000,)") + b"\0" * 64,
        header("(1000000000000, 1000000000000)"),
        header("(-1,)") + b"\0" * 64,
        header("(3,)") + b"\0" * 11,
        header("(10**12,)"),
        header("(1000000000000,)", "'|V0'"),
        header("(1,)", "[('cam', '<f2', (1000000000, 1000000000))]"),
        header("(2,)", "[('class_index', '|u1'), ('cam', '|O')]") + b"\0" * 64,
        header("(" * 3000),
        header("__import__('os').system('true')"),
        header("()", "'no type'"),
    ],
)
def test_headers_that_lie_are_a_value_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "h.npy"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"h\.npy: refused"):
        load_npy(path)


@pytest.mark.parametrize("content", ["array", "dictionary", "tensor"])
def test_truncated_anywhere(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.npy"
    if content == "array":
        np.save(path, np.arange(50.0))
    elif content == "dictionary":
        write_object(path, {"a": np.arange(50.0), 3: np.float32(1)})
    else:
        torch = pytest.importorskip("torch")
        write_object(path, {"a": torch.arange(50.0)})
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="refused"):
            load_npy(path)


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    path = write_object(tmp_path / "f.npy", {"a": np.arange(5.0), 3: [np.float32(1), "x"]})
    data = path.read_bytes()
    start = data.index(b"\n")
    draw = random.Random(0)
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(start, len(data))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ValueError):
            load_npy(path)


def test_the_bytes_of_a_pickled_array_fit_its_shape(tmp_path: Path) -> None:
    payload = pickle.dumps({"a": np.arange(3, dtype="u1")}, 4)
    assert payload.count(b"K\x03\x85") == 1
    path = tmp_path / "s.npy"
    for length in (b"\x02", b"\x04", b"\xff"):
        path.write_bytes(npy_of_pickle(payload.replace(b"K\x03\x85", b"K" + length + b"\x85")))
        with pytest.raises(ValueError, match="needs"):
            load_npy(path)


@pytest.mark.parametrize("raw", [[1, 2, 3], (1, 2, 3), {1: 2}, 3])
def test_the_values_of_a_pickled_array_are_bytes(tmp_path: Path, raw: object) -> None:
    state = (1, (3,), np.dtype("u1"), False, raw)
    array = Stateful(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)
    with pytest.raises(ValueError, match=f"array values in a {type(raw).__name__}"):
        load_npy(write_object(tmp_path / "v.npy", {"a": array}))


def test_a_missing_file_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_npy(tmp_path / "none.npy")
