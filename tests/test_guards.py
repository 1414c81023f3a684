"""What a reader refuses is refused for its reason: each guard says its own words.

Most of what is damaged would fail somewhere later too, with words that help nobody. So these tests
ask for the words, where those of the readers' own test files ask for the refusal.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pickled import npy_of_pickle
from test_params import params_bytes

from data.class_names import read_class_names
from data.labels import read_labels
from tool.download.archive import unpack
from tool.files import zip_errors
from tool.formats import checkpoint, npy_standins
from tool.formats.cam import Cam, as_stored, at_size, load_cam
from tool.formats.mask import named_values
from tool.formats.mxnet import read_params
from tool.formats.npy import load_npy
from tool.formats.pickle_cost import CostError, check_calls
from tool.formats.regions import Regions, read_regions, save_regions
from tool.train.run_directory import check_complete, check_sizes

NAMES = ("cat", "dog")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- MXNet's .params ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (params_bytes({"a": np.ones(1), "b": np.ones(1)}, form="V2", named=False)[:-8]
         + struct.pack("<QQ", 1, 1) + b"a", "1 names for 2 arrays"),
        (struct.pack("<QQQ", 0x113, 0, 0), "it begins with 0x113, 0x0"),
        (struct.pack("<QQQ", 0x112, 0, 2**40), "it has 1099511627776 arrays, more than"),
        (struct.pack("<QQQ", 0x112, 0, 1000), "1000 items announced, 0 bytes left"),
    ],
)  # fmt: skip
def test_params(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_params(write(tmp_path / "a.params", content))


# --- NumPy's .npy ---


def test_an_array_of_records_with_objects(tmp_path: Path) -> None:
    text = b"{'descr': [('cam', '|O')], 'fortran_order': False, 'shape': (2,), }\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 64
    with pytest.raises(ValueError, match=r"refused.*type \[\('cam', 'O'\)\]"):
        load_npy(write(tmp_path / "a.npy", content))


@pytest.mark.parametrize("state", [(3, "x"), (3, "<", None, ("a",)), (3, "|", None, None, {})])
def test_a_type_in_a_pickle_is_plain(state: tuple) -> None:
    with pytest.raises(ValueError, match="a structured array type"):
        npy_standins.DtypeStandIn("f4").set_state((*state, *[None] * (5 - len(state))))


@pytest.mark.parametrize("items", [({"a": 1},), ([("a", 1)], 2), ("ab",)])
def test_an_ordered_dictionary_is_made_of_pairs(items: tuple) -> None:
    with pytest.raises(ValueError, match="something else than a list of pairs"):
        npy_standins.ordered_dict(*items)


def test_bytes_are_no_objects() -> None:
    spec = npy_standins.DtypeStandIn("O8")
    with pytest.raises(ValueError, match="an object array from bytes"):
        npy_standins.from_buffer(b"\0" * 8, spec, (1,), "C")


def test_an_array_in_a_pickle_has_values() -> None:
    with pytest.raises(ValueError, match="an array without its values"):
        npy_standins.ArrayStandIn().value()


def test_an_array_in_a_pickle_has_a_type() -> None:
    with pytest.raises(ValueError, match="an array without a type"):
        npy_standins.ArrayStandIn().set_state((1, (2,), "f4", False, b""))


def test_a_pickle_names_what_it_may_not_call(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it names posix\.getpid, which is never run"):
        load_npy(write(tmp_path / "a.npy", npy_of_pickle(b"cposix\ngetpid\n.")))


def test_bytes_of_a_pickle_that_are_cut(tmp_path: Path) -> None:
    payload = b"\x80\x05\x96" + struct.pack("<Q", 100) + b"short."
    with pytest.raises(ValueError, match="bytes cut off"):
        load_npy(write(tmp_path / "a.npy", npy_of_pickle(payload)))


# --- what the calls of a pickle make ---


class Call:
    """Pickled as a call of `_codecs.encode` with these arguments."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple:
        import _codecs

        return _codecs.encode, self.arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("text", "utf-7"), "encodes a text as 'utf-7'"), ((3, "ascii"), "that is no text")],
)
def test_calls_of_a_pickle(arguments: tuple, words: str) -> None:
    with pytest.raises(CostError, match=words):
        check_calls(io.BytesIO(pickle.dumps(Call(*arguments), 2)), 10**6)


# --- CAMs ---


def test_maps_of_another_size() -> None:
    cam = Cam(np.array([1]), np.zeros((1, 7, 5), np.float32))
    with pytest.raises(ValueError, match="the CAM is 5x7, its image is 60x40"):
        at_size(cam, (40, 60))


def test_a_value_beyond_float16_is_not_stored() -> None:
    cam = Cam(np.array([1]), np.full((1, 2, 2), 1e6, np.float32))
    with pytest.raises(ValueError, match=r"here\.npy"):
        as_stored(cam, "here.npy")


