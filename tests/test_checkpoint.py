"""Checkpoints come back as they were, are whole or absent, and run nothing."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tool.formats import checkpoint
from tool.formats.checkpoint import (
    load_checkpoint,
    load_safetensors,
    load_tensors,
    save_checkpoint,
)

CONTENT = {
    "method": "cam",
    "config": {"crop": 64, "scales": (0.5, 1.0), "weights": None},
    "model": {"weight": torch.arange(6.0).view(2, 3), "written": torch.tensor(7)},
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    "step": 12,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoint.pth"
    save_checkpoint(path, CONTENT)
    return path


def test_a_checkpoint_comes_back_as_it_was(path: Path) -> None:
    content = load_checkpoint(path)
    assert content["config"] == CONTENT["config"]
    assert content["step"] == 12
    assert torch.equal(content["model"]["weight"], CONTENT["model"]["weight"])
    assert content["model"]["weight"].dtype == torch.float32
    assert content["model"]["written"].dtype == torch.long
    assert content["optimizer"]["param_groups"] == [{"lr": 0.1}]


def test_a_write_that_fails_leaves_the_old_checkpoint_and_no_other_file(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|lambda"):
        save_checkpoint(path, CONTENT | {"extra": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_missing_checkpoint_names_the_stage_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*train_fbr\.py"):
        load_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_tensors(tmp_path / "none.pth")


@pytest.mark.parametrize("key", ["method", "config", "model", "step"])
@pytest.mark.parametrize("value", [None, [1]])
def test_a_checkpoint_of_something_else_says_what_it_lacks(
    path: Path, key: str, value: object
) -> None:
    save_checkpoint(path, {k: v for k, v in CONTENT.items() if k != key})
    with pytest.raises(ValueError, match=f"lacks {key}"):
        load_checkpoint(path)
    save_checkpoint(path, CONTENT | {key: value})
    with pytest.raises(ValueError, match=f"lacks {key}"):
        load_checkpoint(path)


def test_a_file_that_holds_no_dictionary_is_refused(path: Path) -> None:
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match="holds a Tensor"):
        load_checkpoint(path)


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["model", "config", "extra"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_checkpoint_is_refused_and_nothing_runs(
    path: Path, place: str, zipped: bool
) -> None:
    trace = path.parent / "trace"
    content = CONTENT | {place: {"weight": Hostile(trace)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"checkpoint\.pth.*refused"):
        load_checkpoint(path)
    assert not trace.exists()


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut off or with some bytes changed."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def refusal(path: Path) -> str | None:
    """What is said about a file that is refused; anything but a ValueError goes through."""
    try:
        load_tensors(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_file_is_a_value_error_that_names_it(path: Path, zipped: bool) -> None:
    torch.save(CONTENT, path, _use_new_zipfile_serialization=zipped)
    content, rng, messages = path.read_bytes(), random.Random(0), []
    for _ in range(200):
        path.write_bytes(damaged(content, rng))
        messages.append(refusal(path))
    refused = [message for message in messages if message is not None]
    assert len(refused) > 50
    assert all(str(path) in message for message in refused)


def test_a_compressed_file_is_refused_before_torch_opens_it(path: Path, monkeypatch) -> None:
    """torch would take the memory first."""
    torch.save(CONTENT | {"zeros": torch.zeros(10**6)}, path)
    small = path.with_name("small.pth")
    with zipfile.ZipFile(path) as file, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in file.infolist():
            packed.writestr(entry.filename, file.read(entry))
    opened: list[Path] = []
    monkeypatch.setattr(checkpoint, "load_weights_only", opened.append)
    with pytest.raises(ValueError, match=r"small\.pth is not a readable checkpoint.*compressed"):
        load_tensors(small)
    assert not opened


@pytest.mark.parametrize("about", ["[1]", "3", '"fbr"', "null"])
def test_metadata_of_another_shape_is_not_of_an_export(about: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {checkpoint._ABOUT: about}
    safetensors.torch.save_file({"classifier.weight": torch.zeros(2, 3)}, path, metadata)
    with pytest.raises(ValueError, match=r"its metadata is not of network\.export"):
        load_safetensors(path)
