"""Thin strided 1x1 convolutions: computed another way on a CPU, and never met by oneDNN there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from method_cases import METHODS, MIXED, first_steps, make_batch, make_method
from timm.layers import Conv2dSame, StdConv2d
from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import FrozenBatchNorm2d

from network.backbones import Backbone, build_backbone
from network.backbones.cpu.folding import FoldedConv2d
from network.backbones.cpu.pointwise import FEWEST_CHANNELS, ThinStridedConv2d, replace_thin_strides
from network.methods import Method, build_method
from tool.train.engine import total_loss

THIN = "timm:ghostnetv3_050"  # holds depthwise 1x1 convolutions of stride 2


class Convolutions(TorchDispatchMode):
    """Collects the thin strided 1x1 convolutions that reach torch, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.thin = 0, []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            self.calls += 1
            backward = name == "convolution_backward"
            weight, stride = (args[2], args[4]) if backward else (args[1], args[3])
            small = weight.shape[1] < FEWEST_CHANNELS and weight.shape[2:] == (1, 1)
            if small and max(stride) > 1:
                self.thin.append((name, tuple(weight.shape)))
        return function(*args, **(kwargs or {}))


def train_once(method: nn.Module) -> Convolutions:
    """Run two steps' terms and the backward of the second one; the convolutions of all of it."""
    method.to(memory_format=torch.channels_last).train()
    with Convolutions() as seen:
        terms = first_steps(method, make_batch(MIXED))
        total_loss(terms, method.weights()).backward()
    return seen


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("stride", "padding", "size"),
    [(2, 0, (7, 10)), (3, "valid", (8, 9)), ((1, 2), 0, (5, 6)), (2, (1, 2), (5, 6))],
)
def test_it_is_the_plain_convolution(
    bias: bool, groups: int, stride: Any, padding: Any, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 12, 1, stride=stride, padding=padding, groups=groups, bias=bias).double()
    net = nn.Sequential(copy.deepcopy(plain))
    state = net.state_dict()
    replace_thin_strides(net)
    assert type(net[0]) is ThinStridedConv2d
    assert {n: t.data_ptr() for n, t in net.state_dict().items()} == {
        n: t.data_ptr() for n, t in state.items()
    }
    results = []
    for conv in (plain, net[0]):
        feature = torch.linspace(-1, 1, 2 * 6 * size[0] * size[1], dtype=torch.float64)
        feature = feature.sin().view(2, 6, *size).requires_grad_(True)
        result = conv(feature)
        (result * torch.arange(result.numel()).view_as(result).sin()).sum().backward()
        results.append([result, feature.grad, *[p.grad for p in conv.parameters()]])
    for one, two in zip(*results, strict=True):
        assert one.shape == two.shape
        assert torch.allclose(one, two)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 4, 1, stride=2),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(8, 16, 3, stride=2),
    ],
)
def test_other_convolutions_are_left_alone(conv: nn.Conv2d) -> None:
    net = nn.Sequential(conv)
    replace_thin_strides(net)
    assert net[0] is conv


def test_same_padding_of_a_thin_convolution_is_none() -> None:
    plain, feature = Conv2dSame(6, 4, 1, stride=2), torch.rand(1, 6, 7, 6)
    net = nn.Sequential(plain)
    replace_thin_strides(net)
    assert type(net[0]) is ThinStridedConv2d
    assert torch.allclose(net(feature), plain(feature), atol=1e-6)


def test_one_that_cannot_be_replaced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StdConv2d of size 1x1 .* 8 input channels"):
        replace_thin_strides(nn.Sequential(StdConv2d(8, 16, 1, stride=2)))
    replace_thin_strides(nn.Sequential(StdConv2d(16, 16, 1, stride=2)))


def test_the_guard_sees_a_thin_convolution() -> None:
    conv = nn.Conv2d(8, 16, 1, stride=2)
    with Convolutions() as seen:
        conv(torch.rand(1, 8, 4, 4)).sum().backward()
    assert [name for name, _ in seen.thin] == ["convolution", "convolution_backward"]


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_no_training_step_has_a_thin_strided_convolution(name: str, pretrained: bool) -> None:
    seen = train_once(make_method(name, pretrained=pretrained))
    assert seen.calls > 20
    assert not seen.thin


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_backbone_with_such_layers_trains_without_them(pretrained: bool) -> None:
    config = {"method": "cam", "backbone": THIN, "output_stride": 32, "num_classes": 5}
    method = build_method(config | {"pretrained": pretrained, "method_config": {}})
    assert any(
        isinstance(m, ThinStridedConv2d) or getattr(m, "thin", False) for m in method.modules()
    )
    seen = train_once(method)
    assert seen.calls > 20
    assert not seen.thin


def test_a_head_with_such_a_layer_is_mended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Method.__init__

    def with_head(self: Method, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.extra = nn.Sequential(nn.Conv2d(8, 4, 1, stride=2))

    monkeypatch.setattr(Method, "__init__", with_head)
    assert type(make_method("cam").extra[0]) is ThinStridedConv2d


class ThinBackbone(Backbone):
    """A thin strided 1x1 convolution with a norm behind it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.taps, self.stem = {"high": None}, ("nothing.",)
        self.conv = nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.norm = norm

    def forward(self, image: Tensor, names: tuple[str, ...] = ("high",)) -> dict[str, Tensor]:
        return {names[0]: self.norm(self.conv(image)).relu()}


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
@pytest.mark.parametrize("replaced", [True, False])
def test_a_folded_thin_convolution_keeps_its_function(norm: type, replaced: bool) -> None:
    torch.manual_seed(0)
    net = ThinBackbone(norm(4))
    net.norm.weight.uniform_(0.5, 1.5)
    net.norm.bias.uniform_(-1, 1)
    plain = copy.deepcopy(net)
    if replaced:
        replace_thin_strides(net)
    net.freeze()
    assert isinstance(net.conv, FoldedConv2d)
    image = torch.rand(2, 3, 9, 6).to(memory_format=torch.channels_last)
    with Convolutions() as seen:
        result = net(image)["high"]
        result.sum().backward()
    assert not seen.thin
    assert torch.allclose(result, plain(image)["high"], atol=1e-6)


def test_the_slim_network_has_none_to_replace() -> None:
    for module in build_backbone("resnet38d_slim").modules():
        assert not isinstance(module, ThinStridedConv2d)
