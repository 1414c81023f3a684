"""The networks of the segmentation stage: losses, inner scales, heads, merging, what trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_cases import MIXED, gradients, make_batch, make_method
from PIL import Image
from torch import Tensor

from network.backbones import FROZEN, build_backbone
from network.heads import Aspp
from network.methods import Method, find_method
from network.norms import FixedNorm2d
from network.segmentation.heads import ConcatAspp, LargeFov, TwoDilated, dilation_of
from network.segmentation.losses import (
    at_inner_scales,
    balanced_per_image,
    foreground_share,
    inner_scales,
    inner_side,
    mask_at,
    mask_loss,
    maximum_of,
    plain_cross_entropy,
)
from tool.progress import Progress

NETWORKS = ("deeplab1", "deeplab2", "deeplab2_advcam")
K = 5


def random_mask(images: int, side: int, *, seed: int = 0) -> Tensor:
    """Blocks of random classes, some of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, K + 2, (images, 1, 5, 5), generator=generator)
    mask = F.interpolate(blocks.float(), size=(side, side), mode="nearest")[:, 0].long()
    return mask.masked_fill(mask == K + 1, 255)


def resized(mask: Tensor, side: int) -> Tensor:
    """PIL's nearest neighbour."""
    image = Image.fromarray(mask.numpy().astype(np.uint8))
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.NEAREST))).long()


def reference(logit: Tensor, mask: Tensor, kind: str) -> float:
    """The loss in plain Python, cell by cell."""
    images = []
    for image, labels in zip(logit.tolist(), mask.tolist(), strict=True):
        losses: dict[bool, list[float]] = {False: [], True: []}
        for row, line in enumerate(labels):
            for column, label in enumerate(line):
                if label == 255:
                    continue
                cell = [channel[row][column] for channel in image]
                total = math.log(sum(math.exp(value) for value in cell))
                losses[label > 0].append(total - cell[label])
        images.append(losses)
    if kind == "balanced":
        means = [sum(sum(part) / max(1, len(part)) for part in one.values()) for one in images]
        return sum(means) / len(means)
    every = [value for one in images for part in one.values() for value in part]
    return sum(every) / len(every)


@pytest.mark.parametrize("kind", ["plain", "balanced"])
def test_a_loss_is_its_reference(kind: str) -> None:
    logit, mask = 3 * torch.randn(3, K + 1, 7, 7), random_mask(3, 7)
    mask[2][mask[2] > 0] = 0  # an image without foreground
    assert mask_loss(logit, mask, kind=kind).item() == pytest.approx(reference(logit, mask, kind))


@pytest.mark.parametrize("loss", [plain_cross_entropy, balanced_per_image])
def test_unknown_cells_alone_give_an_attached_zero(loss) -> None:
    logit = torch.randn(2, K + 1, 4, 4, requires_grad=True)
    value = loss(logit, torch.full((2, 4, 4), 255))
    value.backward()
    assert value == 0
    assert logit.grad.abs().max() == 0


def test_the_balanced_loss_does_not_see_how_large_the_object_is() -> None:
    """Both losses agree where both kinds are as frequent, but for the factor of two."""
    logit = torch.randn(1, K + 1, 4, 4)
    logit[..., 1:] = logit[..., :1]
    half, small = torch.zeros(1, 4, 4, dtype=torch.long), torch.zeros(1, 4, 4, dtype=torch.long)
    half[:, :2], small[:, :2, :1] = 3, 3
    assert balanced_per_image(logit, half).item() == pytest.approx(
        2 * plain_cross_entropy(logit, half).item()
    )
    same = logit[:, :, :1].expand_as(logit)
    assert balanced_per_image(same, half).item() == pytest.approx(
        balanced_per_image(same, small).item()
    )


@pytest.mark.parametrize(("side", "cells"), [(321, 41), (321, 31), (224, 14), (24, 3), (7, 7)])
def test_a_mask_at_cells_is_that_of_pil(side: int, cells: int) -> None:
    mask = random_mask(1, side, seed=side)
    assert torch.equal(mask_at(mask, (cells, cells))[0], resized(mask[0], cells))


def test_inner_scales_go_down_in_quarters() -> None:
    assert inner_scales(0.5) == (1, 0.75, 0.5)
    assert inner_scales(0.75) == (1, 0.75)
    assert inner_scales(0.6) == (1, 0.75)
    assert inner_scales(1) == (1,)
    for wrong in (0, -1, 1.01, math.nan):
        with pytest.raises(ValueError, match="inner_scale"):
            inner_scales(wrong)


