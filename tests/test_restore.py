"""Weights from elsewhere: the released code's checkpoints, exported ones, `--init`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image
from runs import assert_refused, run, train_flags
from torch import Tensor

from data.catalog import open_catalog
from network.backbones import build_backbone
from network.methods import build_method
from network.weights.initialise import class_weights, initialise
from network.weights.restore import Wanted, open_checkpoint, restore
from tool.formats.cam import load_cam
from tool.formats.checkpoint import load_checkpoint, save_checkpoint

SLIM = "resnet38d_slim"
SCALES = (0.5, 1.0, 1.5)


def released_state(classes: int) -> dict[str, Tensor]:
    """A state dict as the released code saves it, at 1/8 of the width, with sensible numbers."""
    generator = torch.Generator().manual_seed(3)
    net = build_backbone(SLIM).net
    state = {}
    for name, tensor in net.state_dict().items():
        if tensor.ndim > 1:
            fan = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan) ** 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = tensor
        else:
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.4 + 0.8
    heads = {
        "fc8.weight": (classes + 1, 512),
        "proj_fg.weight": (128, 512),
        "proj_bg.weight": (128, 512),
        "bg_classifier.weight": (1, 128),
        "f8_3.weight": (64, 64),
        "f8_4.weight": (128, 128),
        "f9.weight": (192, 195),
    }
    for name, shape in heads.items():
        state[name] = torch.randn(*shape, 1, 1, generator=generator) * 0.2
    for name in ("weight", "bias", "running_mean", "running_var"):
        state[f"bg_bn.{name}"] = torch.ones(128)
    return state


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "res38_fbr.pth"
    torch.save({f"module.{n}": t for n, t in released_state(3).items()}, path)
    return path


@torch.no_grad()
def released_inference(state: dict[str, Tensor], image: Image.Image, label: Tensor) -> Tensor:
    """(K, H, W): the released code's CAM of an image, written anew from its description."""
    backbone = build_backbone(SLIM).eval()
    names = set(backbone.net.state_dict())
    backbone.net.load_state_dict({n: t for n, t in state.items() if n in names})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = 0
    for scale in SCALES:
        size = (round(image.width * scale), round(image.height * scale))
        pixels = np.array(image.resize(size, Image.Resampling.BICUBIC))
        straight = ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1)[None]
        for flipped in (False, True):
            seen = straight.flip(3) if flipped else straight
            score = F.conv2d(backbone(seen, ("high",))["high"], state["fc8.weight"])
            share = score.softmax(dim=1)[:, :-1]  # background is last
            share = F.interpolate(share, (image.height, image.width), mode="bilinear")
            total = total + (share.flip(3) if flipped else share)[0] * label[:, None, None]
    return total / (total.amax(dim=(1, 2), keepdim=True) + 1e-5)


def infer(checkpoint: Path, root: Path, out: Path, *flags: object):
    base = ["--checkpoint", checkpoint, "--dataset", "folder", "--root", root, "--list", "train"]
    rest = ["--scales", *SCALES, "--num-workers", 0, "--device", "cpu"]
    return run("infer_cam.py", *base, "--out", out, "--gate", "none", *rest, *flags)


def test_a_released_checkpoint_gives_the_released_cams(released, folder_root, tmp_path) -> None:
    result = infer(released, folder_root, tmp_path, "--method", "fbr", "--backbone", SLIM)
    assert result.returncode == 0, result.stderr
    catalog, spread = open_catalog("folder", folder_root), 0.0
    for image_id in catalog.ids("train"):
        label = torch.from_numpy(catalog.label(image_id))
        expected = released_inference(released_state(3), catalog.read_image(image_id), label)
        got = load_cam(tmp_path / f"{image_id}.npy")
        assert got.class_index.tolist() == (label.nonzero()[:, 0] + 1).tolist()
        rows = expected[label > 0].numpy()
        np.testing.assert_allclose(got.cam, rows, atol=2e-3)
        spread = max(spread, rows.std() if len(rows) else 0)
    assert spread > 0.05, "the maps are not constant"


