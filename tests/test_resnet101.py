"""ResNet-101 in torchvision's and Caffe's form: strides, dilations, pooling, norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_backbones import image, randomise
from torch import Tensor

from network.backbones import Backbone, build_backbone

BLOCKS = (3, 4, 23, 3)
NAMES = ("resnet101", "resnet101_caffe")


def outline(name: str) -> Backbone:
    """A backbone without numbers: enough to refuse a file."""
    with torch.device("meta"):
        return build_backbone(name, output_stride=8)


def made(name: str) -> Backbone:
    """A backbone with random numbers of few digits; Caffe's with the statistics of 0..255."""
    torch.manual_seed(3)
    backbone = build_backbone(name, output_stride=8).eval()
    randomise(backbone)
    if backbone.caffe:
        backbone.net.bn1.running_var *= 3000
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.bfloat16())
    return backbone


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {name: made(name) for name in NAMES}


def norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts, eps=1e-5)


def reference(state: dict[str, Tensor], x: Tensor, stride: int, *, caffe: bool) -> list[Tensor]:
    """The stem and the four stages, written anew from their description."""

    def layer(x: Tensor, conv: str, bn: str, **settings: int) -> Tensor:
        return norm(F.conv2d(x, state[f"{conv}.weight"], **settings), state, bn)

    x = layer(x, "conv1", "bn1", stride=2, padding=3).relu()
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=caffe)
    taps, cell, rate = [x], 4, 1
    for stage, blocks in enumerate(BLOCKS, 1):
        step, before = 1 if stage == 1 else 2, rate
        if cell * step > stride:
            step, rate = 1, rate * step
        cell *= step
        for number in range(blocks):
            block, first = f"layer{stage}.{number}", number == 0
            s = step if first else 1
            d = before if first and not caffe else rate
            y = layer(x, f"{block}.conv1", f"{block}.bn1", stride=s if caffe else 1).relu()
            inner = {"stride": 1 if caffe else s, "padding": d, "dilation": d}
            y = layer(y, f"{block}.conv2", f"{block}.bn2", **inner).relu()
            y = layer(y, f"{block}.conv3", f"{block}.bn3")
            if first:
                x = layer(x, f"{block}.downsample.0", f"{block}.downsample.1", stride=s)
            x = (x + y).relu()
        taps.append(x)
    return taps


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_strides_dilations_and_pooling(name: str, stride: int, backbones) -> None:
    backbone = build_backbone(name, output_stride=stride).eval()
    backbone.load_state_dict(backbones[name].state_dict())
    for side in (64, 65):
        given = 50 * image(side) if backbone.caffe else image(side)
        found = backbone(given, tuple(backbone.taps))
        expected = reference(backbone.net.state_dict(), given, stride, caffe=backbone.caffe)
        for tap, whole in zip(found, expected, strict=True):
            cells = -(-side // backbone.taps[tap].stride)
            extra = int(backbone.caffe and side == 64)  # pooling upwards adds a cell
            assert found[tap].shape[-1] == cells
            assert whole.shape[-1] == cells + extra
            torch.testing.assert_close(found[tap], whole[..., :cells, :cells])


def test_the_two_forms_differ_on_equal_weights(backbones) -> None:
    """Nothing but the form of the file can tell them apart."""
    one, two = build_backbone("resnet101", output_stride=8).eval(), backbones["resnet101_caffe"]
    one.load_state_dict(two.state_dict())
    with torch.no_grad():
        first, second = one(image(65))["high"], two(image(65))["high"]
    assert (first - second).abs().mean() > 0.1 * second.abs().mean()


def test_the_input_and_the_published_weights() -> None:
    theirs, caffe = outline("resnet101"), outline("resnet101_caffe")
    pixel = torch.tensor([200.0, 100.0, 50.0])  # RGB, 0..255
    seen = (pixel / 255 - torch.tensor(caffe.mean)) / torch.tensor(caffe.std)
    assert torch.allclose(seen, pixel - torch.tensor([122.675, 116.669, 104.008]), atol=1e-3)
    assert theirs.published()[1] == "resnet101-63fe2227.pth"
    with pytest.raises(ValueError, match="no published weights exist for resnet101_caffe"):
        caffe.published()
    assert {m.eps for m in caffe.modules() if hasattr(m, "eps")} == {1e-5}


def test_freezing_makes_constants_of_statistics_and_affine_maps(backbones) -> None:
    """As DeepLab trains it: no norm has a parameter, and the stem alone stops besides."""
    for name in NAMES:
        backbone = build_backbone(name, output_stride=8)
        backbone.load_state_dict(backbones[name].state_dict())
        backbone.freeze_norms()
        assert all(p.ndim == 4 and p.requires_grad for p in backbone.parameters())
        before = {n: b.clone() for n, b in backbone.named_buffers()}
        with torch.no_grad():
            backbone.train()(image())
        assert all(torch.equal(b, before[n]) for n, b in backbone.named_buffers())
