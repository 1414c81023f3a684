"""`transcam`: raw maps spread by attention; negative values cancel before anything is clamped."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from attentive import CLASSES, attentive
from method_cases import MIXED, first_steps, gradients, make_batch, make_method
from torch import Tensor, nn

from network.backbones import AFFINITY, cosine_affinity
from network.calibration.maps import contrast_kept
from network.methods import Method, find_method
from network.methods.transcam import TransCam
from network.spreading import centred_affinity, score_head, spread
from network.weights.foreign_heads import our_names
from tool.progress import Progress


def test_spreading_is_a_sum_over_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 2, 4, generator=generator)
    affinity = torch.rand(2, 8, 8, generator=generator)
    found = spread(maps, affinity)
    assert found.shape == maps.shape
    for n in range(2):
        for i in range(8):
            expected = sum(affinity[n, i, j] * maps[n, :, j // 4, j % 4] for j in range(8))
            assert torch.allclose(found[n, :, i // 4, i % 4], expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spread(maps, affinity), found), "in full precision"


def test_the_maps_are_spread_by_the_attention_of_the_backbone() -> None:
    method, image = attentive(TransCam).eval(), make_batch(MIXED)["image"]
    taps = method.backbone(image, ("high", AFFINITY, "token"))
    raw = F.conv2d(taps["high"], method.head.weight, method.head.bias, padding=1)[:, 1:]
    expected = torch.einsum("nij,nkj->nki", taps[AFFINITY], raw.flatten(2)).view_as(raw)
    assert torch.allclose(method.score({"image": image}), expected, atol=1e-4)
    token = method.token_head(taps["token"])[:, 1:]
    logit = raw.mean(dim=(2, 3)) + token
    assert torch.allclose(method.classify({"image": image}), logit.sigmoid(), atol=1e-5)


def test_training_does_not_use_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (attentive(TransCam), make_method("transcam")):
        asked, forward = [], method.backbone.forward

        def seen(image: Tensor, names=("high",), *, forward=forward, asked=asked) -> dict:
            asked.extend(names)
            return forward(image, names)

        monkeypatch.setattr(method.backbone, "forward", seen)
        terms = first_steps(method, make_batch(MIXED), 1)
        assert set(terms) == {"cls"}
        assert set(asked) == {"high", "token"} & set(method.backbone.taps)


@pytest.mark.parametrize("negative", [0.0, -3.0])
def test_negative_values_cancel_over_scales_before_they_are_clamped(negative: float) -> None:
    """Two scales and mirrors by hand: the sum of the raw maps is clamped, then stretched."""
    method, size = make_method("transcam"), (12, 20)
    one, two = torch.rand(2, 5, 3, 4), torch.rand(2, 5, 6, 8)
    two[:, :, 2:4, 3:6] += negative
    label = torch.tensor([[1.0, 0, 0, 1, 0]])
    found = method.merge([one, two], {"size": size, "label": label})["cam"]
    up = [F.interpolate(score, size, mode="bilinear", align_corners=False) for score in (one, two)]
    total = sum(maps[0] + maps[1].flip(-1) for maps in up).clamp(min=0)
    for k in range(5):
        low, high = total[k].min(), total[k].max()
        expected = label[0, k] * (total[k] - low) / (high - low + 1e-5)
        assert torch.allclose(found[k], expected, atol=1e-5)
    early = sum(maps.clamp(min=0)[0] + maps.clamp(min=0)[1].flip(-1) for maps in up)
    assert torch.allclose(early, total) is (negative == 0)


def test_maps_without_anything_positive_are_zero() -> None:
    method = make_method("transcam")
    found = method.merge([-torch.rand(2, 5, 3, 4)], {"size": (6, 8), "label": torch.ones(1, 5)})
    assert found["cam"].abs().max() == 0


def an_object_on_a_ground() -> tuple[Tensor, Tensor]:
    """Raw maps of one class, and features that are not negative, as a backbone's are."""
    generator = torch.Generator().manual_seed(2)
    raw = torch.full((1, 1, 8, 8), -0.5)
    raw[:, :, 2:5, 2:5] = 1.5
    ground, thing = torch.randn(2, 64, 1, 1, generator=generator)
    feature = ground + (raw > 0) * (thing - ground) + torch.randn(1, 64, 8, 8, generator=generator)
    return raw, F.relu(feature)


