"""`python -m network.export ... --out x.onnx`: the scores of a method, without this project."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from runs import assert_refused, run

import network.to_onnx
from network.methods import Method, build_method
from tool.formats.checkpoint import save_checkpoint

LITE0 = "timm:tf_efficientnet_lite0"
CASES = {
    "a network of any side": ("deeplab1", "resnet38d_slim", False),
    "TensorFlow's padding, norms folded": ("deeplab2", LITE0, True),
    "TensorFlow's padding, norms of a run from scratch": ("cam", LITE0, False),
}


def made(case: str, folder: Path) -> tuple[Method, Path]:
    """A method with random weights and random statistics, and its checkpoint."""
    name, backbone, pretrained = CASES[case]
    config = {
        "method": name,
        "backbone": backbone,
        "output_stride": 16,
        "num_classes": 3,
        "class_names": ["cat", "cow", "dog"],
        "pretrained": pretrained,
        "method_config": {},
    }
    method = build_method(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for buffer_name, buffer in method.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    path = folder / "checkpoint.pth"
    content = {"method": name, "config": config, "model": method.state_dict(), "step": 1}
    save_checkpoint(path, content)
    return method, path


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_file_computes_the_scores_of_any_size(case: str, tmp_path: Path) -> None:
    method, checkpoint = made(case, tmp_path)
    out = tmp_path / "model.onnx"
    result = run("network/export.py", checkpoint, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "onnxruntime differs from torch by" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pth", "model.onnx"]
    facts = {prop.key: prop.value for prop in onnx.load(out).metadata_props}
    assert json.loads(facts["class_names"]) == ["cat", "cow", "dog"]
    assert facts["background"] == ("first" if method.has_background else "none")
    multiple = int(facts["multiple"])
    assert multiple == (32 if method.backbone.name == LITE0 else 1)
    session = onnxruntime.InferenceSession(out)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (method.backbone.mean, method.backbone.std))
    for height, width in ((96, 160), (224, 64), (97, 131) if multiple == 1 else (64, 64)):
        image = 255 * np.random.default_rng(height).random((1, 3, height, width), np.float32)
        with torch.no_grad():
            normal = torch.tensor((image / 255 - mean) / std, dtype=torch.float32)
            expected = method.score({"image": normal}).numpy()
        (found,) = session.run(None, {"image": image})
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-3 * max(1, np.abs(expected).max())


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, checkpoint = made("a network of any side", tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        network.to_onnx.importlib.util,
        "find_spec",
        lambda name: None if name == "onnxscript" else find(name),
    )
    result = run("network/export.py", checkpoint, "--out", tmp_path / "model.onnx")
    assert_refused(result, "pip install onnx onnxscript")
    assert not (tmp_path / "model.onnx").exists()


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch) -> None:
    method, _ = made("a network of any side", tmp_path)

    def save(path: Path) -> None:
        Path(path).write_bytes(b"x")

    class Program:
        model = type("Model", (), {"metadata_props": {}})()

    class Session:
        def __init__(self, content: bytes) -> None:
            assert content == b"x"

        def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            with torch.no_grad():
                score = network.to_onnx.Scores(method)(torch.tensor(given["image"]))
            return [1.01 * score.numpy()]

    Program.save = staticmethod(save)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Program)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    config = {"method": "deeplab1", "class_names": ["a", "b", "c"]}
    with pytest.raises(ValueError, match="onnxruntime differs from torch by"):
        network.to_onnx.export_onnx(method, config, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_a_method_that_needs_more_than_an_image_is_refused(tmp_path: Path) -> None:
    method, _ = made("a network of any side", tmp_path)
    for change in ({"conditioned": True}, {"infer_inputs": ("image", "label", "cam")}):
        for name, value in change.items():
            setattr(method, name, value)
        with pytest.raises(ValueError, match="needs more than an image"):
            network.to_onnx.export_onnx(method, {"method": "x"}, tmp_path / "model.onnx")
