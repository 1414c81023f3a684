"""IRN: its losses on hand-made pairs, frozen taps, and the walk of earlier CAMs."""

from __future__ import annotations

import math

import pytest
import torch
from method_cases import METHODS, MIXED, make_batch, make_method

from network.backbones import Tap
from network.heads import BoundaryHead, DisplacementHead, on_grid
from network.methods import build_method, find_method
from network.methods.irn import Irn
from network.walk.affinity import affinity_losses, displacement_losses, pair_labels
from network.walk.random_walk import pairs_within, path_affinity, random_walk
from tool.infer.multiscale import score_and_embed
from tool.progress import Progress

NEAR = pairs_within(2)  # (0, 1), (1, -1), (1, 0), (1, 1)


def merge_batch(cells: tuple[int, int], label: torch.Tensor, cam: torch.Tensor) -> dict:
    """What `merge` reads of an image of these cells of 4 pixels; the maps have a value per cell."""
    return {"size": cells, "sizes": [(4 * cells[0], 4 * cells[1])], "label": label, "cam": cam}


def test_pairs_are_told_apart_by_their_seeds() -> None:
    seed = torch.tensor([[[0, 0, 1], [255, 1, 1]]])
    labels = pair_labels(seed, NEAR)
    right = NEAR.offsets.index((0, 1))
    assert labels.background[0, right].tolist() == [[True, False, False], [False] * 3]
    assert labels.foreground[0, right].tolist() == [[False] * 3, [False, True, False]]
    assert labels.different[0, right].tolist() == [[False, True, False], [False] * 3]
    down = NEAR.offsets.index((1, 0))
    assert labels.different[0, down].tolist() == [[False, True, False], [False] * 3]
    assert labels.foreground[0, down].tolist() == [[False, False, True], [False] * 3]
    total = labels.background.int() + labels.foreground + labels.different
    assert total.max() == 1
    assert not total[:, :, 1].any(dim=1)[:, 0].any(), "an unknown cell is in no pair"


def test_affinity_losses_equal_their_definition() -> None:
    seed = torch.tensor([[[0, 0, 1, 1]]])
    labels = pair_labels(seed, NEAR)
    affinity = torch.zeros(1, len(NEAR.offsets), 1, 4)
    affinity[0, NEAR.offsets.index((0, 1)), 0, :3] = torch.tensor([0.9, 0.4, 0.7])
    terms = affinity_losses(affinity, labels)
    assert terms["aff_background"].item() == pytest.approx(-math.log(0.9), abs=1e-4)
    assert terms["aff_different"].item() == pytest.approx(-math.log(0.6), abs=1e-4)
    assert terms["aff_foreground"].item() == pytest.approx(-math.log(0.7), abs=1e-4)


def test_boundaries_where_classes_meet_have_the_least_loss() -> None:
    seed = torch.zeros(1, 8, 8, dtype=torch.long)
    seed[:, :, 4:] = 2
    pairs = pairs_within(4)
    labels = pair_labels(seed, pairs)

    def total(edge: torch.Tensor) -> float:
        return sum(affinity_losses(path_affinity(edge, pairs), labels).values()).item()

    meets, inside, nowhere = torch.zeros(3, 1, 8, 8)
    meets[..., 3:5] = inside[..., 1:3] = 1
    assert total(meets) < total(nowhere)
    assert total(meets) < total(inside)