def test_without_attention_cells_are_compared_by_how_they_differ_from_their_image() -> None:
    raw, feature = an_object_on_a_ground()
    flat, kept = (
        contrast_kept(spread(raw, affinity(feature)) / 12, raw)
        for affinity in (cosine_affinity, centred_affinity)
    )
    assert flat < 0.25
    assert kept > 0.5
    shifted = centred_affinity(feature + 3)
    assert torch.allclose(shifted, centred_affinity(feature), atol=1e-4), "what all cells share"
    rows = shifted.sum(dim=2)
    assert torch.allclose(rows, torch.full_like(rows, 12), rtol=1e-3)
    assert centred_affinity(torch.ones(1, 4, 2, 2)).abs().max() == 0


@pytest.mark.parametrize("centred", [True, False])
def test_the_affinity_is_the_backbones_own_or_its_stand_in(centred: bool) -> None:
    image = make_batch(MIXED)["image"]
    own = attentive(TransCam, centred=centred).eval()
    affinity = own.backbone(image, (AFFINITY,))[AFFINITY]
    assert torch.equal(own.taps(image, affinity=True)[AFFINITY], affinity)
    other = make_method("transcam", centred=centred).eval()
    taps = other.taps(image, affinity=True)
    expected = (centred_affinity if centred else cosine_affinity)(taps["high"])
    assert torch.equal(taps[AFFINITY], expected)
    assert AFFINITY not in other.taps(image)


@pytest.mark.parametrize(("init", "std"), [("kaiming", (2 / (9 * 21)) ** 0.5), ("xavier", None)])
def test_the_first_weights_of_a_head(init: str, std: float | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = score_head(64, 21, init=init)
    std = std or (2 / (9 * (64 + 21))) ** 0.5
    assert head.weight.std().item() == pytest.approx(std, rel=0.02)
    assert head.bias is not None


def parameters_of(method: Method) -> list[nn.Parameter]:
    return [parameter for parameter in method.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("name", ["transcam", "bao"])
def test_everything_that_trains_decays_at_one_rate(name: str) -> None:
    recipe = find_method(name).recipe
    assert (recipe.optimizer, recipe.power, recipe.sides) == ("adamw", 0, (256, 512, 768))
    assert recipe.post.threshold == (0.44 if name == "transcam" else 0.22)
    method = make_method(name, pretrained=True)
    (group,) = method.param_groups(recipe.lr, recipe.weight_decay)
    assert (group["lr"], group["weight_decay"]) == (5e-5, 5e-4)
    assert {id(p) for p in group["params"]} == {id(p) for p in parameters_of(method)}


def test_the_heads_of_the_published_files_fit() -> None:
    """Their names; K + 1 rows, the background's first."""
    own = attentive(TransCam).state_dict()
    shapes = {"conv_cls_head": (CLASSES + 1, 6, 3, 3), "trans_cls_head": (CLASSES + 1, 6)}
    published = {f"{name}.weight": torch.rand(shape) for name, shape in shapes.items()}
    published |= {f"{name}.bias": torch.rand(CLASSES + 1) for name in shapes}
    found = our_names(published)
    heads = {name for name in own if not name.startswith("backbone.")}
    assert set(found) == heads
    assert all(found[name].shape == own[name].shape for name in heads)


def test_every_head_and_the_token_learn() -> None:
    method = attentive(TransCam).train()
    (term,) = method(make_batch(MIXED), Progress()).values()
    found = gradients(term, method)
    for name in ("head.weight", "token_head.weight", "backbone.token", "backbone.patch.weight"):
        assert found[name].abs().max() > 0, name
    assert found["head.weight"][0].abs().max() == 0, "the background's row is not used"
