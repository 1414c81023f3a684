"""TAP's closed form, PCM's masking and affinity, the background head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from network.calibration.maps import contrast_kept
from network.heads import (
    BackgroundSegmentation,
    classifier,
    projection,
    thresholded_average_pool,
)
from network.pixel_correlation import PixelCorrelation, normal_cam, pixel_affinity


def test_tap_averages_the_cells_above_the_threshold_of_each_channel() -> None:
    feature = torch.tensor([[[[10.0, 4.0], [1.0, 0.0]], [[0.2, 0.04], [0.0, 0.0]]]])
    pooled = thresholded_average_pool(feature, threshold=0.10)  # 1.0 is not above 0.1 * 10
    assert pooled.shape == (1, 2, 1, 1)
    assert pooled.flatten().tolist() == pytest.approx([7.0, 0.12])


def test_tap_without_threshold_averages_the_active_cells_and_empty_channels_are_zero() -> None:
    feature = torch.tensor([[[[3.0, 0.0]], [[0.0, 0.0]]]], requires_grad=True)
    pooled = thresholded_average_pool(feature, threshold=0.0)
    assert pooled.flatten().tolist() == [3.0, 0.0]
    pooled.sum().backward()
    assert feature.grad.isfinite().all()


def test_tap_treats_images_apart_and_sends_the_gradient_to_the_kept_cells() -> None:
    torch.manual_seed(0)
    feature = torch.rand(3, 4, 5, 5, requires_grad=True)
    pooled = thresholded_average_pool(feature, threshold=0.5)
    for image in range(3):
        alone = thresholded_average_pool(feature[image : image + 1], threshold=0.5)
        assert torch.allclose(pooled[image], alone[0])
    pooled.sum().backward()
    kept = feature.detach() > 0.5 * feature.detach().amax(dim=(2, 3), keepdim=True)
    assert torch.equal(feature.grad > 0, kept)


def test_projections_and_classifier_have_no_bias() -> None:
    for layer in (classifier(8, 3), projection(8, 4)):
        assert layer.bias is None
        assert layer.kernel_size == (1, 1)


def test_first_weights_follow_the_release() -> None:
    """Xavier's uniform rule for projections, Kaiming's normal one for the reductions of the PCM."""
    torch.manual_seed(0)
    weight = projection(400, 128).weight
    bound = (6 / (400 + 128)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    correlation = PixelCorrelation(200, 300)
    for layer, inputs in ((correlation.low, 200), (correlation.mid, 300)):
        assert layer.weight.std().item() == pytest.approx((2 / inputs) ** 0.5, rel=0.05)
        assert layer.weight.abs().max() > 3 * layer.weight.std(), "normal, not uniform"
    widths = sum(correlation.embed.weight.shape[:2])
    assert correlation.embed.weight.std().item() == pytest.approx(4 * (2 / widths) ** 0.5, rel=0.05)


@pytest.fixture
def pcm() -> PixelCorrelation:
    torch.manual_seed(0)
    return PixelCorrelation(6, 10)


def taps(size: int = 4, images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An image of twice the cells and its low and mid taps."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((3, 2 * size), (6, size), (10, size))
    return tuple(torch.rand(images, c, s, s, generator=generator) for c, s in shapes)


LABEL = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def reference_refined(
    pcm: PixelCorrelation, cam: Tensor, label: Tensor, image: Tensor, low: Tensor, mid: Tensor
) -> Tensor:
    """PCM of one image in loops over its cells, from the text of its definition."""
    size = cam.shape[-2:]
    small = torch.nn.functional.interpolate(image, size=size, mode="bilinear")
    shallow = torch.cat([small, pcm.low(low).relu(), pcm.mid(mid).relu()], dim=1)
    g = pcm.embed(shallow)[0].flatten(1)
    g = g / (g.norm(dim=0) + 1e-5)
    cells = g.shape[1]
    affinity = torch.zeros(cells, cells)
    for i in range(cells):
        for j in range(cells):
            affinity[i, j] = max(0.0, float(g[:, i] @ g[:, j]))
    c = cam[0].flatten(1).relu().clone()
    for k in range(1, len(c)):
        c[k] = c[k] * label[0, k - 1]
        c[k] = c[k] / (c[k].max() + 1e-5)
    best = c[1:].max(dim=0).values
    c[0] = 1 - best
    c[1:] = torch.where(c[1:] == best, c[1:], 0.0)
    return (c @ (affinity / (affinity.sum(dim=0) + 1e-5))).view(1, -1, *size)


def test_pcm_equals_a_loop_over_cells(pcm: PixelCorrelation) -> None:
    image, low, mid = taps()
    cam = torch.randn(2, 4, 4, 4)
    refined = pcm(cam, LABEL, image, low, mid)
    for i in range(2):
        one = slice(i, i + 1)
        with torch.no_grad():
            expected = reference_refined(pcm, cam[one], LABEL[one], image[one], low[one], mid[one])
        assert torch.allclose(refined[one], expected, atol=1e-5)


@torch.no_grad()
def test_an_untrained_pcm_flattens_a_cam_unless_it_is_centred() -> None:
    """Two halves with features of their own, both not negative and large in common."""
    half = torch.arange(64).view(1, 1, 8, 8) % 8 < 4
    generator = torch.Generator().manual_seed(0)
    one, other, common = (torch.rand(3, 40, generator=generator)[:, None, :, None, None]).unbind(0)
    feature = 2 * common + torch.where(half, one, other)  # (1, 40, 8, 8)
    cam = torch.cat([torch.zeros(1, 1, 8, 8), half.float(), 1 - half.float()], dim=1)
    label, image = torch.ones(1, 2), torch.zeros(1, 3, 8, 8)
    kept = []
    for centred in (False, True):
        torch.manual_seed(0)
        module = PixelCorrelation(40, 40, centred=centred)
        refined = module(cam, label, image, feature, feature)
        kept.append(contrast_kept(refined[:, 1:], cam[:, 1:]).item())
    assert kept[0] < 0.4
    assert kept[1] > 0.9


@torch.no_grad()
def test_padding_is_not_in_the_mean_that_a_centred_pcm_subtracts() -> None:
    torch.manual_seed(0)
    module = PixelCorrelation(6, 10, centred=True)
    image, low, mid = taps()
    inside = torch.ones(2, 1, 4, 4)
    inside[:, :, 2:] = 0
    cam = torch.rand(2, 4, 4, 4)
    seen = module.embed(
        torch.cat(
            [
                torch.nn.functional.interpolate(image, size=(4, 4), mode="bilinear"),
                module.low(low).relu(),
                module.mid(mid).relu(),
            ],
            dim=1,
        )
    )
    affinity = pixel_affinity(seen - seen[:, :, :2].mean(dim=(2, 3), keepdim=True))
    expected = (normal_cam(cam, LABEL).flatten(2) @ affinity).view_as(cam)
    refined = module(cam, LABEL, image, low, mid, inside)
    torch.testing.assert_close(refined, expected)
    assert not torch.allclose(refined, module(cam, LABEL, image, low, mid))


def test_pcm_masks_absent_classes_however_strong(pcm: PixelCorrelation) -> None:
    image, low, mid = taps()
    cam = torch.rand(2, 4, 4, 4)
    refined = pcm(cam, LABEL, image, low, mid)
    absent = LABEL == 0
    assert refined[:, 1:][absent].abs().max() == 0
    assert (refined[:, 1:][~absent].amax(dim=(1, 2)) > 0).all()
    strong = cam.clone()
    strong[:, 1:][absent] += 100
    assert torch.equal(pcm(strong, LABEL, image, low, mid), refined)


def test_pcm_without_a_present_class_is_background(pcm: PixelCorrelation) -> None:
    refined = pcm(torch.rand(2, 4, 4, 4), 0 * LABEL, *taps())
    assert refined[:, 1:].abs().max() == 0
    assert torch.allclose(refined[:, 0], torch.ones(2, 4, 4), atol=1e-3)


def test_pcm_trains_its_convolutions_only_and_leaves_its_inputs(pcm: PixelCorrelation) -> None:
    inputs = [torch.rand(2, 4, 4, 4), *taps()]
    copies = [tensor.clone() for tensor in inputs]
    for tensor in inputs:
        tensor.requires_grad_(True)
    cam, image, low, mid = inputs
    pcm(cam, LABEL, image, low, mid)[:, 1].square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in pcm.parameters())
    assert cam.grad is None
    assert low.grad is None
    assert mid.grad is None
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_background_head_does_not_mix_images() -> None:
    torch.manual_seed(0)
    head = BackgroundSegmentation(16).eval()
    projected = torch.randn(3, 16, 5, 5)
    normalised = head.normalised(projected)
    assert normalised.shape == projected.shape
    assert normalised.min() == 0
    logit = head(normalised)
    assert logit.shape == (3, 1, 5, 5)
    alone = head(head.normalised(projected[1:2]))
    assert torch.allclose(logit[1:2], alone, atol=1e-6)


def test_background_head_drops_half_of_the_entries_in_training() -> None:
    head = BackgroundSegmentation(16)
    seen = []
    head.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head(torch.ones(2, 16, 20, 20))
    assert 0.4 < (seen[0] == 0).float().mean() < 0.6
    assert seen[0].max() == 2
