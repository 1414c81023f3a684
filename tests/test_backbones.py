"""Backbones: taps as declared, ResNet38-d as in the field, fast paths that change nothing."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from method_cases import make_method
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from network.backbones import (
    AFFINITY,
    AFFINITY_SUM,
    TAP_NAMES,
    Backbone,
    Tap,
    build_backbone,
    cosine_affinity,
)
from network.backbones.cpu.depthwise import DepthwiseConv2d, replace_depthwise
from network.backbones.cpu.folding import FoldedConv2d
from network.backbones.resnet38d import ResNet38d
from network.methods import build_method
from tool.progress import Progress

LITE = "timm:tf_efficientnet_lite0"
CASES = [
    ("resnet38d_slim", 8),
    ("resnet50", 8),
    ("resnet50", 16),
    ("resnet101", 8),
    ("resnet101_caffe", 16),
    (LITE, 16),
    (LITE, 32),
    ("timm:resnet18", 16),
]
FREEZING = [("resnet38d_slim", 8), ("resnet101_caffe", 8), (LITE, 16), ("timm:resnet18", 16)]


def shared() -> Path:
    """The folder with the released checkpoint's facts, where there is one."""
    default = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("WSSS_SHARED", default))


def randomise(module: nn.Module) -> None:
    """Give every BatchNorm statistics and an affine map that are not the identity."""
    generator = torch.Generator().manual_seed(7)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            for tensor in (child.weight.data, child.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (child.bias.data, child.running_mean):
                tensor.uniform_(-0.3, 0.3, generator=generator)


def image(side: int = 64) -> Tensor:
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_taps_are_non_negative_and_as_declared(name: str, stride: int) -> None:
    backbone = build_backbone(name, output_stride=stride).eval()
    randomise(backbone)
    assert set(backbone.taps) <= set(TAP_NAMES)
    assert {"low", "mid", "high"} <= set(backbone.taps)
    assert backbone.taps["high"].stride == stride
    assert all(0 < s < 1 for s in backbone.std)
    with torch.no_grad():
        maps = backbone(image(), tuple(backbone.taps))
        few = backbone(image(), ("high", "low"))
    assert list(maps) == list(backbone.taps)
    assert set(few) == {"high", "low"}
    assert torch.equal(few["high"], maps["high"])
    for tap, feature in maps.items():
        fact = backbone.taps[tap]
        assert feature.shape == (1, fact.channels, 64 // fact.stride, 64 // fact.stride)
        assert feature.min() >= 0
        assert feature.max() > 0


@pytest.mark.parametrize("name", [LITE, "timm:resnet18"])
def test_the_grid_does_not_depend_on_the_size_of_the_image(name: str) -> None:
    """What a bright spot changes lies at one place, whatever lies to the right of it."""
    torch.manual_seed(0)
    backbone = build_backbone(name, output_stride=16).eval()
    randomise(backbone)
    places = []
    for width in (192, 193, 195, 198, 201, 207):
        empty, spot = torch.zeros(2, 1, 3, 96, width)
        spot[..., 40:56, 72:88] = 1.0
        with torch.no_grad():
            before, after = (backbone(one, ("mid",))["mid"] for one in (empty, spot))
        assert before.shape[-2:] == (6, -(-width // 16))
        change = (after - before).abs().sum(dim=(0, 1, 2))
        places.append(16 * ((change * torch.arange(len(change))).sum() / change.sum()).item())
    assert max(places) - min(places) < 2


@pytest.mark.parametrize(("name", "stride"), FREEZING)
def test_freezing_keeps_the_function_the_gradients_and_the_names(name: str, stride: int) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, output_stride=stride).eval()
    randomise(backbone)
    frozen = copy.deepcopy(backbone)
    frozen.freeze()
    assert any(isinstance(m, FoldedConv2d) for m in frozen.modules())
    left = {n for n in backbone.state_dict() if not n.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == left
    taps = ("low", "mid", "high")
    one, two = (b.double()(image(32).double(), taps) for b in (backbone, frozen))
    for tap in taps:
        assert torch.allclose(one[tap], two[tap])
    one["high"].mean().backward()
    two["high"].mean().backward()
    trained = {n: p for n, p in frozen.named_parameters() if p.requires_grad}
    before = dict(backbone.named_parameters())
    assert trained
    for tensor_name, parameter in trained.items():
        assert torch.allclose(parameter.grad, before[tensor_name].grad), tensor_name


@pytest.mark.parametrize(("name", "stride"), [*FREEZING, ("resnet50", 16)])
def test_freezing_stops_the_stem_and_every_norm(name: str, stride: int) -> None:
    backbone = build_backbone(name, output_stride=stride)
    backbone.freeze()
    backbone.train()
    frozen = [n for n, p in backbone.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith(backbone.stem) for n in frozen)
    affine_trains = name == "resnet50"
    trained = [p for p in backbone.parameters() if p.requires_grad]
    assert any(p.ndim == 1 for p in trained) == affine_trains
    before = {n: b.clone() for n, b in backbone.named_buffers()}
    with torch.no_grad():
        backbone(image())
    assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())


def test_resnet50_is_torchvisions_with_the_last_stride_left_out() -> None:
    backbone = build_backbone("resnet50", output_stride=16).eval()
    randomise(backbone)
    plain = torchvision.models.resnet50(weights=None).eval()
    plain.load_state_dict(backbone.net.state_dict(), strict=False)
    plain.layer4[0].conv2.stride = plain.layer4[0].downsample[0].stride = (1, 1)
    body = torch.nn.Sequential(*list(plain.children())[:-2])
    with torch.no_grad():
        expected = body(image())
        found = backbone(image())["high"]
        backbone.freeze()
        backbone.load_state_dict({f"net.{n}": t for n, t in plain.state_dict().items()}, False)
        frozen = backbone.train()(image())["high"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(frozen, expected)


def test_a_classifier_leaves_two_stages_of_resnet50_frozen_and_amn_trains_them() -> None:
    config = {"backbone": "resnet50", "output_stride": 16, "num_classes": 3, "pretrained": True}
    for name, frozen in (("cam", {"conv1", "bn1", "layer1", "layer2"}), ("amn", {"conv1", "bn1"})):
        method = build_method({**config, "method": name, "method_config": {}}).train()
        batch = {
            "image": image(),
            "label": torch.eye(3)[:1],
            "seed": torch.eye(64, dtype=torch.long)[None],
        }
        sum(method(batch, Progress()).values()).backward()
        parts: dict[bool, set[str]] = {True: set(), False: set()}
        for parameter_name, p in method.backbone.named_parameters():
            parts[p.grad is None].add(parameter_name.split(".")[1])
        assert parts[True] == frozen
        assert not parts[True] & parts[False]
        assert method.backbone.net.layer4[0].bn1.weight.grad.abs().max() > 0


def test_the_stem_of_resnet38d_is_conv1a_and_the_b2_blocks() -> None:
    backbone = build_backbone("resnet38d_slim")
    backbone.freeze()
    frozen = {n.split(".")[1] for n, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1a", "b2", "b2_1", "b2_2"}


def test_weights_loaded_after_freezing_reach_the_folded_norms() -> None:
    source, target = build_backbone("resnet38d_slim"), build_backbone("resnet38d_slim")
    randomise(source)
    target.freeze()
    target.load_state_dict(source.state_dict(), strict=False)
    with torch.no_grad():
        one, two = (b.eval()(image())["high"] for b in (source, target))
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-4 * one.max().item())


def test_the_taps_of_resnet38d_are_pre_activations() -> None:
    net = ResNet38d(width=8).eval()
    randomise(net)
    outputs = {}
    for name in ("b4_5", "b5_2", "b7"):
        block = getattr(net, name)
        block.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    with torch.no_grad():
        taps = net(image(), ("low", "mid", "high"))
        assert torch.equal(taps["low"], net.b5.bn_branch2a(outputs["b4_5"]).relu())
        assert torch.equal(taps["mid"], net.b6.bn_branch2a(outputs["b5_2"]).relu())
        assert torch.equal(taps["high"], net.bn7(outputs["b7"]).relu())


def test_resnet38d_strides_and_dilates_as_the_field_does() -> None:
    net = ResNet38d(width=8)
    strided = {n for n in net.order if getattr(net, n).conv_branch2a.stride == (2, 2)}
    assert strided == {"b2", "b3", "b4"}
    blocks = {n: getattr(net, n) for n in net.order}
    dilations = {
        n: (b.conv_branch2a.dilation[0], b.conv_branch2b1.dilation[0]) for n, b in blocks.items()
    }
    late = {"b5": (1, 2), "b5_1": (2, 2), "b5_2": (2, 2), "b6": (1, 4), "b7": (1, 4)}
    assert dilations == {n: late.get(n, (1, 1)) for n in net.order}


def test_resnet38d_drops_channels_in_its_last_two_blocks() -> None:
    net = ResNet38d(width=8)
    shares = {b: getattr(net, b).dropout_2b1.probability for b in ("b6", "b7")}
    assert shares == {"b6": 0.3, "b7": 0.5}
    for block in (net.b6, net.b7):
        assert block.dropout_2b1.channels
        assert block.dropout_2b2.channels
        assert block.dropout_2b2.probability == block.dropout_2b1.probability


def full_model_shapes() -> dict[str, list[int]]:
    """The state dict of the real ResNet38-d, without the memory for it."""
    with torch.device("meta"):
        net = ResNet38d()
    return {name: list(tensor.shape) for name, tensor in net.state_dict().items()}


def test_resnet38d_has_the_size_of_the_released_one() -> None:
    shapes = full_model_shapes()
    assert len(shapes) == 228
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 105_118_693
    assert shapes["conv1a.weight"] == [64, 3, 3, 3]
    assert shapes["b7.conv_branch2b2.weight"] == [4096, 2048, 1, 1]


def test_resnet38d_has_the_names_and_shapes_of_the_released_checkpoint() -> None:
    path = shared() / "methods" / "released_checkpoint.json"
    if not path.is_file():
        pytest.skip("released_checkpoint.json is not at hand: set WSSS_SHARED")
    released = json.loads(path.read_text())
    heads = ("fc8.", "proj_", "bg_", "f8_", "f9.")
    backbone = {n: s for n, s in released.items() if not n.startswith(heads)}
    assert full_model_shapes() == backbone
    with torch.device("meta"):
        high, low, mid = (build_backbone("resnet38d").taps[t] for t in ("high", "low", "mid"))
    assert released["fc8.weight"][1] == high.channels
    assert (released["f8_3.weight"][1], released["f8_4.weight"][1]) == (low.channels, mid.channels)
    pcm = make_method("fbr").correlation
    assert pcm.embed.weight.shape == torch.Size(released["f9.weight"])


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet39", 16), ("resnet50", 4), ("timm:nonsense", 16), ("timm:", 16), ("timm:vgg11", 16)],
)
def test_an_impossible_backbone_is_one_clear_line(name: str, stride: int) -> None:
    with pytest.raises(ValueError, match=r"backbone|resnet50") as caught:
        build_backbone(name, output_stride=stride)
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone_says_which_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"resnet101, .*caffe, resnet38d, resnet38d_slim, resnet50, timm"
    ):
        build_backbone("alexnet")


def test_the_input_of_efficientnet_lite_is_its_own() -> None:
    backbone = build_backbone(LITE)
    assert backbone.mean == pytest.approx((127 / 255,) * 3)
    assert backbone.std == pytest.approx((128 / 255,) * 3)


@pytest.mark.parametrize("size", [(8, 8), (13, 21), (7, 9), (3, 1)])
@pytest.mark.parametrize(
    ("kernel", "dilation", "bias"),
    [(3, 2, True), (3, 3, False), (3, 4, True), (5, 1, True), (5, 2, False), (5, 3, True)],
)
def test_the_fast_depthwise_convolution_is_the_plain_one(
    size: tuple[int, int], kernel: int, dilation: int, bias: bool
) -> None:
    torch.manual_seed(0)
    padding = dilation * (kernel // 2)
    plain = nn.Conv2d(6, 6, kernel, padding=padding, dilation=dilation, groups=6, bias=bias)
    both = nn.Sequential(copy.deepcopy(plain))
    replace_depthwise(both)
    assert type(both[0]) is DepthwiseConv2d
    feature = torch.randn(2, 6, *size)
    results = []
    for conv in (plain, both[0]):
        given = feature.clone().requires_grad_(True)
        result = conv(given)
        (result * torch.arange(result.numel()).view_as(result).sin()).sum().backward()
        results.append([result, given.grad, *[p.grad for p in conv.parameters()]])
    for one, two in zip(*results, strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),  # neither dilated nor large
        nn.Conv2d(6, 6, 3, padding=2, dilation=2),  # not depthwise
        nn.Conv2d(6, 6, 3, padding=1, dilation=2, groups=6),  # changes the size
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, stride=2),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, padding=(2, 1), dilation=(2, 1), groups=6),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    net = nn.Sequential(conv)
    replace_depthwise(net)
    assert net[0] is conv


def test_the_fast_depthwise_convolution_trains_under_autocast() -> None:
    conv = DepthwiseConv2d(6, 6, 5, padding=4, dilation=2, groups=6)
    feature = torch.randn(2, 6, 9, 9, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        conv(feature).sum().backward()
    assert conv.weight.grad.abs().sum() > 0
    assert feature.grad.dtype == torch.bfloat16


def test_the_cpu_default_has_fast_depthwise_and_keeps_its_names() -> None:
    names = set(build_backbone(LITE, output_stride=32).state_dict())
    backbone = build_backbone(LITE, output_stride=16)
    assert set(backbone.state_dict()) == names
    assert sum(isinstance(m, DepthwiseConv2d) for m in backbone.modules()) == 9


class OutOfOrder(Backbone):
    """A norm is registered behind a convolution that it does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = {"high": None}
        self.stem = ("nothing.",)
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.second = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = FrozenBatchNorm2d(4)

    def forward(self, image: Tensor, names: tuple[str, ...] = ("high",)) -> dict[str, Tensor]:
        return {names[0]: self.second(self.norm(self.first(image)).relu())}


def test_a_norm_that_is_not_behind_its_neighbour_is_not_folded() -> None:
    net = OutOfOrder()
    expected = net(image())["high"]
    net.freeze()
    assert not any(isinstance(m, FoldedConv2d) for m in net.modules())
    assert torch.equal(net(image())["high"], expected)


def test_dropout_of_the_backbone_is_keyed_by_the_step() -> None:
    method = make_method("cam", pretrained=True)  # frozen norms: the rest is deterministic
    batch = {"image": image(), "label": torch.ones(1, 5)}
    one, two, other = (method(batch, Progress(step=s, steps=9))["cls"] for s in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("name", ["resnet38d_slim", "resnet50"])
def test_the_affinity_of_a_network_without_attention(name: str) -> None:
    backbone = build_backbone(name).eval()
    with torch.no_grad():
        taps = backbone(image(96), ("high", AFFINITY))
        alone = backbone(image(96), (AFFINITY,))
    assert set(alone) == {AFFINITY}
    assert torch.equal(alone[AFFINITY], taps[AFFINITY])
    cells = taps["high"].shape[-2] * taps["high"].shape[-1]
    assert taps[AFFINITY].shape == (len(taps["high"]), cells, cells)
    assert taps[AFFINITY].min() >= 0
    rows = taps[AFFINITY].sum(dim=2)
    assert torch.allclose(rows, torch.full_like(rows, AFFINITY_SUM), rtol=1e-3)


def test_a_backbone_with_attention_gives_its_own_affinity() -> None:
    class WithAttention(Backbone):
        def __init__(self) -> None:
            super().__init__()
            self.taps = {"high": Tap(2, 16), AFFINITY: Tap(4, 16)}

        def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
            assert "high" not in names, "what is not wanted is not computed"
            return {name: torch.full((1, 4, 4), 3.0) for name in names}

    found = WithAttention()(image(), (AFFINITY,))
    assert found[AFFINITY].unique().tolist() == [3.0]


def test_cosine_affinity_equals_its_definition() -> None:
    feature = torch.rand(1, 3, 2, 2)
    found = cosine_affinity(feature)[0]
    cells = feature[0].flatten(1).T
    cosine = torch.stack([torch.cosine_similarity(one[None], cells) for one in cells])
    assert torch.allclose(found, AFFINITY_SUM * cosine / cosine.sum(1, keepdim=True), atol=1e-4)
    assert cosine_affinity(torch.zeros(1, 3, 2, 2)).abs().max() == 0


def test_one_pass_keeps_the_last_images_only() -> None:
    backbone, calls = build_backbone("resnet38d_slim").eval(), []
    forward = backbone.forward
    backbone.forward = lambda *given: calls.append(given) or forward(*given)
    one, other = image(), image()
    with torch.no_grad(), backbone.one_pass():
        first = backbone(one)["high"]
        assert backbone(one)["high"] is first
        backbone(one, ("low", "high"))
        backbone(other)
        assert len(calls) == 3, "again for another tap, and for other images"
    assert backbone._kept is None
