"""SFC: the coefficient of each class, its losses against a plain reference, and its maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from method_cases import MIXED, first_steps, gradients, make_batch, make_method, of_inference
from torch import Tensor

from network.backbones import Tap
from network.calibration.maps import (
    contrast_kept,
    distribution_coefficient,
    normal_cam,
    prototype_cam,
    seed_cells,
    with_peaks,
)
from network.calibration.network import DeepCorrelation, SideFeatures
from network.methods import Method, find_method
from network.pixel_correlation import mean_of_cells, pixel_affinity
from tool.progress import Progress

# Images of train_aug with each class, in the order of the classes, and the published coefficients.
VOC_COUNTS = [590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267, 613, 1188, 445, 492, 4155]
VOC_COUNTS += [522, 300, 649, 503, 567]
PUBLISHED = [0.807, 0.902, 0.773, 0.981, 0.773, 1.208, 0.872, 0.832, 0.907, 1.769, 0.793, 0.887]
PUBLISHED += [1.042, 0.926, 1.545, 0.876, 1.596, 0.780, 0.904, 0.826]
VOC_IMAGES = 10582
SIDES = {f"side.layers.{i}.weight" for i in range(4)}


def test_the_coefficients_of_voc_are_the_published_ones() -> None:
    published = torch.tensor(PUBLISHED)
    found = distribution_coefficient(torch.tensor(VOC_COUNTS), offset=396)
    assert (found - published).abs().max() <= 1e-3
    method = make_method("sfc", num_classes=20, bank_side=64)
    method.study((torch.arange(VOC_IMAGES)[:, None] < torch.tensor(VOC_COUNTS)).float())
    assert (method.coefficient - published).abs().max() <= 1e-3
    assert method.coefficient.mean().item() == pytest.approx(1)
    assert "coefficient" not in method.state_dict(), "made anew by `study`"


@pytest.mark.parametrize("counts", [[3, 3, 3], [7], [0, 0]])
def test_classes_of_one_count_have_equal_weights(counts: list[int]) -> None:
    assert distribution_coefficient(torch.tensor(counts), offset=0).tolist() == [1.0] * len(counts)


def test_a_class_without_images_has_a_finite_coefficient() -> None:
    assert distribution_coefficient(torch.tensor([0, 5]), offset=0).isfinite().all()


def test_a_class_without_images_changes_no_coefficient() -> None:
    alone = distribution_coefficient(torch.tensor([119, 212, 60]), offset=50)
    more = distribution_coefficient(torch.tensor([0, 119, 212, 0, 60]), offset=50)
    assert torch.allclose(more, torch.stack([torch.ones(()), *alone[:2], torch.ones(()), alone[2]]))
    labels = (torch.arange(212)[:, None] < torch.tensor([119, 212, 60])).float()
    few, many = make_method("sfc", num_classes=3), make_method("sfc", num_classes=20)
    few.study(labels)
    many.study(F.pad(labels, (0, 17)))
    assert torch.allclose(many.coefficient[:3], few.coefficient)


def test_the_first_maps_are_normalised_with_and_without_the_absent_classes() -> None:
    score = torch.tensor([[[[2.0, -1.0]], [[0.0, 4.0]]]])  # two classes, two cells
    present = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    everyone = normal_cam(score, None)[0, :, 0]
    assert torch.allclose(everyone, torch.tensor([[0.0, 0.0], [1, 0], [0, 1]]), atol=1e-4)
    alone = normal_cam(score, present)[0, :, 0]
    assert torch.allclose(alone, torch.tensor([[0.0, 1.0], [1, 0], [0, 0]]), atol=1e-4)


def test_seeds_are_the_cells_that_a_present_channel_wins() -> None:
    cam = torch.tensor([[[0.9, 0.1, 0.5]], [[0.2, 0.2, 0.1]], [[0.1, 0.0, 0.6]]])[None]
    present = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1)
    seed = seed_cells(cam, present, bg_factor=0.3)
    assert seed[0, :, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    low = torch.tensor([1.0, 0.1, 1.0]).view(1, 3, 1, 1) * cam
    assert seed_cells(low, present, bg_factor=0.3)[0, 1].sum() == 0
    lone = with_peaks(seed_cells(low, present, bg_factor=0.3), low, present)
    assert lone[0, 1, 0].tolist() == [1, 1, 0], "the cells of its own maximum"
    assert lone[0, 2].sum() == 0, "absent"
    assert with_peaks(0 * seed, 0 * low, present).sum() == 0, "nothing is the maximum of nothing"


def test_a_prototype_map_is_the_cosine_to_the_mean_of_the_seeds() -> None:
    feature = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    seed = torch.zeros(2, 4, 3, 4)
    seed[:, 0, 0], seed[:, 2, 1, :2], seed[1, 3, 2, 3] = 1, 1, 1
    found = prototype_cam(feature, seed)
    for n in range(2):
        for k in range(4):
            cells = feature[n][:, seed[n, k] == 1]
            if not cells.shape[1]:
                assert found[n, k].abs().max() == 0, "no seeds, no map"
                continue
            mean = cells.mean(dim=1)[:, None, None].expand_as(feature[n])
            expected = F.cosine_similarity(feature[n], mean, dim=0).clamp(min=0)
            assert torch.allclose(found[n, k], expected, atol=1e-5)


def test_an_absent_class_has_a_prototype_map_of_zeros() -> None:
    method, batch = make_method("sfc").eval(), make_batch(MIXED)
    taps = method.backbone(batch["image"], method.side.names)
    view = method.view(taps["high"], batch["image"], batch["valid"], batch["label"])
    maps = method.prototypes(method.side(taps), view.refined, view.present)
    assert maps[:, 1:][batch["label"] == 0].abs().max() == 0
    assert maps.amax() > 0


def padded_batch() -> dict:
    batch = make_batch(MIXED)
    batch["valid"][:, :, :, 48:] = False
    batch["image"] = batch["image"] * batch["valid"]
    return batch


def reference_losses(method: Method, batch: dict) -> dict[str, Tensor]:
    """The three terms as the equations say, image by image and class by class."""
    config, weight = method.config, method.coefficient
    logit, refined, prototype, label = [[], []], [[], []], [], batch["label"]
    for n, image in enumerate(batch["image"]):
        for v, factor in enumerate((1, 0.5)):
            side = int(len(image[0]) * factor)
            view = F.interpolate(image[None], (side, side), mode="bilinear", align_corners=True)
            taps = method.backbone(view, method.side.names)
            high = taps["high"][0]
            cells = high.shape[-1]
            raw = torch.einsum("kd,dhw->khw", method.classifier.weight[:, :, 0, 0], high)
            logit[v].append(raw.mean(dim=(1, 2)))
            inside = F.adaptive_avg_pool2d(batch["valid"][n].float(), cells)[0] >= 0.5
            maps = [
                raw[k].clamp(min=0) / (raw[k].clamp(min=0).max() + 1e-5) * label[n, k] * inside
                for k in range(method.num_classes)
            ]
            ground = (1 - torch.stack(maps).amax(0)) * inside
            small = F.interpolate(view, (cells, cells), mode="bilinear", align_corners=True)
            pixels = torch.cat([small[0], high])
            embedding = torch.einsum(
                "de,ehw->dhw", method.correlation.embed.weight[:, :, 0, 0], pixels
            ).flatten(1)
            if config.centred:
                embedding = embedding - embedding[:, inside.flatten()].mean(dim=1, keepdim=True)
            embedding = embedding / (embedding.norm(dim=0) + 1e-5)
            affinity = (embedding.T @ embedding).clamp(min=0)
            affinity = affinity / (affinity.sum(dim=0) + 1e-5)
            cam = torch.stack([ground, *maps]).flatten(1) @ affinity @ affinity
            refined[v].append(cam.view(-1, cells, cells))
            if v == 1:
                continue
            parts = []
            for layer, name in zip(method.side.layers, method.side.names, strict=True):
                one = layer(taps[name].detach())
                if config.centred:
                    valid = F.adaptive_avg_pool2d(batch["valid"][n].float(), one.shape[-2:])
                    kept = one.flatten(2)[0][:, (valid >= 0.5).flatten()]
                    one = one - kept.mean(dim=1)[:, None, None]
                one = one / (one.norm(dim=1, keepdim=True) + 1e-5)
                parts.append(F.interpolate(one, (cells, cells), mode="bilinear")[0])
            feature = torch.cat(parts)  # (D, h, w)
            scaled = refined[0][-1].clone()
            scaled[0] *= config.bg_factor
            winner = scaled.argmax(0)
            found = []
            for k in range(method.num_classes + 1):
                seeds = (winner == k) & inside & (k == 0 or label[n, k - 1] == 1)
                if not seeds.any():
                    found.append(torch.zeros(cells, cells))
                    continue
                mean = feature[:, seeds].mean(dim=1)[:, None, None].expand_as(feature)
                cosine = F.cosine_similarity(feature, mean, dim=0).clamp(min=0)
                found.append(cosine / (cosine.max() + 1e-5))
            prototype.append(torch.stack(found))
    first, second, target = (torch.stack(maps) for maps in (*refined, prototype))
    cls = [F.multilabel_soft_margin_loss(torch.stack(one), label) for one in logit]
    everyone = torch.cat([torch.ones(1), weight])[:, None, None]
    down = F.interpolate(first, second.shape[-2:], mode="bilinear", align_corners=True)
    apart = (down - second)[:, 1:].abs() * weight[:, None, None] * label[:, :, None, None]
    return {
        "cls": (cls[0] + cls[1]) / 2,
        "prototype": ((first - target).abs() * everyone).mean(),
        "views": apart.mean(),
    }


@pytest.mark.parametrize("centred", [False, True])
def test_the_losses_are_those_of_the_equations(centred: bool) -> None:
    method = make_method("sfc", pretrained=True, bank_draws=0, centred=centred).eval()
    batch = padded_batch()
    method.study(torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 1]]).float())
    assert method.coefficient.unique().numel() > 1
    found = method.losses(batch, Progress())
    expected = reference_losses(method, batch)
    for name, value in expected.items():
        assert value > 0
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4), name
    total = sum(weight * expected[name] for name, weight in method.weights().items())
    ours = sum(weight * found[name] for name, weight in method.weights().items())
    theirs = gradients(total, method)
    for name, gradient in gradients(ours, method).items():
        limit = 1e-3 * theirs[name].abs().max() + 1e-7
        assert (gradient - theirs[name]).abs().max() <= limit, name


def test_the_release_lets_absent_classes_lower_the_background() -> None:
    batch = make_batch([[1, 0, 0, 0, 0]])
    views = []
    for label_first in (True, False):
        method = make_method("sfc", label_first=label_first).eval()
        high = method.backbone(batch["image"])["high"]
        views.append(method.view(high, batch["image"], batch["valid"], batch["label"]).refined)
    ours, theirs = views
    assert torch.equal(ours[:, 1:], theirs[:, 1:])
    assert (ours[:, 0] > theirs[:, 0]).all()


@pytest.mark.parametrize("pretrained", [False, True])
def test_every_term_has_a_live_gradient(pretrained: bool) -> None:
    method = make_method("sfc", pretrained=pretrained).train()
    terms = first_steps(method, padded_batch())
    reached = {
        term: {name for name, g in gradients(value, method).items() if g.abs().max() > 0}
        for term, value in terms.items()
    }
    for term, names in reached.items():
        assert any(name.startswith("backbone.") for name in names), term
        assert "classifier.weight" in names, term
        assert ("correlation.embed.weight" in names) == (term != "cls")
        assert (names >= SIDES) == (term == "prototype")


def test_prototypes_teach_the_side_convolutions_only() -> None:
    method, batch = make_method("sfc").train(), make_batch(MIXED)
    taps = method.backbone(batch["image"], method.side.names)
    view = method.view(taps["high"], batch["image"], batch["valid"], batch["label"])
    maps = method.prototypes(method.side(taps), view.refined, view.present)
    assert set(gradients(maps.sum(), method)) == SIDES


def test_the_recipe_clips_and_decays_everything_that_trains() -> None:
    recipe = find_method("sfc").recipe
    assert recipe.clip == recipe.chosen(True).clip == 1.0
    assert recipe.epochs == 6
    method = make_method("sfc", pretrained=True)
    groups = method.param_groups(0.1, 1e-4)
    assert {group["weight_decay"] for group in groups} == {1e-4}
    assert {group["lr"] for group in groups} <= {0.1, 1.0}
    assert sum(len(group["params"]) for group in groups) == sum(
        parameter.requires_grad for parameter in method.parameters()
    )


def test_five_taps_give_four_sides() -> None:
    names = ("tap1", "tap2", "low", "mid", "high", "affinity")
    taps = {name: Tap(4, stride) for name, stride in zip(names, (4, 4, 8, 16, 16, 16), strict=True)}
    side = SideFeatures(taps)
    assert side.names == ("tap2", "low", "mid", "high")
    assert side.width == 768
    maps = {
        name: torch.rand(1, 4, 32 // tap.stride, 32 // tap.stride) for name, tap in taps.items()
    }
    assert side(maps).shape == (1, 768, 2, 2)


def merged(method: Method, scores: list[Tensor], label: Tensor) -> dict[str, Tensor]:
    return method.merge(scores, {"size": (12, 20), "sizes": [(48, 80)], "label": label})


def test_a_mirror_is_added_before_anything_is_normalised() -> None:
    method, batch = make_method("sfc").eval(), make_batch(MIXED[:1])
    with torch.no_grad():
        score = method.score({"image": batch["image"], **of_inference(method, batch)})
        pair = torch.cat([score, score.flip(-1)])
        alone, both = (merged(method, [one], batch["label"]) for one in (score, pair))
        other = torch.cat([score, torch.randn_like(score)])
        sums = merged(method, [(other[:1] + other[1:].flip(-1))], batch["label"])
        added = merged(method, [other], batch["label"])
    for name in method.maps:
        assert torch.allclose(alone[name], both[name], atol=1e-3)  # of 1e-5 beside a maximum
        assert torch.allclose(sums[name], added[name], atol=1e-5)


def test_the_maps_are_shifted_and_mixed() -> None:
    method, label = make_method("sfc", mix_walk=0.25).eval(), torch.tensor([[1.0, 0, 0, 1, 0]])
    batch = make_batch(label)
    with torch.no_grad():
        scores = [method.score({"image": F.avg_pool2d(batch["image"], s)}) for s in (1, 2)]
        maps = merged(method, scores, label)
    refined, prototype = (
        sum(
            F.interpolate(one, (12, 20), mode="bilinear", align_corners=True)[0]
            for one in (method._both(score[0], label)[i] for score in scores)
        )
        for i in (0, 1)
    )
    for name, total in (("classifier", refined), ("prototype", prototype)):
        for k in (1, 4):
            assert torch.allclose(maps[name][k], total[k] / (total[k].max() + 1e-5), atol=1e-5)
        ground = (total[0] / (total[0].max() + 1e-5) + 0.4) / 2
        assert torch.allclose(maps[name][0], ground, atol=1e-5)
        assert maps[name][[2, 3, 5]].abs().max() == 0
    for name, weight in (("cam", 1.0), ("seed", 0.7), ("walk", 0.25)):
        expected = (maps["classifier"] + weight * maps["prototype"]) / (1 + weight)
        assert torch.allclose(maps[name], expected, atol=1e-6)


def test_the_affinity_of_cells_spreads_and_keeps_the_sum() -> None:
    affinity = pixel_affinity(torch.randn(1, 6, 2, 3, generator=torch.Generator().manual_seed(1)))
    assert affinity.shape == (1, 6, 6)
    assert torch.allclose(affinity.sum(dim=1), torch.ones(1, 6), atol=1e-4)


def an_object_on_a_ground() -> tuple[Tensor, Tensor, Tensor]:
    """A CAM, features that are not negative, as a backbone's are, and an image without colour."""
    generator = torch.Generator().manual_seed(2)
    cam = torch.zeros(1, 2, 8, 8)
    cam[:, 1, 2:5, 2:5] = 1
    cam[:, 0] = 1 - cam[:, 1]
    ground, thing = torch.randn(2, 64, 1, 1, generator=generator)
    high = ground + cam[:, 1:] * (thing - ground) + torch.randn(1, 64, 8, 8, generator=generator)
    return cam, F.relu(high), torch.zeros(1, 3, 8, 8)


