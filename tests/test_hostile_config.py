"""A checkpoint whose configuration was tampered with is refused before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import ANYWHERE, PROPERTY, assert_each_refuses, changed, stage, train_once
from hypothesis import given
from hypothesis import strategies as st
from runs import assert_refused, run

from network.backbones import build_backbone
from network.methods.fbr import Fbr
from network.weights.restore import restore
from tool.formats.checkpoint import load_checkpoint, save_exported

FIELDS = {field.name: field.default for field in dataclasses.fields(Fbr.Config)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    return train_once(folder_root, tmp_path_factory.mktemp("hostile") / "run")


def options(**values: object) -> Callable[[dict[str, Any]], None]:
    return lambda c: c["config"]["method_config"].update(values)


def wrong_values(name: str) -> list[Any]:
    """Values that the hyper-parameter cannot have."""
    return [*ANYWHERE, -1, 10**12, 1.5] if isinstance(FIELDS[name], int) else list(ANYWHERE)


def test_a_hyper_parameter_of_another_kind_is_refused(trained, tmp_path) -> None:
    names = st.sampled_from(list(FIELDS))

    @PROPERTY
    @given(case=names.flatmap(lambda n: st.tuples(st.just(n), st.sampled_from(wrong_values(n)))))
    def holds(case: tuple[str, Any]) -> None:
        name, value = case
        path = changed(trained, tmp_path, options(**{name: value}))
        with pytest.raises(ValueError, match=rf"checkpoint\.pth.*{name}"):
            restore(path)

    holds()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("width", value) for value in (1, 8, 10**6, 2**31 - 1)],
        *[("bank_size", value) for value in (1, 10**8, 2**31 - 1)],
    ],
)
def test_sizes_that_the_tensors_do_not_have_are_refused_before_they_are_made(
    key: str, value: int, trained, folder_root, tmp_path
) -> None:
    path = changed(trained, tmp_path, options(**{key: value}))
    assert_each_refuses(["infer"], folder_root, path)
    assert_each_refuses(["resume"], folder_root, path, "method_config")


def test_a_bank_that_an_exported_file_only_describes_is_bounded(
    trained, folder_root, tmp_path
) -> None:
    exported, content = tmp_path / "model.safetensors", load_checkpoint(trained / "checkpoint.pth")
    options(bank_size=2**31 - 1)(content)
    save_exported(exported, content, ["bank.storage", "bank.written"])
    for name in ("infer", "export"):
        assert_refused(run(*stage(name, folder_root, exported)), exported.name, "not in it")


@pytest.mark.parametrize("key", ["num_classes", "output_stride", "seed", "backbone", "pretrained"])
@pytest.mark.parametrize("value", [*ANYWHERE, -1, 0, 10**12])
def test_the_networks_own_settings(key: str, value: Any, trained, folder_root, tmp_path) -> None:
    accepted = [("pretrained", True), ("output_stride", 10**12)]  # resnet38d is always at 8
    accepted += [("seed", number) for number in (-1, 0, 10**12)]
    if any((key, value) == pair and type(value) is type(pair[1]) for pair in accepted):
        return
    path = changed(trained, tmp_path, lambda c: c["config"].update({key: value}))
    assert_each_refuses(["infer"], folder_root, path)


@pytest.mark.parametrize("name", ["hf-hub:a/b", "local-dir:/tmp", "a/b"])
def test_a_backbone_to_be_fetched_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="timm's own"):
        build_backbone(f"timm:{name}")
