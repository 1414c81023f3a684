"""MXNet's `.params`: every form is read, a damaged or hostile file is refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from network.backbones import build_backbone
from network.backbones.resnet38d import name_from_mxnet
from network.weights.pretrained import load_pretrained
from tool.formats.mxnet import read_params

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data")) / "mxnet"
CODES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}
ARRAYS = {
    "arg:weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7,
    "aux:mean": np.array([0.5, -1], np.float64),
    "half": np.array([[1.5], [2]], np.float16),
    "bytes": np.array([0, 255], np.uint8),
    "ints": np.array([-(2**31), 5], np.int32),
    "small": np.array([-128], np.int8),
    "long": np.array([[2**40]], np.int64),
}


def params_bytes(arrays: dict[str, np.ndarray], *, form: str, named: bool = True) -> bytes:
    """What MXNet would write in the form "legacy", "V1", "V2" or "V3"."""
    parts = [struct.pack("<QQQ", 0x112, 0, len(arrays))]
    for array in arrays.values():
        shape, code = array.shape, CODES[array.dtype.name]
        if form == "legacy":
            parts.append(struct.pack(f"<I{len(shape)}I", len(shape), *shape))
        elif form == "V1":
            parts.append(struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape))
        else:
            magic = {"V2": 0xF993FAC9, "V3": 0xF993FACA}[form]
            parts.append(struct.pack(f"<Iii{len(shape)}q", magic, 0, len(shape), *shape))
        parts.append(struct.pack("<iii", 1, 0, code) + array.tobytes())
    names = list(arrays) if named else []
    parts.append(struct.pack("<Q", len(names)))
    parts += [struct.pack("<Q", len(name.encode())) + name.encode() for name in names]
    return b"".join(parts)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", ["legacy", "V1", "V2", "V3"])
def test_every_form_is_read(tmp_path: Path, form: str) -> None:
    read = read_params(write(tmp_path / "a.params", params_bytes(ARRAYS, form=form)))
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
        assert read[name].flags.writeable


def test_without_names_the_arrays_are_numbered(tmp_path: Path) -> None:
    data = params_bytes(ARRAYS, form="V2", named=False)
    read = read_params(write(tmp_path / "a.params", data))
    assert list(read) == [f"[{i}]" for i in range(len(ARRAYS))]


def test_empty_arrays_and_scalars(tmp_path: Path) -> None:
    head, names = struct.pack("<QQQ", 0x112, 0, 4), struct.pack("<Q", 0)
    empty_2 = struct.pack("<Iii", 0xF993FAC9, 0, 0)
    empty_3 = struct.pack("<Iii", 0xF993FACA, 0, -1)
    empty_1 = struct.pack("<II", 0xF993FAC8, 0)
    scalar = struct.pack("<Iiiiiif", 0xF993FACA, 0, 0, 1, 0, 0, 2.5)
    path = write(tmp_path / "a.params", head + empty_2 + empty_3 + empty_1 + scalar + names)
    first, second, third, last = read_params(path).values()
    assert first.shape == second.shape == third.shape == (0,)
    assert last.shape == ()
    assert last == 2.5


@pytest.mark.parametrize("form", ["legacy", "V1", "V2", "V3"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.uint8)}
    whole = params_bytes(arrays, form=form)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"cut\.params is not a whole MXNet \.params file"):
            read_params(write(tmp_path / "cut.params", whole[:length]))
    with pytest.raises(ValueError, match="1 bytes too many"):
        read_params(write(tmp_path / "cut.params", whole + b"\0"))


HOSTILE = {
    "arrays": struct.pack("<QQQ", 0x112, 0, 2**62),
    "legacy dimensions": struct.pack("<QQQI", 0x112, 0, 1, 2**31),
    "legacy sides": struct.pack("<QQQI4Iiii", 0x112, 0, 1, 4, *[2**32 - 1] * 4, 1, 0, 0),
    "sides": struct.pack("<QQQIii2qiii", 0x112, 0, 1, 0xF993FAC9, 0, 2, 2**62, 2**62, 1, 0, 0),
    "empty but huge": struct.pack(
        "<QQQIii3qiiiQ", 0x112, 0, 1, 0xF993FACA, 0, 3, 0, 2**62, 2**62, 1, 0, 0, 0
    ),
    "negative side": struct.pack("<QQQIii1qiii", 0x112, 0, 1, 0xF993FAC9, 0, 1, -4, 1, 0, 0),
    "negative dimensions": struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, -5),
    "sparse, else whole": params_bytes({"a": ARRAYS["half"]}, form="V2").replace(
        struct.pack("<Ii", 0xF993FAC9, 0), struct.pack("<Ii", 0xF993FAC9, 1)
    ),
    "type": struct.pack("<QQQIii1qiii", 0x112, 0, 1, 0xF993FAC9, 0, 1, 1, 1, 0, 7) + b"\0" * 8,
    "negative type": struct.pack("<QQQIii1qiii", 0x112, 0, 1, 0xF993FAC9, 0, 1, 1, 1, 0, -1),
    "names": struct.pack("<QQQQ", 0x112, 0, 0, 3),
    "long name": params_bytes({"a": np.ones(1, np.uint8)}, form="V2")[:-9]
    + struct.pack("<Q", 2**63),
    "name twice": params_bytes({"a": ARRAYS["half"], "b": ARRAYS["half"]}, form="V2")[:-1] + b"a",
    "name not text": params_bytes({"a": ARRAYS["half"]}, form="V2")[:-1] + b"\xff",
    "another kind": b"PK\x03\x04" + b"\0" * 40,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, what: str) -> None:
    path = write(tmp_path / "bad.params", HOSTILE[what])
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bad\.params is not a whole MXNet \.params file"):
        read_params(path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.skipif(not REAL.is_dir(), reason="no files written by MXNet here")
def test_files_written_by_mxnet() -> None:
    expected = json.loads((REAL / "expected.json").read_text())
    assert len(expected) == 6
    for name, tensors in expected.items():
        read = read_params(REAL / name)
        if isinstance(tensors, str):  # MXNet itself wants a switch to read it: what it was given
            assert {n: a.shape for n, a in read.items()} == {
                "a.weight": (2, 3),
                "s": (),
                "z": (0, 3),
            }
            continue
        assert set(read) == set(tensors)
        for key, told in tensors.items():
            assert [list(read[key].shape), read[key].dtype.name] == [told["shape"], told["dtype"]]
            assert read[key].astype(np.float64).sum() == pytest.approx(told["sum"], rel=1e-5)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["legacy", "V1", "V2", "V3"]))
    content = bytearray(params_bytes(ARRAYS, form=form))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "damaged.params", bytes(content))
    with contextlib.suppress(ValueError):  # anything else fails the test
        read_params(path)


def mxnet_name(name: str) -> str:
    """Our name of a ResNet38 tensor -> that of MXNet's file, written from the page of formats."""
    block, _, rest = name.partition(".")
    part = name.rsplit(".", 1)[1]
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
    norm["running_var"] = "moving_var"
    kind = "aux" if part.startswith("running") else "arg"
    if block == "conv1a":
        return "arg:conv1a_weight"
    if block == "bn7":
        return f"{kind}:bn7_{norm[part]}"
    stage, _, index = block[1:].partition("_")
    place = f"{stage}b{index}" if index else f"{stage}a"
    layer = rest.split(".")[0]
    if layer.startswith("conv_"):
        return f"arg:res{place}_{layer.removeprefix('conv_')}_weight"
    return f"{kind}:bn{place}_{layer.removeprefix('bn_')}_{norm[part]}"