def new_correlation(centred: bool) -> DeepCorrelation:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DeepCorrelation(64, centred=centred)


@torch.no_grad()
def test_a_new_correlation_flattens_a_cam_unless_it_is_centred() -> None:
    cam, high, image = an_object_on_a_ground()
    plain, centred = (new_correlation(kind)(cam, high, image) for kind in (False, True))
    kept = [contrast_kept(refined, cam) for refined in (plain, centred)]
    assert kept[0] < 0.1
    assert kept[1] > 0.4
    inside = cam[0, 1] == 1
    for k in range(2):
        won = centred[0, k] > centred[0, 1 - k]
        assert torch.equal(won, inside == bool(k)), "object and ground each win their own cells"


@torch.no_grad()
def test_new_prototypes_cover_the_whole_image_unless_the_sides_are_centred() -> None:
    cam, high, _ = an_object_on_a_ground()
    valid = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    outside = []
    for centred in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            side = SideFeatures({"high": Tap(64, 16)}, centred=centred)
        feature = side({"high": high}, valid)
        own = prototype_cam(feature, cam)[0]
        outside.append(own[1][cam[0, 1] == 0].mean())
        if centred:
            shifted = side({"high": high + 3}, valid)
            assert torch.allclose(feature, shifted, atol=1e-4), "what all cells share"
            assert torch.equal(own[1] > 0.5, cam[0, 1] == 1)
    assert outside[0] > 0.3
    assert outside[1] < 0.05