def test_cells_that_point_to_one_place_have_no_displacement_loss() -> None:
    seed = torch.full((1, 6, 7), 1)
    seed[:, :, 4:] = 0
    labels = pair_labels(seed, NEAR)
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    towards = torch.stack([2.5 - y, 1.5 - x])[None]
    towards[..., 4:] = 0.3
    terms = displacement_losses(towards, labels, NEAR)
    assert terms["dp_foreground"].item() == pytest.approx(0, abs=1e-6)
    assert terms["dp_background"].item() == pytest.approx(0, abs=1e-6)
    away = displacement_losses(-towards, labels, NEAR)
    assert away["dp_foreground"] > 1
    still = displacement_losses(0 * towards, labels, NEAR)
    assert still["dp_background"] == 0
    assert still["dp_foreground"] > 0


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_seed_of_one_kind_is_finite(value: int) -> None:
    method, batch = make_method("irn", radius=3), make_batch(MIXED[:2])
    batch["seed"] = torch.full_like(batch["seed"], value)
    terms = method(batch, Progress())
    sum(terms.values()).backward()
    assert all(term.isfinite() for term in terms.values())
    assert terms["aff_different"] == 0
    assert (terms["aff_background"] > 0) == (value == 0)
    assert (terms["aff_foreground"] > 0) == (value == 1)


def test_the_backbone_has_no_dropout() -> None:
    method, image = make_method("irn").train(), make_batch(MIXED[:1])["image"]
    one, two = (method.taps(image) for _ in range(2))
    assert all(map(torch.equal, one, two))


