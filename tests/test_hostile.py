"""Checkpoints that were tampered with: one line that names the file, exit status 2, all kept."""

from __future__ import annotations

import copy
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hostile import PROPERTY, READERS, assert_each_refuses, changed, stage, train_once
from hypothesis import given
from hypothesis import strategies as st
from runs import assert_refused, run
from torch import Tensor

from tool.formats.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    return train_once(folder_root, tmp_path_factory.mktemp("hostile") / "run")


@pytest.mark.parametrize("name", READERS)
def test_the_whole_checkpoint_is_read(name: str, trained, folder_root, tmp_path) -> None:
    result = run(*stage(name, folder_root, changed(trained, tmp_path, lambda c: None)))
    assert result.returncode == 0, result.stderr


def meta() -> Tensor:
    return torch.empty(10**13, device="meta")


def quantised() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


ODD = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": meta,
    "quantised": quantised,
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "expanded": lambda: torch.ones(1).expand(10**12),
    "unsigned": lambda: torch.ones(2, dtype=torch.uint64),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", list(ODD))
@pytest.mark.parametrize("place", ["classifier.weight", "an extra"])
def test_a_tensor_that_is_not_plain(odd: str, place: str, trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, lambda c: c["model"].update({place: ODD[odd]()}))
    assert_each_refuses(READERS, folder_root, path, "refused", place)


@pytest.mark.parametrize("extra", [{3: torch.ones(2)}, {"x": 5}, {"__metadata__": torch.ones(1)}])
def test_an_entry_that_is_no_named_tensor(extra: dict, trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, lambda c: c["model"].update(extra))
    assert_each_refuses(["infer", "export", "resume"], folder_root, path, "refused")


def test_tensors_that_share_memory_are_exported_or_too_large(trained, tmp_path) -> None:
    big = torch.arange(1.0 + 10**5)
    names = ("project_foreground.weight", "project_background.weight")
    shape = load_checkpoint(trained / "checkpoint.pth")["model"][names[0]].shape
    parts = {n: big[i : i + shape.numel()].view(shape) for i, n in enumerate(names)}
    path = changed(trained, tmp_path, lambda c: c["model"].update(parts))
    assert run("network/export.py", path).returncode == 0
    exported = load_checkpoint(tmp_path / "model.safetensors")["model"]
    assert all(torch.equal(exported[name], part) for name, part in parts.items())
    (tmp_path / "model.safetensors").unlink()
    many = {f"copy{i}": big for i in range(200)}
    path = changed(trained, tmp_path, lambda c: c["model"].update(many))
    assert_refused(run("network/export.py", path), "checkpoint.pth", "share memory")


CONTENT = {
    "may_lack=5": lambda c: c.update(may_lack=5),
    "tuple key": lambda c: c["config"].update({("a", 1): 2}),
    "a number's key": lambda c: c["config"]["method_config"].update({1: 2}),
    "a tensor in the configuration": lambda c: c["config"].update(seed=torch.ones(2)),
    "nested": lambda c: c["config"].update(x=nested(100)),
    "a list in itself": lambda c: c["config"].update(x=ring()),
    "laughs": lambda c: c["config"].update(x=laughs()),
    "long number": lambda c: c["config"].update(x=10**5000),
    "class_names=5": lambda c: c["config"].update(class_names=5),
    "step=-5": lambda c: c.update(step=-5),
    "step=True": lambda c: c.update(step=True),
    "step=10**100": lambda c: c.update(step=10**100),
}


def nested(depth: int) -> list:
    """A list in a list in a list ..."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def ring() -> list:
    """A list that holds itself."""
    value: list = []
    value.append(value)
    return value


def laughs() -> list:
    """A small file, 10**8 values when written out."""
    value: list = [1]
    for _ in range(8):
        value = [value] * 10
    return value


@pytest.mark.parametrize("what", list(CONTENT))
def test_odd_content_beside_the_tensors(what: str, trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, CONTENT[what])
    assert_each_refuses(["infer", "export", "resume"], folder_root, path)


KEYS = st.one_of(st.text(max_size=3), st.integers(), st.tuples(st.integers()))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)
PLACES = ("method", "config", "model", "step", "may_lack", "optimizer", "an extra", "in config")


@pytest.mark.parametrize("name", ["infer", "export", "resume"])
def test_any_plain_content_is_read_or_refused(name: str, trained, folder_root, tmp_path) -> None:
    whole = torch.load(trained / "checkpoint.pth", weights_only=True)

    @PROPERTY
    @given(place=st.sampled_from(PLACES), key=st.sampled_from(list(whole["config"])), value=VALUES)
    def holds(place: str, key: str, value: Any) -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        content = {**whole, "config": dict(whole["config"])}
        (content["config"] if place == "in config" else content).update(
            {key if place == "in config" else place: copy.deepcopy(value)}
        )
        torch.save(content, tmp_path / "checkpoint.pth")
        result = run(*stage(name, folder_root, tmp_path / "checkpoint.pth"))
        if result.returncode:
            assert_refused(result, "checkpoint.pth")

    holds()


@pytest.mark.parametrize("name", ["infer", "export", "init"])
def test_metadata_that_is_nested_deeply(name: str, folder_root, tmp_path) -> None:
    path = tmp_path / "deep.safetensors"
    about = '{"config": ' + "[" * 100_000 + "]" * 100_000 + "}"
    safetensors.torch.save_file({"w": torch.ones(2)}, path, {"fbr_checkpoint": about})
    assert_refused(run(*stage(name, folder_root, path)), "deep.safetensors")


def test_an_exported_file_that_says_it_may_lack_weights(trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, lambda c: None)
    assert run("network/export.py", path).returncode == 0
    exported = tmp_path / "model.safetensors"
    content = load_checkpoint(exported)
    about = {key: content[key] for key in ("method", "config", "step")}
    about["may_lack"] = sorted(content["model"])
    metadata = {"fbr_checkpoint": json.dumps(about)}
    safetensors.torch.save_file({"bank.written": torch.tensor(0)}, exported, metadata)
    assert_refused(run(*stage("infer", folder_root, exported)), "model.safetensors", "does not fit")


def test_a_compressed_file_is_refused_before_it_is_unpacked(trained, folder_root, tmp_path) -> None:
    bomb = {"zeros": torch.zeros(10**7)}
    path = changed(trained, tmp_path, lambda c: c["model"].update(bomb))
    small = tmp_path / "small.pth"
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in file.infolist():
            packed.writestr(entry.filename, file.read(entry))
    assert small.stat().st_size < path.stat().st_size // 2
    assert_each_refuses(["infer", "export", "init"], folder_root, small)
