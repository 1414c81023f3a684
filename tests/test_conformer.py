"""Conformer-S: names and shapes of its files, the published forward pass, squares only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import CUDA, fake, fake_module, watched
from runs import REPOSITORY, assert_refused, environment, run, train_flags
from torch import Tensor, nn

from network.backbones import AFFINITY, AFFINITY_SUM, TOKEN, Backbone, build_backbone
from network.methods import build_method
from network.norms import FixedNorm2d
from network.weights.pretrained import load_pretrained
from tool.progress import Progress

SLIM = "conformer_s_slim"
KEYS = Path(os.environ.get("WSSS_SHARED", REPOSITORY.parent / "shared"))
KEYS = KEYS / "methods" / "conformer_s_keys.json"
CONFIG = {"backbone": SLIM, "output_stride": 16, "num_classes": 5, "method_config": {}}


def randomised(name: str = SLIM) -> Backbone:
    """The network in double precision, with norms and biases that are not the identity."""
    torch.manual_seed(0)
    backbone = build_backbone(name).double().eval()
    for parameter in backbone.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data *= 0.3  # without training, each shortcut doubles the features
    return backbone


def image(side: int = 64, images: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, side, side, generator=generator)


# Names and shapes


def norm(name: str, width: int) -> dict[str, list[int]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": [width] for part in parts} | {f"{name}.num_batches_tracked": []}


def layer(name: str, *weight: int) -> dict[str, list[int]]:
    return {f"{name}.weight": list(weight), f"{name}.bias": [weight[0]]}


def convolutions(name: str, inputs: int, outputs: int, projected: bool) -> dict[str, list[int]]:
    middle = outputs // 4
    found = {f"{name}.conv1.weight": [middle, inputs, 1, 1], **norm(f"{name}.bn1", middle)}
    found |= {f"{name}.conv2.weight": [middle, middle, 3, 3], **norm(f"{name}.bn2", middle)}
    found |= {f"{name}.conv3.weight": [outputs, middle, 1, 1], **norm(f"{name}.bn3", outputs)}
    if projected:
        found |= {f"{name}.residual_conv.weight": [outputs, inputs, 1, 1]}
        found |= norm(f"{name}.residual_bn", outputs)
    return found


def transformer(name: str) -> dict[str, list[int]]:
    found = {f"{name}.norm{i}.{part}": [384] for i in (1, 2) for part in ("weight", "bias")}
    found |= layer(f"{name}.attn.qkv", 1152, 384) | layer(f"{name}.attn.proj", 384, 384)
    return found | layer(f"{name}.mlp.fc1", 1536, 384) | layer(f"{name}.mlp.fc2", 384, 1536)


def published_shapes(classes: int = 21) -> dict[str, list[int]]:
    """Every tensor of TransCAM's file."""
    found = {"cls_token": [1, 1, 384], "conv1.weight": [64, 3, 7, 7], **norm("bn1", 64)}
    found |= {"trans_norm.weight": [384], "trans_norm.bias": [384]}
    found |= layer("trans_cls_head", classes, 384) | layer("conv_cls_head", classes, 1024, 3, 3)
    found |= convolutions("conv_1", 64, 256, True)
    found |= layer("trans_patch_conv", 384, 64, 4, 4) | transformer("trans_1")
    inputs = 256
    for index in range(2, 13):
        name, outputs = f"conv_trans_{index}", 256 if index < 5 else 512 if index < 9 else 1024
        found |= convolutions(f"{name}.cnn_block", inputs, outputs, inputs != outputs)
        found |= convolutions(f"{name}.fusion_block", outputs, outputs, index == 12)
        found |= layer(f"{name}.squeeze_block.conv_project", 384, outputs // 4, 1, 1)
        found |= {f"{name}.squeeze_block.ln.{part}": [384] for part in ("weight", "bias")}
        found |= layer(f"{name}.expand_block.conv_project", outputs // 4, 384, 1, 1)
        found |= norm(f"{name}.expand_block.bn", outputs // 4)
        found |= transformer(f"{name}.trans_block")
        inputs = outputs
    return found


def test_it_has_every_tensor_of_the_published_files_but_the_heads() -> None:
    with torch.device("meta"):
        net = build_backbone("conformer_s").net
    found = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    expected = published_shapes()
    assert len(expected) == 718
    heads = {name for name in expected if "_cls_head." in name}
    assert found == {name: shape for name, shape in expected.items() if name not in heads}


@pytest.mark.skipif(not KEYS.is_file(), reason="the key list is not at hand: set WSSS_SHARED")
def test_the_names_of_this_test_are_the_published_ones() -> None:
    assert published_shapes() == json.loads(KEYS.read_text())["TransCAM_Conformer_S"]


@pytest.mark.parametrize("classes", [21, 1000])
def test_a_published_file_loads_whole_and_its_heads_are_dropped(
    classes: int, tmp_path: Path
) -> None:
    """TransCAM's, with a head of 21 maps that is not one of segmentation, and ImageNet's."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in published_shapes(classes).items()
    }
    if classes == 1000:
        weights["conv_cls_head.weight"] = torch.zeros(1000, 1024)
    torch.save({"model": weights}, tmp_path / "conformer.pth")
    backbone = build_backbone("conformer_s")
    line = load_pretrained(backbone, str(tmp_path / "conformer.pth"), num_classes=20)
    assert line == "629 of 629 tensors of conformer_s from conformer.pth"
    own = backbone.net.state_dict()
    assert all(torch.equal(own[n], weights[n]) for n in own if not n.endswith("tracked"))


def test_imagenet_weights_are_a_file() -> None:
    with pytest.raises(ValueError, match=r"conformer_s: pass the file .* as --weights FILE$"):
        build_backbone("conformer_s").published()


# The forward pass


class Reference:
    """The published forward pass, one operation at a time."""

    def __init__(self, backbone: Backbone, heads: int = 6) -> None:
        self.t, self.heads = backbone.net.state_dict(), heads

    def conv(self, name: str, x: Tensor, **settings: int) -> Tensor:
        return F.conv2d(x, self.t[f"{name}.weight"], self.t.get(f"{name}.bias"), **settings)

    def bn(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        mean, var, weight, bias = (
            self.t[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + eps).sqrt() * weight + bias

    def ln(self, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return scaled * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def bottleneck(
        self, name: str, x: Tensor, stride: int = 1, added: Tensor | int = 0
    ) -> tuple[Tensor, Tensor]:
        x1 = self.bn(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu() + added
        x2 = self.conv(f"{name}.conv2", x1, stride=stride, padding=1)
        x2 = self.bn(f"{name}.bn2", x2).relu()
        x3 = self.bn(f"{name}.bn3", self.conv(f"{name}.conv3", x2))
        if f"{name}.residual_conv.weight" in self.t:
            x = self.bn(f"{name}.residual_bn", self.conv(f"{name}.residual_conv", x, stride=stride))
        return (x3 + x).relu(), x2

    def transformer(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens, and the mean over heads of the attention, (N, T, T)."""
        images, tokens, width = x.shape
        qkv = self.linear(f"{name}.attn.qkv", self.ln(f"{name}.norm1", x))
        qkv = qkv.reshape(images, tokens, 3, self.heads, width // self.heads)
        mixed, attention = torch.empty_like(x), torch.zeros(images, tokens, tokens)
        for head in range(self.heads):
            q, k, v = (qkv[:, :, part, head] for part in range(3))
            weight = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
            attention = attention + weight / self.heads
            mixed[..., head * v.shape[-1] : (head + 1) * v.shape[-1]] = weight @ v
        x = x + self.linear(f"{name}.attn.proj", mixed)
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.ln(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", hidden), attention

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        taps = {}
        x = self.bn("bn1", self.conv("conv1", x, stride=2, padding=3), eps=1e-5).relu()
        taps["tap1"] = stem = F.max_pool2d(x, 3, stride=2, padding=1)
        x = self.bottleneck("conv_1", stem)[0]
        patches = self.conv("trans_patch_conv", stem, stride=4)
        side = patches.shape[-1]
        tokens = [self.t["cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)]
        tokens, total = self.transformer("trans_1", torch.cat(tokens, 1))
        for index in range(2, 13):
            name = f"conv_trans_{index}"
            x, x2 = self.bottleneck(f"{name}.cnn_block", x, stride=2 if index in (5, 9) else 1)
            down = self.conv(f"{name}.squeeze_block.conv_project", x2)
            d = down.shape[-1] // side
            down = down.unflatten(3, (side, d)).unflatten(2, (side, d)).mean((3, 5))
            down = F.gelu(self.ln(f"{name}.squeeze_block.ln", down.flatten(2).transpose(1, 2)))
            fused = torch.cat([tokens[:, :1], down], 1) + tokens  # twice the class token
            tokens, attention = self.transformer(f"{name}.trans_block", fused)
            total = total + attention
            up = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            up = self.conv(f"{name}.expand_block.conv_project", up)
            up = self.bn(f"{name}.expand_block.bn", up).relu()
            up = up.repeat_interleave(d, 2).repeat_interleave(d, 3)
            x = self.bottleneck(f"{name}.fusion_block", x, added=up)[0]
            taps |= {{4: "tap2", 8: "low", 10: "mid", 12: "high"}.get(index, "rest"): x}
        taps[AFFINITY], taps[TOKEN] = total[:, 1:, 1:], self.ln("trans_norm", tokens[:, 0], 1e-5)
        return taps


def test_the_forward_pass_is_the_published_one() -> None:
    backbone = randomised()
    given = image(96, 2).double()
    torch.set_default_dtype(torch.float64)
    try:
        expected = Reference(backbone)(given)
        with torch.no_grad():
            found = backbone(given, tuple(backbone.taps))
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(found) == list(backbone.taps)
    for name, tap in found.items():
        exact = 1e-5 if name == AFFINITY else 1e-8  # the affinity is computed in float32
        torch.testing.assert_close(tap.double(), expected[name], rtol=exact, atol=exact, msg=name)
    rows = found[AFFINITY].sum(2)
    assert 0.9 * AFFINITY_SUM < rows.min() <= rows.max() < AFFINITY_SUM
    with torch.no_grad():
        alone = backbone(given)["high"]
    assert torch.equal(alone, found["high"])


def test_the_taps_are_as_declared_and_512_pixels_are_32_cells() -> None:
    backbone = build_backbone(SLIM).eval()
    with torch.no_grad():
        found = backbone(image(512), (*backbone.maps, AFFINITY))
    for name, tap in backbone.maps.items():
        cells = 512 // tap.stride
        assert found[name].shape == (1, tap.channels, cells, cells)
        assert found[name].min() >= 0
    assert found["high"].shape[-2:] == (32, 32)
    assert found[AFFINITY].shape == (1, 1024, 1024)


def test_the_affinity_has_a_gradient_in_every_block() -> None:
    backbone = build_backbone(SLIM)
    affinity = backbone(image(), (AFFINITY,))[AFFINITY]
    (affinity * torch.rand_like(affinity)).sum().backward()
    weights = {n: p for n, p in backbone.named_parameters() if n.endswith("attn.qkv.weight")}
    width = backbone.taps[TOKEN].channels
    assert len(weights) == 12
    assert all(p.grad[: 2 * width].abs().max() > 0 for p in weights.values())


def test_the_drop_path_leaves_out_whole_images_keyed_by_the_step() -> None:
    method = build_method(CONFIG | {"method": "cam", "pretrained": True})
    batch = {"image": image(64, 4), "label": torch.ones(4, 5)}
    one, same, other = (method(batch, Progress(step=s, steps=9))["cls"] for s in (1, 1, 2))
    assert one == same
    assert one != other
    block = method.backbone.net.conv_trans_12.trans_block
    assert block.drop_path.probability == pytest.approx(0.1)
    assert method.backbone.net.trans_1.drop_path.probability == 0
    block.drop_path.probability = 0.5
    kept = block.drop_path(torch.ones(64, 3, 2)).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(1), kept.amax(1))


def test_every_parameter_gets_a_gradient_with_and_without_the_class_token() -> None:
    backbone = build_backbone(SLIM)
    for names in (("high",), ("high", TOKEN)):
        taps = backbone(image(64, 2), names)
        backbone.zero_grad()
        sum(tap.mean() for tap in taps.values()).backward()
        assert all(p.grad is not None for p in backbone.parameters()), names


# Norms


@pytest.mark.parametrize("norm", ["frozen", "live"])
def test_the_norms_of_pretrained_weights(norm: str) -> None:
    """Frozen: constant statistics, a trained affine map. Live: the statistics of the batch."""
    config = CONFIG | {"method": "cam", "pretrained": True}
    method = build_method(config | ({"norm": norm} if norm == "live" else {})).train()
    norms = [m for m in method.backbone.modules() if isinstance(m, FixedNorm2d | nn.BatchNorm2d)]
    assert {isinstance(m, FixedNorm2d) for m in norms} == {norm == "frozen"}
    before = norms[5].running_mean.clone()
    batch = {"image": image(64, 2), "label": torch.ones(2, 5)}
    method(batch, Progress())["cls"].backward()
    assert torch.equal(norms[5].running_mean, before) == (norm == "frozen")
    assert all(p.grad is not None for p in method.parameters())


def test_an_unknown_norm_is_one_line() -> None:
    with pytest.raises(ValueError, match="norm is 'cold': there are frozen, live"):
        build_method(CONFIG | {"method": "cam", "pretrained": True, "norm": "cold"})


# Squares


@pytest.mark.parametrize("size", [(64, 80), (72, 72), (8, 8)])
def test_other_sizes_are_one_line(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="takes squares whose side is a multiple of 16, not "):
        build_backbone(SLIM)(torch.zeros(1, 3, *size))


def test_another_output_stride_is_one_line() -> None:
    with pytest.raises(ValueError, match="conformer_s has no output stride 8: its only one is 16"):
        build_backbone("conformer_s", output_stride=8)


def test_the_affinity_stays_on_the_device() -> None:
    backbone = build_backbone(SLIM).eval()
    with watched():
        fake_module(backbone, CUDA)
        found = backbone(fake(image(), CUDA), (*backbone.maps, AFFINITY, TOKEN))
        assert {tap.device.type for tap in found.values()} == {CUDA.type}


# The stages


def flags(root: Path, out: Path, *more: object) -> list[object]:
    given = train_flags(root, out, method="cam", steps=2)
    given[given.index("resnet38d_slim")] = SLIM
    return [*given, *more]


def test_it_goes_through_the_stages_and_photographs_become_squares(
    folder_root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run("train_fbr.py", *flags(folder_root, out))
    assert result.returncode == 0, result.stderr
    data = ("--dataset", "folder", "--root", folder_root, "--list", "val")
    infer = ("--checkpoint", out / "checkpoint.pth", *data, "--num-workers", 0, "--device", "cpu")
    refused = run("infer_cam.py", *infer, "--out", tmp_path / "no", "--scales", 1)
    assert_refused(refused, "--scales", SLIM, "--sides, such as 256 512 768")
    refused = run("infer_cam.py", *infer, "--out", tmp_path / "no", "--sides", 60)
    assert_refused(refused, "--sides", SLIM, "multiple of 16, not 60x60")
    # A gate, too: its regions are collected at the same sizes.
    for more in (["--sides", 64, 96], ["--sides", 64, "--gate", "nroi"]):
        cam = tmp_path / f"cam{len(more)}"
        result = run("infer_cam.py", *infer, "--out", cam, *more)
        assert result.returncode == 0, result.stderr
        result = run("eval_miou.py", "--pred-dir", cam, *data)
        assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "cam3" / "made_from.json").read_text())["sides"] == [64, 96]
    views = build_method(CONFIG | {"method": "cam", "pretrained": False}).inference_views()
    assert views.sides == (256, 512, 768)


def test_a_crop_that_it_does_not_take_is_one_line(folder_root: Path, tmp_path: Path) -> None:
    given = flags(folder_root, tmp_path / "out")
    given[given.index("--crop") + 1] = 72
    refused = run("train_fbr.py", *given)
    assert_refused(refused, "--crop", SLIM, "a multiple of 16, not 72x72")


@pytest.mark.slow
def test_inference_at_768_pixels_takes_less_than_3_gb() -> None:
    program = """
import resource, torch
from network.backbones import build_backbone
backbone = build_backbone("conformer_s").eval()
with torch.inference_mode():
    found = backbone(torch.zeros(2, 3, 768, 768), ("high", "affinity", "token"))
assert found["affinity"].shape == (2, 2304, 2304)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 3e6  # kB