def test_inner_sides_are_the_published_ones_and_multiples() -> None:
    assert [inner_side(321, scale, 8) for scale in (1, 0.75, 0.5)] == [321, 240, 160]
    assert inner_side(224, 0.75, 16) == 160
    assert inner_side(8, 0.5, 16) == 16


def test_multi_scale_training_is_its_reference() -> None:
    """Four terms, at the resolution of each scale's logits, and of their maximum."""
    method, batch = make_method("deeplab2").eval(), make_batch(MIXED[:2], side=96)
    batch["mask"] = random_mask(2, 96)
    terms = method.losses(batch, Progress())
    assert list(terms) == ["seg_1", "seg_0.75", "seg_0.5", "seg_max"]
    logits = []
    for scale in (1, 0.75, 0.5):
        side = int(96 * scale)
        image = F.interpolate(batch["image"], size=(side, side), mode="bilinear")
        logits.append(method.classifier(method.backbone(image)["high"]))
    size = logits[0].shape[-2:]
    enlarged = [F.interpolate(logit, size=size, mode="bilinear") for logit in logits]
    logits.append(torch.stack(enlarged).amax(dim=0))
    masks = [
        torch.stack([resized(one, logit.shape[-1]) for one in batch["mask"]]) for logit in logits
    ]
    for (name, value), logit, mask in zip(terms.items(), logits, masks, strict=True):
        expected = reference(logit.detach(), mask, "plain")
        assert value.item() == pytest.approx(expected, rel=1e-4), name
    total = sum(terms.values())
    expected = sum(
        F.cross_entropy(logit, mask, ignore_index=255)
        for logit, mask in zip(logits, masks, strict=True)
    )
    found, wanted = (gradients(value, method) for value in (total, expected))
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-6), name


def test_one_inner_scale_has_no_maximum() -> None:
    method = make_method("deeplab2", inner_scale=1.0)
    assert list(method.weights()) == ["seg_1"]
    assert list(method(make_batch(MIXED), Progress())) == ["seg_1"]


def test_the_first_scale_keeps_the_image_itself() -> None:
    image, seen = torch.randn(1, 3, 50, 50), []
    at_inner_scales(lambda one: seen.append(one) or one, image, (1, 0.5), multiple=8)
    assert seen[0] is image
    assert seen[1].shape[-2:] == (24, 24)


def test_the_maximum_is_taken_on_the_largest_grid() -> None:
    large, small = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 2, 2), -1.0)
    small[0, 1] = 2
    best = maximum_of([large, small])
    assert best.shape == large.shape
    assert (best[0, 0] == 0).all()
    assert (best[0, 1] == 2).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_unknown_pixels_is_finite(name: str) -> None:
    method, batch = make_method(name), make_batch(MIXED)
    batch["mask"] = torch.full_like(batch["mask"], 255)
    terms = method(batch, Progress())
    sum(terms.values()).backward()
    assert all(value == 0 for value in terms.values())
    assert all(p.grad is None or (p.grad == 0).all() for p in method.parameters())


@pytest.mark.parametrize(("name", "head"), [("deeplab2", "concat"), ("deeplab1", "mct")])
def test_the_other_heads_train(name: str, head: str) -> None:
    method = make_method(name, head=head, pretrained=True)
    total = sum(method(make_batch(MIXED), Progress()).values())
    assert total.isfinite()
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    found = gradients(total, method)
    assert set(found) == trainable
    assert all(gradient.abs().max() > 0 for gradient in found.values())


def test_dilations_are_those_of_the_papers_at_stride_8_and_half_at_16() -> None:
    def dilations(name: str, stride: int) -> list[int]:
        method = make_method(name)  # the slim backbone has a stride of 8
        config, tap = method.config, method.backbone.taps["high"]
        assert tap.stride == 8
        factors = (1, 2, 3, 4) if name == "deeplab2" else (1,)
        return [dilation_of(factor * config.rate, stride) for factor in factors]

    assert dilations("deeplab2", 8) == [6, 12, 18, 24]
    assert dilations("deeplab2", 16) == [3, 6, 9, 12]
    assert dilations("deeplab1", 8) == [12]
    assert dilations("deeplab1", 16) == [6]
    found = [branch.dilation[0] for branch in make_method("deeplab2").classifier.branches]
    assert found == [6, 12, 18, 24]
    assert make_method("deeplab1").classifier.wide[0].dilation == (12, 12)