def test_the_fields_resnet38_file_fills_the_network(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = build_backbone("resnet38d_slim").net.state_dict()
    state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    state = {n: torch.randn(t.shape, generator=generator) for n, t in state.items()}
    arrays = {mxnet_name(n): t.numpy() for n, t in state.items()}
    assert {"arg:res2b1_branch2a_weight", "aux:bn6a_branch2b2_moving_var"} <= set(arrays)
    arrays["arg:linear1000_weight"] = np.ones((4, 2), np.float32)
    path = write(tmp_path / "resnet38.params", params_bytes(arrays, form="legacy"))
    backbone = build_backbone("resnet38d_slim")
    assert load_pretrained(backbone, str(path)).startswith(f"{len(state)} of {len(state)} tensors")
    for name, tensor in backbone.net.state_dict().items():
        if name in state:
            assert torch.equal(tensor, state[name]), name


def test_a_file_of_another_network_does_not_start_a_run(tmp_path: Path) -> None:
    path = write(tmp_path / "other.params", params_bytes(ARRAYS, form="V2"))
    with pytest.raises(ValueError, match="only 0 of the"):
        load_pretrained(build_backbone("resnet38d_slim"), str(path))


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch2a_weight", "b2.conv_branch2a.weight"),
        ("arg:res7a_branch2b1_weight", "b7.conv_branch2b1.weight"),
        ("aux:bn4b5_branch2b1_moving_mean", "b4_5.bn_branch2b1.running_mean"),
        ("arg:bn7_gamma", "bn7.weight"),
        ("arg:linear1000_bias", "arg:linear1000_bias"),
        ("backbone.conv.weight", "backbone.conv.weight"),
    ],
)
def test_names(name: str, ours: str) -> None:
    assert name_from_mxnet(name) == ours