def test_the_backbone_is_frozen() -> None:
    for pretrained in (False, True):
        method = make_method("irn", pretrained=pretrained, radius=3)
        assert not any(p.requires_grad for p in method.backbone.parameters())
        before = {n: t.clone() for n, t in method.backbone.state_dict().items()}
        method(make_batch(MIXED[:2]), Progress())
        after = method.backbone.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in before), "nor do its norms move"
    groups = method.param_groups(0.1, 1e-4)
    assert [group["lr"] for group in groups] == [0.1, 1.0]
    trainable = [p for p in method.parameters() if p.requires_grad]
    assert sorted(map(id, trainable)) == sorted(id(p) for g in groups for p in g["params"])


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_a_tap_keeps_its_place_on_the_grid(stride: int) -> None:
    """Of an image of 50 pixels, which no stride divides."""
    x = 40 // stride
    tap = torch.zeros(1, 1, 1, -(-50 // stride))
    tap[..., x] = 1.0
    on = on_grid(tap, stride, 4, (1, 13))[0, 0, 0]
    brightest = (on == on.max()).nonzero().float().mean().item()
    assert 4 * (brightest + 0.5) == stride * (x + 0.5)


@pytest.mark.parametrize("head", [BoundaryHead, DisplacementHead])
def test_heads_take_taps_of_sizes_that_no_stride_divides(head: type) -> None:
    taps = [Tap(channels, s) for channels, s in ((4, 2), (8, 4), (8, 8), (16, 16), (16, 16))]
    maps = [torch.rand(2, tap.channels, -(-37 // tap.stride), -(-50 // tap.stride)) for tap in taps]
    assert head(taps)(maps, (10, 13)).shape[2:] == (10, 13)


def test_merging_is_the_walk_within_the_boundaries_over_its_maximum() -> None:
    method = make_method("irn", exponent=6)
    generator = torch.Generator().manual_seed(0)
    logit = 4 * torch.randn(1, 1, 9, 12, generator=generator)
    pair = torch.cat([logit, logit.flip(-1)])
    label = torch.tensor([[0.0, 1, 0, 1, 0]])
    earlier = torch.rand(1, 5, 9, 12, generator=generator)
    cam = method.merge([pair], merge_batch((9, 12), label, earlier))["cam"]
    walked = random_walk(earlier[0, [1, 3]], logit[0, 0].sigmoid(), steps=64)
    torch.testing.assert_close(cam[[1, 3]], walked / walked.max(), atol=1e-5, rtol=1e-4)
    assert cam.max() == 1
    assert cam[[0, 2, 4]].abs().max() == 0


def test_a_wall_keeps_a_class_on_its_side() -> None:
    method = make_method("irn")
    logit = torch.full((2, 1, 10, 12), -20.0)
    logit[..., 5:7] = 20.0
    earlier = torch.zeros(1, 5, 10, 12)
    earlier[0, 2, 4:6, 1:3] = 1
    batch = merge_batch((10, 12), torch.eye(5)[2:3], earlier)
    cam = method.merge([logit], batch)["cam"][2]
    assert cam[:, :5].min() > 0.9, "it fills its side"
    assert cam[:, 7:].max() < 1e-6


def test_an_image_without_cam_is_empty_and_powers_sharpen() -> None:
    logit = torch.full((2, 1, 6, 6), -20.0)
    label = torch.eye(5)[:1]
    empty = merge_batch((6, 6), label, torch.zeros(1, 5, 6, 6))
    assert make_method("irn").merge([logit], empty)["cam"].abs().max() == 0
    earlier = torch.rand(1, 5, 6, 6)
    batch = merge_batch((6, 6), label, earlier)
    plain, sharp = (
        make_method("irn", power=p, exponent=0).merge([logit], batch)["cam"] for p in (1.0, 3.0)
    )
    assert sharp.mean() < plain.mean()


@pytest.mark.parametrize(
    "config", [{"radius": 1}, {"beta": 0.0}, {"power": -1.0}, {"exponent": 99}, {"pad": 5000}]
)
def test_bad_settings_are_named(config: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        make_method("irn", **config)


@pytest.mark.parametrize("name", [n for n in METHODS if issubclass(find_method(n), Irn)])
def test_a_backbone_of_four_taps_is_refused_by_the_method_itself(name: str) -> None:
    """Also by each of its subclasses, under their own names."""
    config = {"method": name, "backbone": "timm:convnext_atto", "output_stride": 16}
    config |= {"num_classes": 5, "pretrained": False, "method_config": {}}
    with pytest.raises(ValueError, match=f"method '{name}' needs a backbone of five taps"):
        build_method(config)


def test_the_walk_is_enlarged_and_cropped() -> None:
    """The 13 cells of 50 pixels reach to pixel 52: what a cell has lies at its own pixels."""
    method = make_method("irn", exponent=0)
    earlier = torch.zeros(1, 5, 1, 13)
    earlier[..., 10] = 1
    batch = {"size": (4, 50), "sizes": [(4, 50)], "label": torch.eye(5)[:1], "cam": earlier}
    walls = torch.full((2, 1, 1, 13), 20.0)  # the walk goes nowhere
    walls[0, :, :, 10], walls[1, :, :, 2] = -20.0, -20.0
    cam = method.merge([walls], batch)["cam"][0].mean(dim=0)
    place = (cam * torch.arange(50)).sum() / cam.sum()
    assert place.item() == pytest.approx(4 * 10 + 1.5, abs=0.01)


def test_seeds_are_read_at_the_centres_of_cells() -> None:
    method, batch = make_method("irn", radius=3), make_batch(MIXED[:2])
    before = method(batch, Progress())
    off = torch.ones(64, dtype=torch.bool)
    off[2::4] = False
    batch["seed"][:, off] = 7
    batch["seed"][:, :, off] = 7
    after = method(batch, Progress())
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch["seed"][:, 2::4] = 0
    assert any(not torch.equal(before[n], t) for n, t in method(batch, Progress()).items())


def test_small_images_are_padded_as_in_training() -> None:
    image = torch.randn(2, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    plain, padding = (make_method("irn", pad=pad).eval() for pad in (0, 64))
    padded = torch.nn.functional.pad(image, (0, 12, 0, 24))
    with torch.no_grad():
        found = padding.score({"image": image})
        assert torch.equal(found, plain.score({"image": padded})[..., :10, :13])
        assert not torch.allclose(found, plain.score({"image": image}))
        assert torch.equal(padding.score({"image": padded}), plain.score({"image": padded}))


def test_padding_does_not_cost_a_second_pass() -> None:
    method, calls = make_method("irn", pad=64).eval(), []
    method.backbone.register_forward_hook(lambda *_: calls.append(1))
    batch = {"image": torch.randn(2, 3, 40, 52)}
    with torch.no_grad():
        _, feature = score_and_embed(method, batch)
    assert len(calls) == 1
    assert feature.shape[-2:] == (5, 7), "of the image, not of the padding"