def test_every_tensor_of_a_released_checkpoint_has_a_place(tmp_path) -> None:
    path, names = tmp_path / "released.pth", tuple("abcde")
    torch.save(released_state(5), path)
    checkpoint, _ = open_checkpoint(path, Wanted("fbr", SLIM, names, None), print)
    state = checkpoint["model"]
    config = {"method": "fbr", "backbone": SLIM, "output_stride": 8, "num_classes": 5}
    own = build_method(config | {"pretrained": True, "method_config": {}}).state_dict()
    assert not set(state) - set(own)
    lacking = {n for n in own if n not in state}
    assert {n.split(".")[0] for n in lacking} == {"segment_background", "bank"}
    for name, tensor in state.items():
        assert own[name].shape == tensor.shape, name
    assert torch.equal(state["classifier.weight"][0], released_state(5)["fc8.weight"][-1])


def test_a_released_checkpoint_wants_to_be_told_what_it_is(released, folder_root, tmp_path) -> None:
    assert_refused(infer(released, folder_root, tmp_path), "--method and --backbone")
    wrong = ["--method", "fbr", "--backbone", "resnet50"]
    assert_refused(infer(released, folder_root, tmp_path, *wrong), "does not fit")
    state = released_state(4)
    path = tmp_path / "four.pth"
    torch.save(state, path)
    right = ["--method", "fbr", "--backbone", SLIM]
    assert_refused(infer(path, folder_root, tmp_path, *right), "5 maps", "3 classes")
    torch.save(state | {"fc8.weight": torch.zeros(())}, path)
    assert_refused(infer(path, folder_root, tmp_path, *right), "four.pth", "lacks")
    del state["b4_1.bn_branch2a.bias"]
    torch.save(state | {"fc8.weight": state["fc8.weight"][:4]}, path)
    assert_refused(infer(path, folder_root, tmp_path, *right), "b4_1.bn_branch2a.bias")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    out = tmp_path_factory.mktemp("trained")
    result = run("train_fbr.py", *train_flags(folder_root, out, steps=2))
    assert result.returncode == 0, result.stderr
    return out / "checkpoint.pth"


