"""Files of the two forms of ResNet: translated, told apart, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import assert_refused, run
from test_backbones import image, randomise
from test_resnet101 import NAMES, made, outline
from torch import Tensor

from network.backbones import Backbone, build_backbone
from network.methods import build_method
from network.weights.caffe import in_our_form, our_name
from network.weights.initialise import initialise
from network.weights.pretrained import load_pretrained
from network.weights.restore import restore

LAYERS = {"1": "reduce", "2": "conv3x3", "3": "increase"}


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {name: made(name) for name in NAMES}


def tensors_of(backbone: Backbone) -> dict[str, Tensor]:
    """Its tensors under torchvision's names, in half the bytes."""
    state = backbone.net.state_dict()
    return {n: t.bfloat16() for n, t in state.items() if not n.endswith("num_batches_tracked")}


def with_caffes_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as deeplab-pytorch names them; the first convolution reads BGR."""
    named = {}
    for name, tensor in bgr(tensors).items():
        parts = name.split(".")
        if len(parts) == 2:  # conv1.weight, bn1.bias
            named[f"layer1.conv1.{parts[0][:-1]}.{parts[1]}"] = tensor
            continue
        place = f"layer{int(parts[0][-1]) + 1}.block{int(parts[1]) + 1}"
        if parts[2] == "downsample":
            kind = {"0": "conv", "1": "bn"}[parts[3]]
            named[f"{place}.shortcut.{kind}.{parts[4]}"] = tensor
        else:
            named[f"{place}.{LAYERS[parts[2][-1]]}.{parts[2][:-1]}.{parts[3]}"] = tensor
    return named


def bgr(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"conv1.weight": tensors["conv1.weight"][:, [2, 1, 0]]}


@pytest.fixture(scope="module")
def files(backbones: dict[str, Backbone], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """Writes one of the kinds of file, once."""
    folder = tmp_path_factory.mktemp("files")
    theirs, caffe = (tensors_of(backbones[name]) for name in NAMES)
    old = {"bn1.running_var": caffe["bn1.running_var"] / 3000}
    fc = {"fc.weight": torch.ones(1000, 2048, 1, 1)}
    makers: dict[str, Callable[[], dict]] = {
        "torchvision": lambda: theirs,
        "caffe": lambda: with_caffes_names(caffe),
        "wrapped": lambda: {
            "state_dict": {f"module.base.{n}": t for n, t in with_caffes_names(caffe).items()} | fc
        },
        "renamed": lambda: bgr(caffe),
        "neither": lambda: with_caffes_names(caffe | old),
        "merged": lambda: theirs | {"bn1.running_var": torch.ones(64)},
        "headless": lambda: {n: t for n, t in theirs.items() if n != "bn1.running_var"},
        "few": lambda: {n: t for n, t in theirs.items() if n.startswith("layer1")},
    }

    def write(kind: str) -> Path:
        path = folder / f"{kind}.pth"
        if not path.exists():
            torch.save(makers[kind](), path)
        return path

    return write


def test_the_names_of_deeplab_pytorch() -> None:
    names = {
        "layer1.conv1.conv.weight": "conv1.weight",
        "base.layer1.conv1.bn.running_var": "base.bn1.running_var",
        "layer2.block1.shortcut.conv.weight": "layer1.0.downsample.0.weight",
        "layer2.block1.shortcut.bn.bias": "layer1.0.downsample.1.bias",
        "module.layer4.block23.conv3x3.bn.running_mean": "module.layer3.22.bn2.running_mean",
        "layer5.block3.increase.conv.weight": "layer4.2.conv3.weight",
        "layer1.0.conv1.weight": "layer1.0.conv1.weight",
        "base.aspp.c0.weight": "base.aspp.c0.weight",
        "player1.conv1.conv.weight": "player1.conv1.conv.weight",
    }
    assert {name: our_name(name) for name in names} == names


@pytest.mark.parametrize(
    ("kind", "name", "note"),
    [
        ("torchvision", "resnet101", ""),
        ("caffe", "resnet101_caffe", ", of Caffe's form: conv1 is turned from BGR to RGB"),
        ("wrapped", "resnet101_caffe", ", of Caffe's form: conv1 is turned from BGR to RGB"),
        (
            "renamed",
            "resnet101_caffe",
            ", of Caffe's form by its statistics: conv1 is taken as BGR and turned to RGB",
        ),
    ],
)
def test_a_file_gives_the_features_of_the_network_it_is_from(
    kind: str, name: str, note: str, backbones, files
) -> None:
    backbone = build_backbone(name, output_stride=8).eval()
    line = load_pretrained(backbone, str(files(kind)))
    assert line == f"520 of 520 tensors of {name} from {kind}.pth{note}"
    with torch.no_grad():
        found = backbone(image(65), tuple(backbone.taps))
        expected = backbones[name](image(65), tuple(backbone.taps))
    assert all(torch.equal(found[tap], expected[tap]) for tap in expected)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("caffe", "resnet101", "Caffe's ResNet.* use --backbone resnet101_caffe"),
        ("wrapped", "resnet101", "Caffe's ResNet.* use --backbone resnet101_caffe"),
        ("renamed", "resnet101", "Caffe's ResNet.* use --backbone resnet101_caffe"),
        ("renamed", "timm:resnet101", "Caffe's ResNet.* use --backbone resnet101_caffe"),
        ("torchvision", "resnet101_caffe", "torchvision's ResNet.* use --backbone resnet101"),
        ("neither", "resnet101", "names of Caffe's ResNet, but .* fits neither form"),
        ("neither", "resnet101_caffe", "names of Caffe's ResNet, but .* fits neither form"),
        ("merged", "resnet101", "does not show whether"),
        ("merged", "resnet101_caffe", "does not show whether"),
        ("headless", "resnet101", "does not show whether"),
        ("few", "resnet101_caffe", "only 50 of the 520 tensors"),
    ],
)
def test_a_file_of_the_other_form_is_refused(kind: str, name: str, words: str, files) -> None:
    with pytest.raises(
        ValueError, match=rf"{kind}\.pth.*{words}$" if "use" in words else words
    ) as e:
        load_pretrained(outline(name), str(files(kind)))
    assert "\n" not in str(e.value)


def test_resnet50_takes_no_file_of_caffes_form(tmp_path: Path) -> None:
    backbone = build_backbone("resnet50")
    randomise(backbone)
    state = backbone.net.state_dict()
    torch.save(state, tmp_path / "w.pth")
    assert load_pretrained(backbone, str(tmp_path / "w.pth")).startswith("265 of 265")
    torch.save(state | {"bn1.running_var": 3000 * state["bn1.running_var"]}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"Caffe's ResNet.*resnet50 has no such form"):
        load_pretrained(backbone, str(tmp_path / "w.pth"))


def test_both_flags_and_stage_2_refuse_the_other_form(files, folder_root, tmp_path) -> None:
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--device", "cpu"]
    train = [*data, "--method", "cam", "--steps", 1, "--out", tmp_path / "out"]
    for flag in ("--weights", "--init"):
        result = run("train_fbr.py", *train, "--backbone", "resnet101", flag, files("caffe"))
        assert_refused(result, "caffe.pth", "use --backbone resnet101_caffe")
    torch.save(
        torch.load(files("caffe"), weights_only=True) | {"fc8.weight": torch.ones(3, 2048, 1, 1)},
        tmp_path / "cam.pth",
    )
    network = ["--checkpoint", tmp_path / "cam.pth", "--method", "cam", "--backbone"]
    result = run("infer_cam.py", *data, *network, "resnet101", "--out", tmp_path / "cam")
    assert_refused(result, "cam.pth", "use --backbone resnet101_caffe")


def test_a_foreign_cam_network_of_caffes_form_is_restored(backbones, files, tmp_path) -> None:
    heads = {"fc8.weight": torch.ones(3, 2048, 1, 1)}
    torch.save(torch.load(files("caffe"), weights_only=True) | heads, tmp_path / "cam.pth")
    lines: list[str] = []
    method, _ = restore(
        tmp_path / "cam.pth",
        method="cam",
        backbone="resnet101_caffe",
        class_names=("a", "b", "c"),
        report=lines.append,
    )
    conv = method.backbone.net.conv1.weight
    assert torch.equal(conv, backbones["resnet101_caffe"].net.conv1.weight)
    assert "BGR" in lines[0]


def ours(name: str, tensors: dict[str, Tensor], method: str = "cam", **config: object) -> dict:
    """A checkpoint of this codebase."""
    about = {"method": method, "backbone": name, "class_names": ["a", "b", "c"], **config}
    model = {f"backbone.net.{n}": t for n, t in tensors.items()}
    return {"method": method, "config": about, "model": model, "step": 1}


def test_our_checkpoint_starts_the_same_backbone_only(backbones, tmp_path) -> None:
    """Whatever its statistics: a run from scratch may not have had many images."""
    source, path = backbones["resnet101_caffe"], tmp_path / "checkpoint.pth"
    tensors = tensors_of(source) | {"bn1.running_var": torch.linspace(0.9, 1.1, 64)}
    torch.save(ours("resnet101_caffe", tensors), path)
    words = r"'resnet101_caffe', this run has 'resnet101': change --backbone"
    with pytest.raises(ValueError, match=words):
        load_pretrained(outline("resnet101"), str(path))
    config = {"method": "cam", "output_stride": 8, "num_classes": 3, "method_config": {}}
    with torch.device("meta"):
        other = build_method({**config, "backbone": "resnet101", "pretrained": False})
    with pytest.raises(ValueError, match=f"--init .*{words}"):
        initialise(other, path)
    method = build_method({**config, "backbone": "resnet101_caffe", "pretrained": True})
    assert "backbone 520 of 520, classifier 0 of 1" in initialise(method, path)
    assert torch.equal(method.backbone.net.conv1.weight, source.net.conv1.weight)


def test_our_tensors_without_a_configuration_read_rgb(backbones, tmp_path) -> None:
    source = backbones["resnet101_caffe"]
    bare = {"model": {f"backbone.net.{n}": t for n, t in tensors_of(source).items()}}
    torch.save(bare, tmp_path / "w.pth")
    backbone = build_backbone("resnet101_caffe")
    line = load_pretrained(backbone, str(tmp_path / "w.pth"))
    assert line.endswith("w.pth, of Caffe's form")
    assert torch.equal(backbone.net.conv1.weight, source.net.conv1.weight)
    with pytest.raises(ValueError, match="use --backbone resnet101_caffe"):
        load_pretrained(outline("resnet101"), str(tmp_path / "w.pth"))


def test_our_checkpoint_of_another_backbone_whose_tensors_fit_is_refused(tmp_path) -> None:
    """The padding and the input of the two Lite0 differ, their tensors do not."""
    names = ("timm:tf_efficientnet_lite0", "timm:efficientnet_lite0")
    state = build_backbone(names[0]).net.state_dict()
    other = build_backbone(names[1])
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in other.net.state_dict().items()
    }
    torch.save(ours(names[0], state), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"'{names[0]}', this run has '{names[1]}'"):
        load_pretrained(other, str(tmp_path / "w.pth"))
    unnamed = ours(names[1], state)
    del unnamed["config"]["backbone"]
    torch.save(unnamed, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="backbone None"):
        load_pretrained(other, str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18"])
def test_a_file_that_shows_no_form_fits_a_network_of_one_form(name: str) -> None:
    """New norms, or merged ones; of another form it is refused all the same."""
    backbone = build_backbone(name, output_stride=32)
    tensors = backbone.state_dict()
    tensors["net.bn1.running_var"] = torch.ones_like(tensors["net.bn1.running_var"])
    assert in_our_form(backbone, tensors, named=False, ours=False) == (tensors, "")
    with pytest.raises(ValueError, match="does not show"):
        in_our_form(backbone, tensors, named=True, ours=False)
    energy = tensors["net.conv1.weight"].flatten(1).square().sum(dim=1)
    tensors["net.bn1.running_var"] = energy * torch.linspace(1e3, 2e3, len(energy))
    with pytest.raises(ValueError, match="has no such form"):
        in_our_form(backbone, tensors, named=False, ours=False)
