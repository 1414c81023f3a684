"""timm's plain ViTs as backbones: any size, taps, affinity, every method, stages, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from fake_cuda import CUDA, fake, fake_module, watched
from method_cases import METHODS, MIXED, first_steps, gradients, make_batch
from runs import run, train_flags
from torch import Tensor

import train_fbr
from network.backbones import AFFINITY, RAW, TAP_NAMES, TOKEN, Backbone, build_backbone, stride_of
from network.methods import Method, build_method
from network.weights.pretrained import load_pretrained
from network.weights.restore import restore
from tool.infer.multiscale import score_and_embed

TINY = "timm:vit_tiny_patch16_224"
DINO2 = "timm:vit_small_patch14_dinov2.lvd142m"
CONFIG = {"backbone": TINY, "output_stride": 16, "num_classes": 5, "method_config": {}}


def image(height: int = 64, width: int = 64, images: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, height, width, generator=generator)


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(TINY).eval()
    for parameter in backbone.parameters():  # not the small numbers of a new network
        parameter.data += 0.02 * torch.randn_like(parameter)
    return backbone


def test_at_the_published_size_the_features_are_timms(tiny: Backbone) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    plain.load_state_dict(tiny.net.state_dict())
    given = image(224, 224)
    with torch.no_grad():
        found = tiny(given, tuple(tiny.taps))
        expected = plain.forward_features(given)
        maps = plain.forward_intermediates(given, indices=[0, 1, 3, 7, 11], norm=True)[1]
    for name, values in zip(TAP_NAMES, maps, strict=True):
        torch.testing.assert_close(found[name], values.relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[RAW], maps[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[TOKEN], expected[:, 0], rtol=1e-4, atol=1e-4)


def test_the_affinity_is_the_attention_that_timm_computes(tiny: Backbone) -> None:
    seen: list[Tensor] = []
    handles = []
    for block in tiny.net.blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda *a: seen.append(a[2])))
    with torch.no_grad():
        found = tiny(image(48, 80), (AFFINITY,))[AFFINITY]
    for block, handle in zip(tiny.net.blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    assert len(seen) == 12
    expected = sum(weight.mean(1)[:, 1:, 1:] for weight in seen)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (75, 99), (16, 31), (5, 7), (160, 33)])
def test_any_size_is_padded_to_whole_patches(tiny: Backbone, size: tuple[int, int]) -> None:
    cells = (-(-size[0] // 16), -(-size[1] // 16))
    given = image(*size)
    padded = F.pad(given, (0, 16 * cells[1] - size[1], 0, 16 * cells[0] - size[0]))
    with torch.no_grad():
        found = tiny(given, tuple(tiny.taps))
        same = tiny(padded)["high"]
    for name in (*TAP_NAMES, RAW):
        assert found[name].shape == (1, 192, *cells)
    assert all(found[name].min() >= 0 for name in TAP_NAMES)
    assert torch.equal(same, found["high"])
    places = cells[0] * cells[1]
    assert found[AFFINITY].shape == (1, places, places)


def test_the_position_embeddings_are_of_the_grid_of_the_image(tiny: Backbone) -> None:
    """Equal patches differ by their place alone; the corners stay the corners at any size."""
    seen = []
    handle = tiny.net.norm_pre.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        for size in ((224, 224), (96, 320)):
            tiny(torch.zeros(1, 3, *size))
    handle.remove()
    bias = tiny.net.patch_embed.proj.bias
    for tokens, (rows, columns) in zip(seen, ((14, 14), (6, 20)), strict=True):
        own = (tokens[0, 1:] - bias).unflatten(0, (rows, columns)).permute(2, 0, 1)[None]
        grid = tiny.net.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
        wanted = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [TINY, "resnet38d_slim"])
def test_the_gate_reads_the_features_raw_from_the_pass_of_the_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build_method(CONFIG | {"method": "cam", "pretrained": True, "backbone": name}).eval()
    calls, forward = [], method.backbone.forward
    monkeypatch.setattr(method.backbone, "forward", lambda *a: calls.append(a) or forward(*a))
    batch = {"image": image(70, 50, 2), "label": torch.ones(1, 5)}
    with torch.no_grad():
        score, feature = score_and_embed(method, batch)
        assert len(calls) == 1
        assert torch.equal(score, method.score(batch))
        assert torch.equal(feature.relu(), method.backbone(batch["image"])["high"])
    assert (feature.min() < 0) == (name == TINY)


def test_what_is_no_transformer_has_its_high_tap_as_raw_features() -> None:
    backbone = build_backbone("resnet38d_slim").eval()
    with torch.no_grad():
        taps = backbone(image(), ("high", RAW))
        assert torch.equal(taps[RAW], taps["high"])
        assert torch.equal(backbone(image(), (RAW,))[RAW], taps["high"])


@pytest.mark.parametrize("pretrained", [False, True])
def test_what_trains(pretrained: bool) -> None:
    """Of pretrained weights the projection of patches stays; each other parameter is reached."""
    method = build_method(CONFIG | {"method": "cam", "pretrained": pretrained}).train()
    method.losses(make_batch(MIXED), None)["cls"].backward()
    still = {n for n, p in method.backbone.named_parameters() if p.grad is None}
    patches = {f"net.patch_embed.proj.{part}" for part in ("weight", "bias")}
    assert still == (patches if pretrained else set())


def vit_method(name: str, *, pretrained: bool) -> Method:
    method = build_method(CONFIG | {"method": name, "pretrained": pretrained})
    if "label" in method.inputs:
        method.study(torch.eye(5))
    return method


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_infers_on_it(name: str) -> None:
    method, batch = vit_method(name, pretrained=True).train(), make_batch(MIXED)
    terms = first_steps(method, batch)
    total = sum(weight * terms[term] for term, weight in method.weights().items())
    assert sorted(terms) == sorted(method.weights())
    assert total.isfinite()
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    found = gradients(total, method)
    assert set(found) == trained
    assert all(gradient.isfinite().all() for gradient in found.values())
    method.eval()
    inputs = {key: batch[key][:1] for key in method.infer_inputs if key != "image"}
    with torch.no_grad():
        score, feature = score_and_embed(method, {"image": image(75, 50, 2), **inputs})
    assert score.isfinite().all()
    assert feature.shape[:2] == (2, 192)


def test_it_stays_on_the_device() -> None:
    backbone = build_backbone(TINY).eval()
    with watched():
        fake_module(backbone, CUDA)
        found = backbone(fake(image(75, 50), CUDA), tuple(backbone.taps))
        assert {tap.device.type for tap in found.values()} == {CUDA.type}


# Names and strides


@pytest.mark.parametrize(
    ("name", "stride", "words"),
    [
        (TINY, 8, "no output stride 8: its only one is the size of a patch, --output-stride 16"),
        (DINO2, 16, "--output-stride 14"),
        ("timm:swin_tiny_patch4_window7_224", 16, r"what works are .* plain ViTs \(timm:vit_"),
        ("timm:vit_small_r26_s32_224", 32, "no plain vision transformer: there are such as"),
        ("timm:vit_relpos_small_patch16_224", 16, "timm cannot make it"),
        ("timm:vit_nonsense", 16, "timm cannot make it"),
        ("timm:vit_a/b", 16, "only the names of timm's own models"),
    ],
)
def test_what_does_not_work_is_one_line(name: str, stride: int, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_backbone(name, output_stride=stride)
    assert "\n" not in str(caught.value)


def test_the_stride_where_the_user_gives_none() -> None:
    names = (TINY, DINO2, "timm:deit_small_patch16_224", "conformer_s", "resnet38d", "resnet50")
    assert [stride_of(name, 32) for name in names] == [16, 14, 16, 16, 8, 32]
    with pytest.raises(ValueError, match="unknown backbone 'alexnet'"):
        stride_of("alexnet", 8)


# Files


def test_the_addresses_are_timms() -> None:
    with torch.device("meta"):
        url, name = build_backbone("timm:vit_small_patch16_224.dino").published()
    assert name == "timm--vit_small_patch16_224.dino.safetensors"
    assert url.endswith("/timm/vit_small_patch16_224.dino/resolve/main/model.safetensors")


def test_a_file_loads_whole_and_position_embeddings_of_another_size_are_resampled(
    tmp_path: Path, tiny: Backbone
) -> None:
    weights = {**tiny.net.state_dict(), "head.weight": torch.zeros(1000, 192)}
    torch.save({"model": weights}, tmp_path / "whole.pth")
    other = timm.create_model("vit_tiny_patch16_384", num_classes=0)
    torch.save(
        {"teacher": {f"backbone.{n}": t for n, t in other.state_dict().items()}},
        tmp_path / "384.pth",
    )
    backbone = build_backbone(TINY)
    total = len(backbone.state_dict())
    line = load_pretrained(backbone, str(tmp_path / "whole.pth"))
    assert line == f"{total} of {total} tensors of {TINY} from whole.pth"
    assert all(torch.equal(t, weights[n]) for n, t in backbone.net.state_dict().items())
    line = load_pretrained(backbone, str(tmp_path / "384.pth"))
    assert line == f"{total} of {total} tensors of {TINY} from 384.pth, resampled: pos_embed"
    theirs, ours = other.pos_embed, backbone.net.pos_embed
    assert torch.equal(ours[:, 0], theirs[:, 0])
    grid = theirs[:, 1:].unflatten(1, (24, 24)).permute(0, 3, 1, 2)
    wanted = F.interpolate(grid, (14, 14), mode="bicubic", antialias=True)
    torch.testing.assert_close(ours[:, 1:], wanted.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("shape", [(1, 150, 192), (1, 1, 192), (1, 0, 192), (1, 577, 64), (192,)])
def test_position_embeddings_of_no_square_are_left_alone(tiny: Backbone, shape: tuple) -> None:
    given = torch.zeros(shape)
    assert tiny.fitted("pos_embed", given) is given


# The stages


def flags(root: Path, out: Path, method: str, *more: object) -> list[object]:
    given = train_flags(root, out, method=method, steps=2)
    given[given.index("resnet38d_slim")] = TINY
    given[given.index("--crop") + 1] = 72
    return [*given, *more]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny: Backbone) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(tiny.net.state_dict(), path)
    return path


@pytest.mark.parametrize("method", ["cam", "fbr"])
def test_it_goes_through_the_stages_and_its_export_is_whole(
    method: str, folder_root: Path, tmp_path: Path, weights: Path
) -> None:
    """At a crop of no whole patches, and photographs of odd sizes; with and without the gate."""
    given = flags(folder_root, tmp_path, method)
    given[given.index("--weights") + 1] = weights
    result = run("train_fbr.py", *given)
    assert result.returncode == 0, result.stderr
    checkpoint, exported = tmp_path / "checkpoint.pth", tmp_path / "model.safetensors"
    assert run("network/export.py", checkpoint, "--out", exported).returncode == 0
    (one, _), (two, _) = (restore(path) for path in (checkpoint, exported))
    for name, tensor in one.backbone.state_dict().items():
        assert torch.equal(two.backbone.state_dict()[name], tensor), name
    data = ("--dataset", "folder", "--root", folder_root, "--list", "train")
    infer = (*data, "--num-workers", 0, "--device", "cpu", "--scales", 1, 1.5)
    for file, gate in ((exported, "none"), (checkpoint, "none"), (checkpoint, "nroi")):
        cam = tmp_path / f"cam{file.suffix}-{gate}"
        result = run("infer_cam.py", "--checkpoint", file, *infer, "--out", cam, "--gate", gate)
        assert result.returncode == 0, result.stderr
    if method == "cam":  # the gate alone, by a network of another stride, which no flag gives
        torch.save(build_backbone(DINO2, output_stride=14).net.state_dict(), tmp_path / "14.pth")
        given = ("--method", "gate", "--backbone", DINO2, "--weights", tmp_path / "14.pth")
        gated = tmp_path / "gated"
        result = run("infer_cam.py", *given, "--cam-dir", cam, *infer, "--out", gated)
        assert result.returncode == 0, result.stderr
        assert {path.name for path in gated.glob("*.npy")} == {p.name for p in cam.glob("*.npy")}
    mask = tmp_path / "mask"
    result = run("crf_postprocess.py", "--cam-dir", cam, "--out", mask, *data)
    assert result.returncode == 0, result.stderr
    result = run("eval_miou.py", "--pred-dir", mask, *data, "--json", tmp_path / "miou.json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "miou.json").read_text())["miou"] >= 0


def test_patches_of_14_pixels_train_without_a_flag(folder_root: Path, tmp_path: Path) -> None:
    given = flags(folder_root, tmp_path, "cam")
    given[given.index(TINY)] = DINO2
    result = run("train_fbr.py", *given)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "config.json").read_text())["config"]["output_stride"] == 14
    infer = ("--dataset", "folder", "--root", folder_root, "--list", "train", "--device", "cpu")
    infer += ("--checkpoint", tmp_path / "checkpoint.pth", "--scales", 1, "--out", tmp_path / "cam")
    result = run("infer_cam.py", *infer)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("backbone", "only", "other"),
    [(DINO2, 14, 16), (TINY, 16, 8), ("resnet38d", 8, 16), ("resnet38d_slim", 8, 32)],
)
def test_the_only_stride_is_the_default_and_another_one_is_refused(
    backbone: str, only: int, other: int, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--backbone", backbone, "--weights", "none", "--out", "out/x"]
    for more in ([], ["--output-stride", str(only)], ["--short"]):
        assert train_fbr.parse(given + more).recipe.output_stride == only
    with pytest.raises(SystemExit):
        train_fbr.parse([*given, "--output-stride", str(other)])
    error = capsys.readouterr().err
    assert f"{backbone!r} has no output stride {other}: its only one is {only}" in error


def test_other_networks_have_strides_of_8_16_and_32(capsys: pytest.CaptureFixture[str]) -> None:
    for backbone in ("resnet50", "timm:tf_efficientnet_lite0"):
        given = ["--backbone", backbone, "--weights", "none", "--out", "out/x"]
        assert train_fbr.parse([*given, "--output-stride", "32"]).recipe.output_stride == 32
        with pytest.raises(SystemExit):
            train_fbr.parse([*given, "--output-stride", "14"])
        assert "no output stride 14: choose one of 8, 16, 32" in capsys.readouterr().err