@torch.no_grad()
def test_padding_is_not_in_the_mean_of_a_side() -> None:
    side = SideFeatures({"high": Tap(8, 16)}, centred=True)
    high, valid = torch.rand(1, 8, 4, 4), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    valid[..., 32:] = False
    whole = side({"high": high}, valid)[..., :2]
    assert torch.allclose(whole, side({"high": high[..., :2]}), atol=1e-5)
    assert not torch.allclose(whole, side({"high": high})[..., :2], atol=1e-2)


def test_the_contrast_that_is_kept_is_a_mean_over_maps_that_vary() -> None:
    cam = torch.zeros(1, 3, 2, 2)
    cam[0, 0, 0], cam[0, 1, :, 0] = 1, 4  # the third map is constant
    factor = torch.tensor([0.5, 0.1, 7]).view(1, 3, 1, 1)
    assert contrast_kept(factor * cam + 2, cam).item() == pytest.approx(0.3)
    assert contrast_kept(cam[:, 2:], cam[:, 2:]).item() == 0
    method, batch = make_method("sfc").train(), make_batch(MIXED)
    method.losses(batch, Progress())
    assert 0 < method.metrics()["contrast"] < 1


@torch.no_grad()
def test_what_all_cells_share_does_not_count_when_centred() -> None:
    cam, high, image = an_object_on_a_ground()
    layer = new_correlation(True)
    assert torch.allclose(layer(cam, high, image), layer(cam, high + 3, image), atol=1e-4)


def test_padding_is_not_in_the_mean_of_an_image() -> None:
    feature, inside = torch.rand(2, 3, 2, 4), torch.ones(2, 1, 2, 4)
    inside[0, :, :, 2:] = 0
    mean = mean_of_cells(feature, inside)
    assert torch.allclose(mean[0, :, 0, 0], feature[0, :, :, :2].mean(dim=(1, 2)))
    assert torch.allclose(mean[1], mean_of_cells(feature, None)[1])
    assert mean_of_cells(feature, 0 * inside).abs().max() == 0, "an image of padding"


def test_a_short_run_is_centred_and_the_papers_is_not() -> None:
    method = find_method("sfc")
    assert method.recipe.short_options["centred"] is True
    assert method.Config().centred is False
    assert make_method("sfc", centred=True).correlation.centred


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ({"bg_factor": 1.5}, "bg_factor"),
        ({"bg_shift": -0.1}, "bg_shift"),
        ({"mix_walk": -1.0}, "mix_walk"),
        ({"replay": -1.0}, "replay"),
        ({"bank_side": 0}, "bank_side"),
    ],
)
def test_impossible_options_are_refused(option: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make_method("sfc", **option)