@pytest.mark.parametrize(
    "head",
    [
        Aspp(8, 3, dilations=(1, 2)),
        ConcatAspp(8, 3, dilations=(1, 2)),
        LargeFov(8, 3, dilation=2),
        TwoDilated(8, 3, dilation=2),
    ],
    ids=lambda head: type(head).__name__,
)
def test_a_head_keeps_the_grid_and_the_images_apart(head: torch.nn.Module) -> None:
    head.eval()
    feature = torch.randn(2, 8, 6, 9)
    with torch.no_grad():
        both = head(feature)
        alone = head(feature[:1])
    assert both.shape == (2, 3, 6, 9)
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_deeplab2_merges_by_the_maximum_over_scales_of_the_mean_of_mirrors() -> None:
    method = make_method("deeplab2")
    scores = [torch.randn(2, K + 1, side, side) for side in (6, 9)]
    found = method.merge(scores, {"size": (9, 9)})["cam"]
    sized = [F.interpolate(score, size=(9, 9), mode="bilinear") for score in scores]
    expected = torch.maximum(*((one[0] + one[1].flip(-1)) / 2 for one in sized)).softmax(dim=0)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("head", ["largefov", "mct"])
def test_deeplab1_merges_by_the_mean_or_by_the_largest_probability(head: str) -> None:
    method = make_method("deeplab1", head=head)
    scores = [torch.randn(2, K + 1, side, side) for side in (5, 9)]
    found = method.merge(scores, {"size": (9, 9)})["cam"]
    sized = [
        F.interpolate(score, size=(9, 9), mode="bilinear", align_corners=True) for score in scores
    ]
    logits = torch.stack([(one[0] + one[1].flip(-1)) / 2 for one in sized])
    if head == "mct":
        assert torch.allclose(found, logits.softmax(dim=1).amax(dim=0), atol=1e-6)
    else:
        assert torch.allclose(found, logits.mean(dim=0).softmax(dim=0), atol=1e-6)


@pytest.mark.parametrize("backbone", ["resnet38d_slim", "resnet50"])
@pytest.mark.parametrize("frozen", FROZEN)
def test_what_stays_frozen_of_pretrained_weights(backbone: str, frozen: str) -> None:
    network = build_backbone(backbone, output_stride=8)
    network.freeze()
    network.train_beyond(frozen)
    prefixes = {"norms": (), "stem": network.stem, "shallow": (*network.stem, *network.shallow)}
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    norms = {
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, FixedNorm2d)
        for part, _ in module.named_parameters()
    }
    for name, _ in network.named_parameters():
        assert (name in trained) is (name not in norms and not name.startswith(prefixes[frozen]))
    assert any(".conv" in name or name.startswith("net.conv") for name in trained)


def test_the_share_of_predicted_foreground_leaves_padding_out() -> None:
    logit = torch.zeros(1, 3, 2, 2)
    logit[0, 0], logit[0, 2, 0] = 0.5, 1  # the upper row is foreground
    valid = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert foreground_share(logit, valid)["foreground"] == 0.5
    valid[:, :, 4:] = False
    assert foreground_share(logit, valid)["foreground"] == 1
    assert foreground_share(logit, ~valid & False)["foreground"] == 0


def test_recipes_are_those_of_the_papers() -> None:
    plain, advcam = (find_method(name).recipe for name in ("deeplab2", "deeplab2_advcam"))
    assert (plain.steps, advcam.steps) == (20_000, 30_000)
    assert max(advcam.scale) == 2
    assert find_method("deeplab2_advcam").Config().loss == "balanced"
    assert find_method("deeplab2").Config().loss == "plain"
    assert {find_method(name).recipe.post.preset for name in NETWORKS} == {"dlv2", "seam32"}


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_not_read(name: str) -> None:
    found: type[Method] = find_method(name)
    assert "label" not in found.inputs
    assert found.infer_inputs == ("image",)
    assert found.has_background


def test_impossible_rates_are_refused() -> None:
    for name in ("deeplab1", "deeplab2"):
        for rate in (0, 1001):
            with pytest.raises(ValueError, match=f"rate {rate} is not in"):
                make_method(name, rate=rate)
