"""torch's tensors in `.npy` files of others: read without torch, and nothing in them is run."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pickled import Calls, npy_of_pickle, write_object
from runs import REPOSITORY

from tool.formats.npy import load_npy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8", "bool"])
def test_tensors(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    tensors = {"whole": base, "part": base[1:3, 2:5], "turned": base.t(), "empty": base[:0]}
    if base.is_floating_point():
        tensors["parameter"] = torch.nn.Parameter(base)
    read = load_npy(write_object(tmp_path / "t.npy", tensors))
    for name, tensor in tensors.items():
        expected = tensor.detach().float().numpy()
        assert read[name].shape == expected.shape
        np.testing.assert_array_equal(read[name].astype("f4"), expected)


def test_tensors_are_read_without_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = write_object(tmp_path / "t.npy", {"keys": torch.tensor([3, 5])})
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from tool.formats.npy import load_npy\n"
        f"assert load_npy({str(path)!r})['keys'].tolist() == [3, 5]\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_a_pickle_inside_a_tensor_is_not_run(tmp_path: Path) -> None:
    """`torch.storage._load_from_bytes` of torch loads whatever bytes it is given."""
    torch = pytest.importorskip("torch")
    target = tmp_path / "ran"
    hostile = Calls(os.system, f"touch {target}")
    forms = [pickle.dumps(hostile)]
    for new in (False, True):
        file = io.BytesIO()
        torch.save({"a": hostile}, file, _use_new_zipfile_serialization=new)
        forms.append(file.getvalue())
    for form in forms:
        path = write_object(
            tmp_path / "h.npy", {"cam": Calls(torch.storage._load_from_bytes, form)}
        )
        with pytest.raises(ValueError, match="refused"):
            load_npy(path)
        assert not target.exists()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (4, 4), (4, 1)),
        (3, (4,), (1,)),
        (0, (2,), (10**9,)),
        (0, (10**9,), (0,)),
        (0, (2,), ()),
        (0, (2,), (-1,)),  # before its start
        (-1, (1,), (1,)),
        (0, (-2,), (1,)),
        (0, (True,), (1,)),
    ],
)
def test_a_tensor_may_not_leave_its_storage(
    tmp_path: Path, offset: int, size: tuple, stride: tuple
) -> None:
    torch = pytest.importorskip("torch")
    storage = torch.arange(6.0)
    function, arguments = storage.__reduce_ex__(2)[:2]
    lying = (arguments[0], offset, size, stride, *arguments[4:])
    with pytest.raises(ValueError, match="refused"):
        load_npy(write_object(tmp_path / "t.npy", {"a": Calls(function, *lying)}))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x8a\nl\xfc", b"\x8a\nl\xfd"),  # the magic number
        (b"\x80\x02M\xe9\x03.", b"\x80\x02M\xe8\x03."),  # the version
        (b"\x88X", b"\x89X"),  # the byte order
        (b".\x06" + b"\0" * 7, b".\x05" + b"\0" * 7),  # the number of values before them
        (b"K\x06N", b"K\x05N"),  # the number of values in the pickle
        (b"K\x06N", b"K\x06K\x01"),  # a view of another storage
        (b"FloatStorage", b"OtherStorage"),
        (b"FloatStorage", b"LongStorage"),
        (b"X\x07\x00\x00\x00storage", b"X\x07\x00\x00\x00garbage"),
    ],
)
def test_a_storage_of_another_form_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    torch = pytest.importorskip("torch")
    data = torch.arange(6.0).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=data, dtype=torch.float32, _internal=True)
    file = io.BytesIO()
    torch.save(typed, file, _use_new_zipfile_serialization=False)
    good = file.getvalue()
    assert good.count(old) == 1

    def read(content: bytes) -> np.ndarray:
        storage = Calls(torch.storage._load_from_bytes, content)
        tensor = Calls(torch._utils._rebuild_tensor, storage, 0, (4,), (1,))
        return load_npy(write_object(tmp_path / "s.npy", {"a": tensor}))["a"]

    assert read(good).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="refused"):
        read(good.replace(old, new))


def test_a_storage_must_be_flat(tmp_path: Path) -> None:
    """A 2-D array in the place of the storage would shift the bounds."""
    torch = pytest.importorskip("torch")
    call = Calls(torch._utils._rebuild_tensor, np.zeros((8, 8), "f4"), 7, (50,), (1,))
    path = tmp_path / "t.npy"
    path.write_bytes(npy_of_pickle(pickle.dumps({"a": call}, 5)))
    with pytest.raises(ValueError, match="without a storage"):
        load_npy(path)
