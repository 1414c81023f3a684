"""A run does not resume from a step, an optimizer or counters that it cannot have had."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import assert_each_refuses, changed, stage, train_once
from runs import run

from tool.formats.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    return train_once(folder_root, tmp_path_factory.mktemp("hostile") / "run")


def group(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda c: c["optimizer"]["param_groups"][0].update(values)


def buffer(value: object) -> Callable[[dict[str, Any]], None]:
    return lambda c: c["optimizer"]["state"][0].update(momentum_buffer=value)


RESUME = {
    "step beyond": lambda c: c.update(step=3),
    "lr='x'": group(lr="x"),
    "lr=nan": group(lr=math.nan),
    "initial_lr='x'": group(initial_lr="x"),
    "momentum=7": group(momentum=7),
    "momentum of a tensor": group(momentum=torch.ones(3)),
    "params": group(params=[torch.ones(2)]),
    "a buffer of another shape": buffer(torch.ones(7)),
    "a sparse buffer": buffer(torch.eye(3).to_sparse()),
    "a text for a buffer": buffer("x"),
    "another parameter": lambda c: c["optimizer"]["state"].update({10**6: {}}),
    "a text for a state": lambda c: c["optimizer"]["state"].update({0: "x"}),
    "no groups": lambda c: c["optimizer"].update(param_groups=[]),
    "no optimizer": lambda c: c.pop("optimizer"),
    "a list for the optimizer": lambda c: c.update(optimizer=[1]),
    "a negative counter": lambda c: c["model"].update({"bank.written": torch.tensor(-(10**6))}),
    "a counter of text": lambda c: c["model"].update({"bank.written": torch.tensor(math.nan)}),
}


@pytest.mark.parametrize("what", list(RESUME))
def test_resume_from_odd_state(what: str, trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, RESUME[what])
    assert_each_refuses(["resume"], folder_root, path)


def test_a_rate_of_another_step_is_no_obstacle(trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, group(lr=123.0))
    assert run(*stage("resume", folder_root, path)).returncode == 0
    whole = changed(trained, tmp_path / "whole", lambda c: None)
    assert run(*stage("resume", folder_root, whole)).returncode == 0
    one, other = load_checkpoint(path)["model"], load_checkpoint(whole)["model"]
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("value", [None, True, False])
def test_a_run_of_another_device_or_torch_goes_on(value, trained, folder_root, tmp_path) -> None:
    path = changed(trained, tmp_path, group(fused=value, foreach=value, future_key=1))
    assert run(*stage("resume", folder_root, path)).returncode == 0