def test_maps_of_a_dictionary_have_one_size(tmp_path: Path) -> None:
    maps: Any = {2: np.zeros((3, 4), np.float32), 5: np.zeros((4, 3), np.float32)}
    payload = pickle.dumps(maps, 4)
    with pytest.raises(ValueError, match="all of one size"):
        load_cam(write(tmp_path / "a.npy", npy_of_pickle(payload)))


# --- labels, masks, archives ---


def test_names_and_labels(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it lists the foreground classes"):
        read_class_names(tmp_path / "classes.txt")
    with pytest.raises(FileNotFoundError, match=r"a folder without \.xml files"):
        read_labels(tmp_path, NAMES)
    (tmp_path / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    labels = read_labels(tmp_path, NAMES)
    assert labels["a"].tolist() == [1, 0]
    with pytest.raises(KeyError, match="nobody"):
        labels["nobody"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotation/>", "it has no object"),
        ("<annotation><object/></annotation>", "an object without one name"),
        ("<list/>", "its root is <list>"),
        ("text", "is not an XML file"),
    ],
)
def test_annotations(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"a\.xml .*{words}"):
        read_labels(tmp_path, NAMES)["a"]


@pytest.mark.parametrize(("name", "what"), [("__ignore__", "unknown"), ("_background_", "backgr")])
def test_a_class_with_a_name_of_the_layout(name: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"the class '{name}' has this layout's name of .*{what}"):
        named_values(("cat", name), background="_background_", unknown="__ignore__")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_a_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for content in ("one", "two"):
            archive.writestr("list.txt", content)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("list.txt"))
    for name in ("a.zip", "a.tar"):
        with pytest.raises(ValueError, match=r"'list\.txt' is in it twice"):
            unpack(tmp_path / name, tmp_path / "unpacked")


@pytest.mark.parametrize(("number", "kind"), [(errno.EINVAL, ValueError), (errno.EIO, OSError)])
def test_a_failing_disk_is_no_damaged_zip_file(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind), zip_errors():
        raise OSError(number, "words")


# --- files of regions ---


def some_regions() -> Regions:
    ones = np.ones((3, 4), np.float32) / 2
    return Regions(["a", "b"], np.array([0, 0, 1]), ones, ones[:2])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"owner": np.zeros(3, np.int32)}, r"owner is \(3,\) int32"),
        ({"region": np.ones(12, np.float32)}, r"region is \(12,\) float32"),
        ({"region": np.full((3, 4), np.inf, np.float32)}, "region has values that are not finite"),
        ({"owner": np.zeros(2, np.int64)}, "do not fit each other"),
        ({"prototype": np.ones((2, 5), np.float32)}, "do not fit each other"),
        ({"owner": np.array([0, 1, 2])}, "a region has no image"),
        ({"owner": np.array([0, -1, 0])}, "a region has no image"),
    ],
)
def test_regions_that_do_not_fit(tmp_path: Path, changes: dict, words: str) -> None:
    save_regions(tmp_path / "nroi.npz", dataclasses.replace(some_regions(), **changes), {})
    with pytest.raises(ValueError, match=words):
        read_regions(tmp_path / "nroi.npz")


def test_packed_regions(tmp_path: Path) -> None:
    save_regions(tmp_path / "nroi.npz", some_regions(), {"note": "x" * 5000})
    with zipfile.ZipFile(tmp_path / "nroi.npz") as plain:
        entries = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(tmp_path / "packed.npz", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in entries.items():
            packed.writestr(name, content)
    with pytest.raises(ValueError, match="it unpacks to more than its size"):
        read_regions(tmp_path / "packed.npz")


# --- checkpoints ---


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.pth", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(FileNotFoundError, match=words):
            checkpoint.load_tensors(path)


def test_a_file_that_lacks_most_of_a_network() -> None:
    with torch.device("meta"):
        huge = torch.nn.Linear(1 << 15, 1 << 14)
    with pytest.raises(ValueError, match="numbers that are not in it"):
        check_sizes(huge, {}, "a.pth")


def test_an_export_without_scale_and_shift_of_its_norms(tmp_path: Path) -> None:
    path, about = tmp_path / "a.safetensors", json.dumps({"may_lack": ["bn.weight", "bn.bias"]})
    for name, fine in (("bn.running_mean", False), ("other.running_mean", True)):
        safetensors.torch.save_file({name: torch.zeros(2)}, path, {checkpoint._ABOUT: about})
        if fine:
            assert list(checkpoint.load_safetensors(path)[0]) == [name]
        else:
            with pytest.raises(ValueError, match="without the norms' scale and shift"):
                checkpoint.load_safetensors(path)


def test_a_checkpoint_is_complete_and_has_no_more() -> None:
    network = torch.nn.Linear(2, 2)
    state = network.state_dict()
    check_complete(network, state, "a.pth")
    for wrong in ({"weight": state["weight"]}, state | {"other": torch.zeros(1)}):
        with pytest.raises(ValueError, match=r"a\.pth.*(bias|other)"):
            check_complete(network, wrong, "a.pth")
