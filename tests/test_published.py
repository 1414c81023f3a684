"""`--weights imagenet`: fetched once, checked, noted; offline one line that says what to do."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from file_server import Server
from runs import assert_refused, run, train_flags

from network.backbones import Backbone, build_backbone
from network.backbones.resnet38d import ResNet38dBackbone
from network.backbones.resnet50 import ResNet50Backbone
from network.backbones.timm_models import TimmBackbone
from network.weights import pretrained, published
from network.weights.pretrained import load_pretrained

RESNET18 = "timm:resnet18"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's hub cache, of this test alone."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def content_of(backbone: str) -> bytes:
    file = io.BytesIO()
    torch.save(build_backbone(backbone).net.state_dict(), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def slim() -> bytes:
    """The weights that the tests publish."""
    return content_of("resnet38d_slim")


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch):
    """Serve bytes as the published weights of every backbone; the name of their file."""

    def serve(content: bytes, digest: str | None = None) -> str:
        name = f"net-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
        server.files[name] = content
        for family in (ResNet38dBackbone, ResNet50Backbone, TimmBackbone):
            monkeypatch.setattr(family, "published", lambda _: (server.url(name), name))
        return name

    return serve


def test_it_is_fetched_once_and_kept(publish, slim, server, cache) -> None:
    name = publish(slim)
    for _ in range(2):
        backbone = build_backbone("resnet38d_slim")
        line = load_pretrained(backbone, "imagenet")
        assert line == f"191 of 191 tensors of resnet38d_slim from {name}"
    assert (cache / name).read_bytes() == slim
    assert len(server.asked) == 1
    assert [path.name for path in cache.iterdir()] == [name]


def test_a_file_of_another_hash_is_refused_and_not_kept(publish, slim, cache) -> None:
    name = publish(slim, digest="0" * 8)
    with pytest.raises(ValueError, match=rf"{name} has the SHA-256 .* not the 00000000 .* came"):
        load_pretrained(build_backbone("resnet38d_slim"), "imagenet")
    assert not list(cache.iterdir())
    (cache / name).write_bytes(slim)
    with pytest.raises(ValueError, match=rf"{name} has the SHA-256 .* not the 00000000 .* remove"):
        load_pretrained(build_backbone("resnet38d_slim"), "imagenet")


def test_a_start_asks_once_which_file_it_is(publish, slim, cache, folder_root, tmp_path) -> None:
    """The file is hashed each time."""
    name, asked, ask = publish(slim), [], published.published_file

    def counted(backbone: Backbone) -> Path:
        asked.append(backbone.name)
        return ask(backbone)

    flags = [*train_flags(folder_root, tmp_path / "out", method="cam", steps=1)]
    flags[flags.index("--weights") + 1] = "imagenet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "published_file", counted)
        result = run("train_fbr.py", *flags)
    assert result.returncode == 0, result.stderr
    assert len(asked) == 1
    noted = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]
    assert noted["file"] == str(cache / name)


@pytest.mark.parametrize("how", ["gone", "refused", "cut"])
def test_without_an_answer_one_line_says_what_to_put_where(
    how: str, publish, slim, server, cache, monkeypatch, folder_root, tmp_path
) -> None:
    name = publish(slim)
    if how == "gone":
        del server.files[name]
    elif how == "cut":
        server.cut = 1000
    else:
        nobody = "http://127.0.0.1:1/net.pth"
        for family in (ResNet38dBackbone, ResNet50Backbone, TimmBackbone):
            monkeypatch.setattr(family, "published", lambda _: (nobody, name))
    flags = [*train_flags(folder_root, tmp_path / "out", method="cam", steps=1)]
    flags[flags.index("--weights") + 1] = "imagenet"
    refused = run("train_fbr.py", *flags)
    assert_refused(refused, "cannot be fetched", f"put the file {name} into {cache}")
    assert len(server.asked) == (how != "refused")  # one attempt
    assert not list(cache.glob("*"))
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    (cache / name).write_bytes(slim)  # by hand
    result = run("train_fbr.py", *flags)
    assert result.returncode == 0, result.stderr
    assert f"191 of 191 tensors of resnet38d_slim from {name}; SHA-256 " in result.stdout
    noted = json.loads((tmp_path / "out" / "config.json").read_text())["weights"]
    line = f"191 of 191 tensors of resnet38d_slim from {name}"
    digest = hashlib.sha256(slim).hexdigest()
    assert noted == {"file": str(cache / name), "sha256": digest, "loaded": line}


def test_every_start_is_noted_and_a_resume_keeps_the_note(slim, folder_root, tmp_path) -> None:
    def noted(out: str, *flags: object, drop: bool = True) -> object:
        base = train_flags(folder_root, tmp_path / out, method="cam", steps=1)
        at = base.index("--weights")
        result = run("train_fbr.py", *(base[:at] + base[at + 2 :] if drop else base), *flags)
        assert result.returncode == 0, result.stderr
        return json.loads((tmp_path / out / "config.json").read_text()).get("weights", "no note")

    path = tmp_path / "w.pth"
    path.write_bytes(slim)
    note = {"file": str(path), "sha256": hashlib.sha256(slim).hexdigest()}
    note["loaded"] = "191 of 191 tensors of resnet38d_slim from w.pth"
    assert noted("scratch", drop=False) is None
    assert noted("weights", "--weights", path) == note
    line = "started from w.pth: backbone 191 of 191, classifier 0 of 1 tensors"
    assert noted("init", "--init", path) == note | {"loaded": line}
    config = tmp_path / "weights" / "config.json"
    checkpoint = torch.load(tmp_path / "weights" / "checkpoint.pth", weights_only=True)
    torch.save(checkpoint | {"step": 0}, tmp_path / "weights" / "checkpoint.pth")
    assert noted("weights", "--weights", path) == note
    checkpoint["config"]["steps"] = 2
    torch.save(checkpoint, tmp_path / "weights" / "checkpoint.pth")
    other = {n: t + 1 for n, t in torch.load(path, weights_only=True).items()}
    torch.save(other, path)
    assert noted("weights", "--weights", path, "--steps", 2) == note
    content = json.loads(config.read_text())
    del content["weights"]  # of an older version
    config.write_text(json.dumps(content))
    checkpoint["config"]["steps"] = 3
    torch.save(checkpoint | {"step": 2}, tmp_path / "weights" / "checkpoint.pth")
    assert noted("weights", "--weights", path, "--steps", 3) == "no note"


def test_the_addresses() -> None:
    url, name = build_backbone("resnet50").published()
    assert (url, name) == (
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        "resnet50-0676ba61.pth",
    )
    backbone = build_backbone(RESNET18)
    url, name = backbone.published()
    assert name == "timm--resnet18.a1_in1k.safetensors"
    assert url.endswith("/timm/resnet18.a1_in1k/resolve/main/model.safetensors")
    backbone.net.pretrained_cfg = {"url": "https://host/resnet18-5c106cde.pth?x=1"}
    assert backbone.published()[1] == "resnet18-5c106cde.pth"
    backbone.net.pretrained_cfg = {}
    with pytest.raises(ValueError, match=r"timm publishes no weights of timm:resnet18"):
        backbone.published()


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("resnet38d", ("python -m tool.download weights",)),
        ("resnet38d_slim", ("no published weights",)),
    ],
)
def test_a_backbone_without_published(backbone, words, cache, folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path / "out", method="cam", steps=1)
    flags[flags.index("--weights") + 1] = "imagenet"
    result = run("train_fbr.py", *flags, "--backbone", backbone)
    assert_refused(result, "--weights imagenet", backbone, *words)
    assert not cache.exists()