def test_an_export_is_slim_and_gives_the_same_cams(trained, folder_root, tmp_path) -> None:
    exported = tmp_path / "model.safetensors"
    result = run("network/export.py", trained, "--out", exported)
    assert result.returncode == 0, result.stderr
    assert "bank.storage" in result.stdout
    whole, slim = load_checkpoint(trained), load_checkpoint(exported)
    assert set(whole["model"]) - set(slim["model"]) == {"bank.storage", "bank.written"}
    assert "optimizer" not in slim
    for checkpoint, out in ((trained, "a"), (exported, "b")):
        assert infer(checkpoint, folder_root, tmp_path / out).returncode == 0
    for path in sorted((tmp_path / "a").glob("*.npy")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    again = tmp_path / "again.safetensors"
    assert run("network/export.py", exported, "--out", again).returncode == 0
    assert again.read_bytes() == exported.read_bytes()


def test_refused_exports(trained, folder_root, tmp_path) -> None:
    assert_refused(run("network/export.py", trained, "--out", tmp_path / "a.pth"), ".safetensors")
    assert_refused(run("network/export.py", tmp_path / "none.pth"), "none.pth", "train_fbr.py")
    bare = tmp_path / "bare.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, bare)
    assert_refused(infer(bare, folder_root, tmp_path), "bare.safetensors", "lacks")
    for about in ("{", "[]", '{"may_lack": [""]}', '{"method": "fbr", "config": {}, "step": 1}'):
        safetensors.torch.save_file({"w": torch.ones(2)}, bare, {"fbr_checkpoint": about})
        assert_refused(infer(bare, folder_root, tmp_path), "bare.safetensors")
    run("network/export.py", trained, "--out", bare)
    bare.write_bytes(bare.read_bytes()[:-7])
    assert_refused(infer(bare, folder_root, tmp_path), "bare.safetensors")


def test_a_checkpoint_with_half_a_configuration_is_refused(trained, folder_root, tmp_path) -> None:
    content = load_checkpoint(trained)
    del content["config"]["class_names"]
    save_checkpoint(tmp_path / "half.pth", content)
    assert_refused(infer(tmp_path / "half.pth", folder_root, tmp_path), "class_names")


def init(path: Path, root: Path, out: Path, *flags: object):
    base = train_flags(root, out, method="eps", steps=1)
    base[base.index("--weights") :][:2] = []
    at = base.index("--weights")
    return run("train_fbr.py", *base[:at], *base[at + 2 :], "--init", path, *flags)


def test_init_takes_what_fits_and_says_so(trained, released, folder_root, tmp_path) -> None:
    result = init(trained, folder_root, tmp_path / "eps")
    assert result.returncode == 0, result.stderr
    assert "classifier 1 of 1" in result.stdout
    config = json.loads((tmp_path / "eps" / "config.json").read_text())["config"]
    assert len(config["init_sha256"]) == 64
    started = load_checkpoint(tmp_path / "eps" / "checkpoint.pth")["model"]
    name = "backbone.net.conv1a.weight"  # frozen
    assert torch.equal(started[name], load_checkpoint(trained)["model"][name])
    assert init(trained, folder_root, tmp_path / "eps").stdout.endswith("is complete: 1 steps\n")
    other = init(released, folder_root, tmp_path / "eps")
    assert_refused(other, "init_sha256", "another --out")


def test_init_of_another_number_of_classes_leaves_the_classifier(released) -> None:
    config = {"method": "ppc", "backbone": SLIM, "output_stride": 8, "num_classes": 7}
    method = build_method(config | {"pretrained": True, "method_config": {}})
    before = method.classifier.weight.clone()
    line = initialise(method, released)
    assert "classifier 0 of 1" in line
    assert "correlation 3 of 3" in line
    assert torch.equal(method.classifier.weight, before)
    assert torch.equal(method.correlation.embed.weight, released_state(3)["f9.weight"])


def test_init_of_other_classes_leaves_the_classifier_and_says_so(folder_dataset, tmp_path) -> None:
    """As many classes, in another order or of other names."""
    flags = train_flags(folder_dataset, tmp_path / "cam", method="cam", steps=1)
    assert run("train_fbr.py", *flags).returncode == 0
    first = tmp_path / "cam" / "checkpoint.pth"
    assert run("network/export.py", first).returncode == 0
    names = (folder_dataset / "classes.txt").read_text().splitlines()
    before = load_checkpoint(first)["model"]["classifier.weight"]
    for path in (first, first.with_name("model.safetensors")):
        for classes in (names, names[::-1]):
            method = build_method(load_checkpoint(first)["config"] | {"seed": 7})
            line = initialise(method, path, class_names=tuple(classes))
            same = classes == names
            assert torch.equal(method.classifier.weight, before) == same
            assert f"classifier {int(same)} of 1" in line
            assert ("left out, as its classes are others: classifier.weight" in line) != same
    (folder_dataset / "classes.txt").write_text("\n".join(names[::-1]) + "\n")
    result = init(first, folder_dataset, tmp_path / "again", "--method", "cam")
    assert "classifier 0 of 1 tensors; left out" in result.stdout


def test_init_of_other_classes_keeps_what_does_not_depend_on_them(trained) -> None:
    config = load_checkpoint(trained)["config"] | {"seed": 7}
    method = build_method(config)
    line = initialise(method, trained, class_names=("a", "b", "c"))
    assert line.endswith("others: classifier.weight")
    assert class_weights(method) == ["classifier.weight"]
    assert "project_foreground 1 of 1" in line


def test_init_of_a_released_file_names_no_classes(released) -> None:
    config = {"method": "fbr", "backbone": SLIM, "output_stride": 8, "num_classes": 3}
    method = build_method(config | {"pretrained": True, "method_config": {}})
    line = initialise(method, released, class_names=("a", "b", "c"))
    assert "classifier 1 of 1" in line
    assert "left out" not in line


def test_init_does_not_take_a_bank(trained) -> None:
    config = load_checkpoint(trained)["config"]
    method = build_method(config)
    initialise(method, trained)
    assert method.bank.filled == 0
    assert load_checkpoint(trained)["model"]["bank.written"] > 0
    whole, _ = restore(trained)
    assert whole.bank.filled > 0


def test_init_of_another_backbone_is_refused(trained, folder_root, tmp_path) -> None:
    base = train_flags(folder_root, tmp_path / "out", method="cam", steps=1)
    result = run("train_fbr.py", *base, "--backbone", "resnet50", "--init", trained)
    assert_refused(result, "--init", "resnet50")
    assert_refused(init(tmp_path / "no.pth", folder_root, tmp_path / "out"), "no.pth")
