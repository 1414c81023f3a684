"""Which network's heads are taken from a file, and which of them is the classifier."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from method_cases import make_method
from test_foreign_files import SLIM, behind, numbered
from test_state import Teacher
from torch import Tensor

from network.backbones import build_backbone
from network.methods import Method, build_method
from network.weights.foreign_heads import classifier_names
from network.weights.initialise import initialise
from network.weights.pretrained import load_pretrained
from network.weights.restore import restore

CLASSES = ("a", "b", "c")
K = len(CLASSES)
CONFIG = {"method": "cam", "backbone": SLIM, "output_stride": 8, "num_classes": K}
CONFIG |= {"pretrained": True, "method_config": {}, "class_names": list(CLASSES)}


def head(value: float = 0.0, *, rows: int = K) -> Tensor:
    """A foreign classifier; row i holds `value` + i."""
    return (value + torch.arange(float(rows)))[:, None, None, None].repeat(1, 512, 1, 1)


def write(content: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def started(path: Path, background: str | None = None) -> tuple[Method, str]:
    method = build_method(CONFIG)
    return method, initialise(method, path, class_names=CLASSES, background=background)


def restored(path: Path, background: str | None = None) -> tuple[Method, str]:
    lines: list[str] = []
    method, _ = restore(
        path,
        method="cam",
        backbone=SLIM,
        class_names=CLASSES,
        background=background,
        report=lines.append,
    )
    return method, "; ".join(lines)


WAYS = [started, restored]


def rows_of(method: Method) -> list[float]:
    return method.classifier.weight[:, 0, 0, 0].tolist()


def conv1a(method: Method) -> float:
    return method.backbone.net.conv1a.weight.flatten()[0].item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::7])
def test_a_method_gets_the_weights_of_one_network(way, order, tmp_path) -> None:
    parts = [
        behind("backbone.", numbered()),
        {"fc8.weight": head()},
        behind("teacher.backbone.", numbered(100)),
        {"teacher.fc8.weight": head(100)},
    ]
    content = {name: tensor for i in order for name, tensor in parts[i].items()}
    method, line = way(write(content, tmp_path / "w.pth"))
    assert (conv1a(method), rows_of(method)) == (101, [100, 101, 102])
    assert "prefix 'teacher.backbone.' (also in it: prefix 'backbone.')" in line


@pytest.mark.parametrize("prefix", ["student.", ""])
def test_the_head_of_another_network_is_not_taken(prefix: str, tmp_path: Path) -> None:
    content = behind("teacher.backbone.", numbered(100)) | behind(f"{prefix}backbone.", numbered())
    path = write(content | {f"{prefix}fc8.weight": head()}, tmp_path / "w.pth")
    method, line = started(path)
    assert "classifier 0 of 1" in line
    assert rows_of(method) != [0, 1, 2]
    with pytest.raises(ValueError, match=r"w\.pth does not fit .*classifier\.weight"):
        restored(path)


def test_a_head_that_two_networks_share_is_taken(tmp_path: Path) -> None:
    content = behind("net.backbone.", numbered()) | behind("net.backbone_ema.", numbered(100))
    path = write(content | {"net.fc8.weight": head()}, tmp_path / "w.pth")
    for way in WAYS:
        method, _ = way(path)
        assert (conv1a(method), rows_of(method)) == (101, [0, 1, 2])


def test_heads_that_resemble_the_backbone_by_accident_are_kept(tmp_path: Path) -> None:
    decoder = {"decoder.bn7.weight": torch.ones(512), "decoder.fc8.weight": head()}
    for way in WAYS:
        method, _ = way(write(behind("net.", numbered()) | decoder, tmp_path / "w.pth"))
        assert rows_of(method) == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_our_own_file_is_never_read_at_its_teacher(suffix: str, tmp_path: Path) -> None:
    method = make_method("cam", num_classes=K, pretrained=True)
    method.backbone.net.load_state_dict(numbered(), strict=False)
    student = method.state_dict()
    teacher = Teacher(torch.nn.Module())
    teacher.backbone = build_backbone(SLIM)
    teacher.backbone.net.load_state_dict(numbered(100), strict=False)
    state = behind("teacher.", teacher.state_dict()) | student
    assert "teacher.backbone.net.conv1a.weight" in state
    path = tmp_path / f"checkpoint{suffix}"
    about = {"method": "cam", "config": CONFIG, "step": 1}
    if suffix == ".pth":
        torch.save(about | {"model": state}, path)
    else:
        text = {"fbr_checkpoint": json.dumps(about)}
        safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, path, text)
    made, line = started(path)
    assert "teacher" not in line
    assert conv1a(made) == 1
    backbone = build_backbone(SLIM)
    assert "teacher" not in load_pretrained(backbone, str(path))
    assert backbone.net.conv1a.weight.flatten()[0].item() == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("suffix", "flat"), [(".pth", True), (".safetensors", False)])
@pytest.mark.parametrize(
    "name", ["fc8.weight", "classifier.weight", "fc.weight", "model.head.weight", "cls.conv.weight"]
)
def test_the_classifier_is_found_by_its_shape(way, suffix, flat, name, tmp_path) -> None:
    weight = head(rows=K + 1)
    content = numbered() | {name: weight[:, :, 0, 0].clone() if flat else weight}
    content |= {"project.weight": torch.ones(128, 512), "head2.weight": torch.ones(K, 64)}
    path = write(content, tmp_path / f"w{suffix}")
    with pytest.raises(ValueError, match=r"4 maps for 3 classes .* --background first"):
        way(path)
    method, line = way(path, "first")
    assert rows_of(method) == [1, 2, 3]
    assert "its 4 maps are the classes and the background, first" in line
    usual = name in ("fc8.weight", "classifier.weight", "fc.weight")
    assert (f"the classifier is {name!r}" in line) != usual
    assert "\n" not in line


def test_a_layer_that_is_saved_twice_is_one_classifier(tmp_path: Path) -> None:
    content = numbered() | {"newly_added.0.weight": head(), "cls.weight": head()}
    for way in WAYS:
        assert rows_of(way(write(content, tmp_path / "w.pth"))[0]) == [0, 1, 2]


def test_several_classifiers_are_listed(tmp_path: Path) -> None:
    content = numbered() | {"one.conv.weight": head(), "two.conv.weight": head(5)}
    path = write(content, tmp_path / "w.pth")
    choice = r"'one\.conv\.weight', 'two\.conv\.weight'"
    with pytest.raises(ValueError, match=rf"w\.pth has several classifiers: {choice}"):
        restored(path)
    with pytest.raises(ValueError, match=rf"w\.pth has several classifiers: {choice}"):
        started(path, "first")
    _, line = started(path)
    assert line.endswith("left out, as it has several: 'one.conv.weight', 'two.conv.weight'")
    write(content | {"fc.weight": head(7)}, path)  # a usual name is preferred
    for way in WAYS:
        assert rows_of(way(path)[0]) == [7, 8, 9]


def test_a_classifier_of_other_classes_is_told(tmp_path: Path) -> None:
    path = write(numbered() | {"fc.weight": torch.ones(1000, 512)}, tmp_path / "w.pth")
    _, line = started(path)
    assert "its classifier of 1000 maps is left out: this run has 3 classes" in line
    with pytest.raises(ValueError, match=r"w\.pth has a classifier of 1000 maps: 3 classes take 3"):
        restored(path)


@pytest.mark.parametrize(
    ("rows", "found"), [(7, ["b"]), (8, ["b"]), (1, ["a"]), (128, ["c"]), (4, [])]
)
def test_the_number_of_classes_decides(rows: int, found: list[str]) -> None:
    heads = {"a": torch.ones(1, 6), "b": torch.ones(8, 6, 1, 1), "c": torch.ones(128, 6)}
    heads |= {"proj_fg.weight": torch.ones(128, 6, 1, 1), "d": torch.ones(4, 6, 3, 3)}
    heads |= {"project_background.weight": torch.ones(128, 6), "e": torch.ones(4, 6).long()}
    assert classifier_names(heads, width=6, num_classes=rows) == found


@pytest.mark.parametrize("way", WAYS)
def test_the_bias_of_a_classifier_is_left_out_and_said(way, tmp_path: Path) -> None:
    content = numbered() | {"fc.weight": head(), "fc.bias": torch.ones(K)}
    method, line = way(write(content, tmp_path / "w.pth"))
    assert rows_of(method) == [0, 1, 2]
    assert "'fc.bias' is left out: our classifier has no bias" in line
    del content["fc.bias"]
    assert "bias" not in way(write(content, tmp_path / "w.pth"))[1]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_does_not_fit_says_what_is_in_it(suffix: str, tmp_path: Path) -> None:
    path = write({"trunk.conv.weight": torch.ones(2, 2, 1, 1)}, tmp_path / f"w{suffix}")
    with pytest.raises(ValueError, match=r"--method and --backbone.*'trunk\.conv\.weight'"):
        restore(path)
    with pytest.raises(ValueError, match=r"does not fit .* the file holds 'trunk\.conv\.weight'"):
        restored(path)


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_numpy_arrays_are_named_as_such(way, tmp_path: Path) -> None:
    arrays = {name: tensor.numpy() for name, tensor in numbered().items()}
    for content in (arrays, {"state_dict": behind("module.", arrays)}):
        torch.save(content | {"score": np.float64(1)}, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"191 values are NumPy arrays, .* save them with to"):
            way(tmp_path / "w.pth")


def test_inference_names_the_heads_that_it_leaves_out(tmp_path: Path) -> None:
    content = numbered() | {"fc8.weight": head()}
    path = write(
        content | {"edge.weight": torch.ones(4), "bg_bn.weight": torch.ones(4)}, tmp_path / "w.pth"
    )
    assert restored(path)[1].endswith("left out, as method cam has no such tensors: 'edge.weight'")
    write(content | {f"head.{i}": torch.ones(1) for i in range(7)}, path)
    assert restored(path)[1].endswith("'head.4' and 2 more")
    assert "left out" not in restored(write(content, path))[1]
