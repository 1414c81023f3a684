"""Weights that have seen pixel truth start no run, unless the user permits it and it is noted."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from runs import Result, assert_refused, run, train_flags
from test_caffe_files import tensors_of, with_caffes_names
from test_resnet101 import outline
from torch import Tensor

from network.backbones import build_backbone
from network.methods import build_method
from network.weights.initialise import initialise
from network.weights.pretrained import load_pretrained
from tool.formats.checkpoint import load_checkpoint

SLIM = "resnet38d_slim"
CLASSES = ("disc", "square", "sky lark")  # of the folder dataset
K, D = len(CLASSES), 512


def maps(rows: int, channels: int, side: int = 1) -> Tensor:
    return torch.ones(rows, channels, side, side)


SEGMENTATION = {
    "deeplab-pytorch": ("base.", {"base.aspp.c0.weight": maps(21, D, 3)}),
    "ASPP of other classes": ("module.", {"module.classifier.ASPP.conv.weight": maps(8, D, 3)}),
    "torchvision": ("backbone.", {"classifier.4.weight": maps(19, 256)}),
    "mmsegmentation": ("backbone.", {"decode_head.conv_seg.weight": maps(19, 256)}),
    "seamv1": ("backbone.", {"conv_fov.weight": maps(64, D, 3), "cls_conv.weight": maps(21, 64)}),
    "the classes of the run": ("backbone.", {"last.weight": maps(K + 1, 64)}),
    "a 3x3": ("", {"seg.weight": maps(K + 1, D, 3)}),
}
CAMS = {
    "EPS": {"fc8.weight": maps(K + 1, D)},
    "VOC's": {"fc8.weight": maps(21, D)},
    "FBR": {
        "fc8.weight": maps(K + 1, D),
        "proj_fg.weight": maps(128, D),
        "proj_bg.weight": maps(128, D),
        "bg_classifier.weight": maps(1, 128),
    },
    "SEAM": {
        "fc8.weight": maps(K + 1, D),
        "f8_3.weight": maps(64, 64),
        "f9.weight": maps(192, 195),
    },
    "MCTformer's kind": {"head.weight": maps(K, D, 3)},
    "a linear classifier": {"fc.weight": torch.ones(21, D)},
}


@pytest.fixture(scope="module")
def net() -> dict[str, Tensor]:
    return build_backbone(SLIM).net.state_dict()


@pytest.mark.parametrize("kind", list(SEGMENTATION))
def test_a_segmentation_network_is_refused_or_permitted(kind: str, net, tmp_path) -> None:
    prefix, heads = SEGMENTATION[kind]
    path = tmp_path / "w.pth"
    torch.save({f"{prefix}{n}": t for n, t in net.items()} | heads, path)
    config = {"method": "eps", "backbone": SLIM, "output_stride": 8, "num_classes": K}
    method = build_method(config | {"pretrained": True, "method_config": {}})
    for load in (
        lambda: load_pretrained(method.backbone, str(path), num_classes=K),
        lambda: initialise(method, path, class_names=CLASSES),
    ):
        with pytest.raises(ValueError, match=r"w\.pth: the file has seen pixel truth") as e:
            load()
        assert "--allow-pixel-truth" in str(e.value)
        assert "\n" not in str(e.value)
    line = load_pretrained(method.backbone, str(path), num_classes=K, allow_pixel_truth=True)
    assert method.backbone.saw_masks
    assert "it has seen pixel truth ('" in line
    method.backbone.saw_masks = False
    line = initialise(method, path, class_names=CLASSES, allow_pixel_truth=True)
    assert method.backbone.saw_masks
    assert "it has seen pixel truth ('" in line


def test_a_head_in_a_dictionary_of_its_own_is_seen(net, tmp_path) -> None:
    torch.save({"backbone": net, "head": {"aspp.c0.weight": maps(21, D, 3)}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"'aspp\.c0\.weight' is of a segmentation head"):
        load_pretrained(build_backbone(SLIM), str(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", list(CAMS))
def test_a_cam_network_is_accepted(kind: str, net, tmp_path) -> None:
    """With a map of the background, too: image labels and saliency trained it."""
    torch.save({f"module.{n}": t for n, t in (net | CAMS[kind]).items()}, tmp_path / "w.pth")
    backbone = build_backbone(SLIM)
    for classes in (K, 63, None):
        backbone.saw_masks = True
        line = load_pretrained(backbone, str(tmp_path / "w.pth"), num_classes=classes)
        assert "pixel truth" not in line
        assert not backbone.saw_masks
    config = {"method": "cam", "backbone": SLIM, "output_stride": 8, "num_classes": 7}
    method = build_method(config | {"pretrained": True, "method_config": {}})
    assert "pixel truth" not in initialise(method, tmp_path / "w.pth")


@pytest.mark.parametrize("rows", [21, 91, 1000])
def test_the_last_layer_of_deeplab_v1_under_caffes_names(rows: int, tmp_path) -> None:
    """DeepLab's COCO weights have 91 maps, and masks trained them; ImageNet's have 1000."""
    torch.manual_seed(0)
    backbone = build_backbone("resnet101_caffe")
    backbone.net.bn1.running_var.uniform_(2000, 3000)
    named = with_caffes_names(tensors_of(backbone)) | {"fc.weight": maps(rows, 2048)}
    torch.save(named, tmp_path / "w.pth")
    if rows == 1000:
        assert load_pretrained(backbone, str(tmp_path / "w.pth")).startswith("520 of 520")
        return
    with pytest.raises(ValueError, match=r"'fc\.weight' is of a segmentation head"):
        load_pretrained(outline("resnet101_caffe"), str(tmp_path / "w.pth"))


def ours(net: dict[str, Tensor], **config: object) -> dict:
    """A checkpoint of this codebase; its classifier has the maps of EPS."""
    about = {"method": "cam", "backbone": SLIM, "class_names": list(CLASSES), **config}
    model = {f"backbone.net.{n}": t for n, t in net.items()} | {"last.weight": maps(K + 1, 64)}
    return {"method": about["method"], "config": about, "model": model, "step": 1}


def test_our_checkpoint_is_known_by_its_masks(net, tmp_path) -> None:
    path = tmp_path / "checkpoint.pth"
    for about in ({}, {"method": "deeplab1", "masks": {"folder": "of pseudo masks"}}):
        torch.save(ours(net, **about), path)
        assert "pixel truth" not in load_pretrained(build_backbone(SLIM), str(path), num_classes=K)
    for change, words in (
        ({"init_saw_masks": True}, "its own start had"),
        ({"method": "deeplab1", "masks": "truth"}, "it was trained with --mask-dir truth"),
        ({"method": "of a later version"}, "'last.weight' is of a segmentation head"),
    ):
        torch.save(ours(net, **change), path)
        with pytest.raises(ValueError, match=f"has seen pixel truth .{words}"):
            load_pretrained(build_backbone(SLIM), str(path), num_classes=K)


def train(root: Path, out: Path, *flags: object) -> Result:
    base = train_flags(root, out, method="cam", steps=1)
    at = base.index("--weights")
    return run("train_fbr.py", *base[:at], *base[at + 2 :], *flags)


def test_a_run_prints_and_records_its_start(net, folder_root, tmp_path) -> None:
    path, out = tmp_path / "w.pth", tmp_path / "out"
    torch.save(net | {"last.weight": maps(K + 1, 64)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for flag in ("--weights", "--init"):
        result = train(folder_root, out, flag, path)
        assert_refused(result, "w.pth", "has seen pixel truth", "--allow-pixel-truth")
        assert not (out / "config.json").exists()
    for flag, words in (("--weights", "191 of 191 tensors"), ("--init", "backbone 191 of 191")):
        out = tmp_path / flag
        result = train(folder_root, out, flag, path, "--allow-pixel-truth")
        assert result.returncode == 0, result.stderr
        (line,) = [line for line in result.stdout.splitlines() if "w.pth" in line]
        assert words in line
        assert "it has seen pixel truth" in line
        assert line.endswith(f"; SHA-256 {digest}")
        noted = json.loads((out / "config.json").read_text())
        assert noted["config"]["init_saw_masks"] is True
        assert noted["weights"]["sha256"] == digest
        assert f"{noted['weights']['loaded']}; SHA-256 {digest}" == line
        assert load_checkpoint(out / "checkpoint.pth")["config"]["init_saw_masks"] is True
        again = train(folder_root, out, flag, path, "--allow-pixel-truth")
        assert again.stdout.endswith("is complete: 1 steps\n")
    # what starts from such a run has seen masks, too
    child = train(folder_root, tmp_path / "child", "--init", out / "checkpoint.pth")
    assert_refused(child, "checkpoint.pth", "its own start had")


def test_a_run_from_other_weights_has_no_such_note(net, folder_root, tmp_path) -> None:
    torch.save(net, tmp_path / "w.pth")
    flags = ["--weights", tmp_path / "w.pth", "--allow-pixel-truth"]
    assert train(folder_root, tmp_path / "out", *flags).returncode == 0
    noted = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "init_saw_masks" not in noted["config"]


def test_less_than_nine_tenths_of_a_backbone_start_nothing(net, folder_root, tmp_path) -> None:
    names = [n for n in net if not n.endswith("num_batches_tracked")]
    path = tmp_path / "w.pth"
    for kept in (171, 172):
        torch.save({n: net[n] for n in names[:kept]}, path)
        for flag in ("--weights", "--init"):
            result = train(folder_root, tmp_path / f"{flag}{kept}", flag, path)
            if kept == 171:
                assert_refused(result, "w.pth", "only 171 of the 191", "172 are needed")
            else:
                assert "172 of 191" in result.stdout, result.stderr


def test_the_gate_alone_refuses_it_too(net, folder_root, tmp_path) -> None:
    path, cams = tmp_path / "w.pth", tmp_path / "cams"
    torch.save(net, path)
    assert train(folder_root, tmp_path / "run", "--weights", path).returncode == 0
    data = ["--dataset", "folder", "--root", folder_root, "--list", "val", "--scales", 1]
    data += ["--num-workers", 0, "--device", "cpu"]
    checkpoint = ["--checkpoint", tmp_path / "run" / "checkpoint.pth"]
    assert run("infer_cam.py", *data, *checkpoint, "--out", cams).returncode == 0
    torch.save(net | {"last.weight": maps(K + 1, 64)}, path)
    gate = [*data, "--method", "gate", "--cam-dir", cams, "--backbone", SLIM, "--weights", path]
    gate += ["--out", tmp_path / "gated"]
    assert_refused(run("infer_cam.py", *gate), "has seen pixel truth", "--allow-pixel-truth")
    result = run("infer_cam.py", *gate, "--allow-pixel-truth")
    assert result.returncode == 0, result.stderr
    assert "it has seen pixel truth" in result.stdout
    texts = [p.read_text() for p in (tmp_path / "gated").rglob("*.json")]
    assert any('"init_saw_masks": true' in text for text in texts)
    refused = run("infer_cam.py", *data, *checkpoint, "--out", cams, "--allow-pixel-truth")
    assert_refused(refused, "--allow-pixel-truth is about the file of --weights")
