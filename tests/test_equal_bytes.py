"""Equal runs leave files of equal bytes: a hash tells whether two results are the same."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from file_server import Killed
from runs import run, train_flags

from tool.formats.checkpoint import load_checkpoint, save_checkpoint
from tool.train import run_directory

CONTENT = {
    "method": "cam",
    "config": {"scales": (0.5, 1.0), "one": [1, 2], "crop": "step"},
    "model": {"weight": torch.arange(6.0).view(2, 3)},
    "optimizer": {"state": {0: {"step": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    "step": 12,
}


def saved(content: dict, path: Path) -> bytes:
    save_checkpoint(path, content)
    return path.read_bytes()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    first = saved(CONTENT, tmp_path / "one" / "checkpoint.pth")
    assert saved(CONTENT, tmp_path / "one" / "checkpoint.pth") == first
    assert saved(CONTENT, tmp_path / "two" / "other name.pth") == first
    assert saved(load_checkpoint(tmp_path / "one" / "checkpoint.pth"), tmp_path / "3") == first


def test_what_is_one_object_and_what_is_a_copy_gives_equal_bytes(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    shared, text = [1, 2], "".join(["st", "ep"])  # equal to the key `step`, another object
    content["config"] |= {"one": shared, "two": shared, "crop": text}
    separate = copy.deepcopy(CONTENT)
    separate["config"] |= {"one": [1, 2], "two": [1, 2], "crop": "step"}
    model = OrderedDict(separate["model"])
    model._metadata = {"": {"version": 1}}
    separate["model"] = model
    assert saved(content, tmp_path / "a.pth") == saved(separate, tmp_path / "b.pth")


class Pair(NamedTuple):
    """As an optimizer of others might keep its rates."""

    low: int
    high: str


def test_named_tuples_sizes_and_equal_bytes(tmp_path: Path) -> None:
    one, other = bytes([1, 2, 3]), bytes([1, 2, 3])
    assert one is not other
    size = torch.Size([2, 3])
    shared = CONTENT | {"state": [one, one], "size": size, "pair": Pair(1, "step")}
    separate = CONTENT | {"state": [one, other], "size": size, "pair": (1, "step")}
    content = saved(shared, tmp_path / "a.pth")
    assert content == saved(separate, tmp_path / "b.pth")
    back = load_checkpoint(tmp_path / "a.pth")
    assert (back["state"], back["pair"]) == ([one, one], (1, "step"))
    assert type(back["size"]) is torch.Size


EXTRA = {"fbr": ["--momentum", 0.9], "amn": []}  # a bank and SGD's buffers; Adam's state


def killed_before_step_two_is_saved(flags: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: Path, content: dict) -> None:
        if content["step"] == 2:
            raise Killed
        save_checkpoint(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "save_checkpoint", save)
        with pytest.raises(Killed):
            run("train_fbr.py", *flags)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(EXTRA))
def test_a_run_again_and_a_killed_one_give_equal_checkpoints(
    method: str, folder_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flags(name: str) -> list[object]:
        seeds = ["--seed-dir", folder_root / "masks"] if method == "amn" else []
        base = train_flags(folder_root, tmp_path / name, method=method, steps=3)
        return [*base, *EXTRA[method], *seeds]

    killed_before_step_two_is_saved(flags("killed"), monkeypatch)
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pth")["step"] == 1
    content = set()
    for name in ("one", "two", "killed"):
        result = run("train_fbr.py", *flags(name))
        assert result.returncode == 0, result.stderr
        content.add((tmp_path / name / "checkpoint.pth").read_bytes())
    assert len(content) == 1
