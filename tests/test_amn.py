"""AMN and FBR on it: the balanced loss, the label's part, the merged maps, corner cases."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from method_cases import MIXED, ONE_CLASS, first_steps, make_batch, make_method

from network.heads import Aspp, LabelConditioning
from network.losses import balanced_cross_entropy
from network.maps import enlarge, resize_cells
from network.methods.fbr_amn import above_floor
from tool.progress import Progress

AMN = ("amn", "fbr_amn")


def test_the_balanced_loss_equals_its_definition_in_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = torch.randn(2, 4, 3, 3, generator=generator)
    seed = torch.tensor([[[0, 0, 1], [255, 3, 0], [0, 0, 0]], [[2, 255, 0], [0, 0, 0], [0, 0, 0]]])
    sums, counts = [0.0, 0.0], [0, 0]
    for n in range(2):
        for y in range(3):
            for x in range(3):
                own = int(seed[n, y, x])
                if own == 255:
                    continue
                log_prob = logit[n, :, y, x].log_softmax(0).tolist()
                target = [0.6 if k == own else 0.4 / 3 for k in range(4)]
                kind = int(own > 0)
                sums[kind] -= sum(t * p for t, p in zip(target, log_prob, strict=True))
                counts[kind] += 1
    expected = (sums[0] / counts[0] + sums[1] / counts[1]) / 2
    assert balanced_cross_entropy(logit, seed, smoothing=0.4).item() == pytest.approx(expected)


def test_without_smoothing_it_is_cross_entropy_of_each_kind() -> None:
    logit, seed = torch.randn(1, 3, 2, 4), torch.tensor([[[0, 0, 0, 2], [0, 1, 255, 0]]])
    halves = [
        F.cross_entropy(logit, seed.masked_fill(part, 255), ignore_index=255)
        for part in (seed > 0, seed == 0)
    ]
    loss = balanced_cross_entropy(logit, seed, smoothing=0.0)
    torch.testing.assert_close(loss, sum(halves) / 2)


@pytest.mark.parametrize("value", [0, 2, 255])
def test_a_crop_of_one_kind_or_of_none_is_finite(value: int) -> None:
    logit = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = balanced_cross_entropy(logit, torch.full((1, 4, 4), value), smoothing=0.4)
    loss.backward()
    assert loss.isfinite()
    assert logit.grad.isfinite().all()
    assert (loss == 0) == (value == 255)
    assert (logit.grad.abs().max() == 0) == (value == 255)


def test_unknown_pixels_say_nothing_and_known_ones_pull() -> None:
    logit = torch.zeros(1, 3, 2, 2, requires_grad=True)
    seed = torch.tensor([[[255, 2], [0, 255]]])
    balanced_cross_entropy(logit, seed, smoothing=0.4).backward()
    assert logit.grad[0, :, 0, 0].abs().max() == 0
    assert logit.grad[0, 2, 0, 1] < 0 < logit.grad[0, 0, 0, 1]
    assert logit.grad[0, 0, 1, 0] < 0 < logit.grad[0, 2, 1, 0]


def test_label_conditioning_is_linear_in_the_label() -> None:
    layer, feature = LabelConditioning(3, 5), torch.rand(2, 5, 4, 4)
    label = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    out = layer(feature, label)
    weight = layer.embed.weight[:, 0] + layer.embed.weight[:, 2] + layer.embed.bias
    torch.testing.assert_close(out[0], feature[0] * weight[:, None, None])
    torch.testing.assert_close(out[1], feature[1] * layer.embed.bias[:, None, None])


def test_aspp_sums_its_branches_and_keeps_the_size() -> None:
    head = Aspp(4, 3)
    assert [branch.dilation for branch in head.branches] == [(d, d) for d in (6, 12, 18, 24)]
    feature = torch.rand(1, 4, 9, 7)
    torch.testing.assert_close(head(feature), sum(b(feature) for b in head.branches))
    assert head(feature).shape == (1, 3, 9, 7)


@pytest.mark.parametrize("name", AMN)
def test_the_label_changes_the_scores_and_dropout_is_off_in_inference(name: str) -> None:
    method = make_method(name).eval()
    image = make_batch(ONE_CLASS)["image"]
    label = torch.eye(5)[:1]
    with torch.no_grad():
        one, again = (method.score({"image": image, "label": label}) for _ in range(2))
        other = method.score({"image": image, "label": label.roll(1)})
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_the_floor_of_the_smoothing_is_no_activation() -> None:
    """Logits that fit a seed at K = 8: `bg_seg` finds its background, and none of it in padding."""
    num_classes, side = 8, 12
    seed = torch.zeros(1, side, side, dtype=torch.long)
    seed[:, 3:7, 3:7] = 5
    logit = torch.zeros(1, num_classes + 1, side, side, requires_grad=True)
    optimizer = torch.optim.Adam([logit], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        balanced_cross_entropy(logit, seed, smoothing=0.4).backward()
        optimizer.step()
    prob = logit.detach().softmax(dim=1)[:, 1:]
    inside = torch.ones(1, 1, side, side, dtype=torch.bool)
    method, label = make_method("fbr_amn", num_classes=num_classes), torch.eye(num_classes)[4:5]
    for activation, share in ((prob, 0.0), (above_floor(prob, inside), 128 / 144)):
        cam = activation / activation.amax(dim=(-2, -1), keepdim=True) * label[:, :, None, None]
        found = (cam.sum(1) < method.config.bg_threshold_seg).float().mean().item()
        assert found == pytest.approx(share)
    inside[..., 8:] = False
    assert above_floor(prob, inside)[..., 8:].abs().max() == 0


def test_padding_holds_no_query_and_no_prototype() -> None:
    method, batch = make_method("fbr_amn"), make_batch(MIXED)
    batch["valid"][..., 32:] = False
    seen = []
    method.fbr_contrast = lambda _, cells, *__, **___: seen.append(cells[0]) or {}
    method.losses(batch, Progress())
    pseudo = seen[0].pseudo.view(len(MIXED), 8, 8)
    assert (pseudo[..., 4:] == 0).all()
    assert (pseudo[..., :4] > 0).any()


def test_confident_background_of_the_seed_is_no_query() -> None:
    batch = make_batch(MIXED)
    batch["seed"][..., 32:] = 0
    seen = []
    for flag in (False, True):
        method = make_method("fbr_amn", query_seed=flag)
        method.fbr_contrast = lambda *_, eligible, **__: seen.append(eligible) or {}
        method.losses(batch, Progress())
    assert seen[0] is None
    (eligible,) = seen[1]
    assert not eligible[..., 4:].any()
    ground = (batch["seed"] == 0).float().unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(3, 4))
    assert eligible.shape[-1] == 8
    assert torch.equal(eligible[:, 0], ground < 0.5)


def test_maps_are_enlarged_to_what_their_cells_cover() -> None:
    maps = torch.zeros(1, 1, 1, 4)
    maps[..., 2] = 1.0
    wide = enlarge(maps, 16, (16, 50))[0, 0, 0]
    assert wide.shape == (50,)
    assert wide[39:41].min() > 0.9  # cell 2 covers 32..47 also where only 50 of 64 pixels are there
    torch.testing.assert_close(
        enlarge(maps, 4, (4, 16)), F.interpolate(maps, (4, 16), mode="bilinear")
    )


@pytest.mark.parametrize("copy", [(213, 320), (320, 480), (107, 160), (96, 160)])
def test_maps_of_a_copy_lie_where_its_cells_lie(copy: tuple[int, int]) -> None:
    """A ramp over the cells is the same ramp over the pixels, whatever reaches beyond the copy."""
    size = (213, 320)
    rows, columns = (torch.arange(-(-pixels // 16)) + 0.5 for pixels in copy)
    ramp = torch.stack([rows[:, None] + 0 * columns, columns + 0 * rows[:, None]])[None]
    found = resize_cells(ramp, 16, copy, size)[0]
    assert found.shape == (2, *size)
    inner = slice(40, -40)  # beyond the centres of the outermost cells it is constant
    for axis in (0, 1):
        expected = (torch.arange(size[axis]) + 0.5) * copy[axis] / size[axis] / 16
        got = found[axis].select(1 - axis, 0)
        torch.testing.assert_close(got[inner], expected[inner], atol=1e-4, rtol=0)


def test_cells_that_do_not_reach_the_end_are_resized_to_the_image() -> None:
    """Backbones of patches, such as ConvNeXt, drop what does not fill a cell."""
    maps = torch.rand(1, 3, 5, 7)
    found = resize_cells(maps, 16, (93, 117), (93, 117))
    assert torch.equal(found, F.interpolate(maps, (93, 117), mode="bilinear"))


@pytest.mark.parametrize("name", AMN)
def test_merging_keeps_probabilities_where_the_seed_is_background(name: str) -> None:
    method = make_method(name)
    logit = torch.randn(1, 6, 3, 5)
    pair = torch.cat([logit, logit.flip(-1)])
    label = torch.tensor([[0.0, 1, 0, 0, 1]])
    seed = torch.full((1, 24, 40), 255)
    seed[:, :8] = 0
    sizes = [(24, 40), (24, 40)]
    batch = {"size": (24, 40), "sizes": sizes, "label": label, "seed": seed}
    cam = method.merge([pair, pair], batch)["cam"]
    prob = F.interpolate(logit, (24, 40), mode="bilinear").softmax(dim=1)[0, 1:]
    for k in (1, 4):
        stretched = (prob[k] - prob[k].min()) / (prob[k].max() - prob[k].min())
        torch.testing.assert_close(cam[k, :8], prob[k, :8])
        torch.testing.assert_close(cam[k, 8:], stretched[8:], atol=1e-4, rtol=0)


def test_maps_of_cells_take_the_seed_at_the_centre_of_each() -> None:
    method, logit = make_method("amn"), torch.randn(1, 6, 3, 5)
    label, seed = torch.tensor([[0.0, 1, 0, 0, 1]]), torch.full((1, 24, 40), 255)
    batch = {"size": (6, 10), "sizes": [(24, 40)], "label": label}
    stretched = method.merge([logit], batch | {"seed": seed})["cam"]
    seed[:, 2::4, 2::4] = 0
    prob = method.merge([logit], batch | {"seed": seed})["cam"]
    all_background = method.merge([logit], batch | {"seed": torch.zeros_like(seed)})["cam"]
    assert torch.equal(prob, all_background)
    assert not torch.allclose(prob, stretched)


def test_the_bank_of_the_only_view_keeps_a_share_of_its_rows() -> None:
    for space in ("bg", "fg"):
        method = make_method("fbr_amn", nroi_space=space)
        method.limit_bank(4, Progress(steps=100))
        assert method.bank.limit == 25 * 4 * 8


def test_a_batch_of_one_class_has_no_other_foreground() -> None:
    method = make_method("fbr_amn")
    terms = first_steps(method, make_batch(ONE_CLASS))
    assert terms["nce_fg"] == 0
    assert all(term.isfinite() for term in terms.values())


def test_fbr_adds_to_amn_and_leaves_its_term_alone() -> None:
    batch = make_batch(MIXED)
    plain, fbr = make_method("amn"), make_method("fbr_amn")
    fbr.load_state_dict(plain.state_dict(), strict=False)
    plain.dropout.probability = fbr.dropout.probability = 0.0
    one, two = (method(batch, Progress()) for method in (plain, fbr))
    assert set(one) < set(two)
    torch.testing.assert_close(one["pixel"], two["pixel"])
    assert set(two) == {"pixel", "bg_seg", "bg_sim", "nce_fg", "nce_nroi"}


def test_the_projections_of_fbr_read_the_features_before_dropout() -> None:
    batch, seen = make_batch(MIXED), []
    for probability in (0.0, 0.9):
        method = make_method("fbr_amn").train()
        method.dropout.probability = probability
        method.project_foreground.register_forward_hook(lambda *args: seen.append(args[1][0]))
        method.project_background.register_forward_hook(lambda *args: seen.append(args[1][0]))
        method(batch, Progress())
    assert len(seen) == 4
    assert all(torch.equal(seen[0], one) for one in seen)


def test_the_recipe_is_adam_without_a_schedule() -> None:
    method = make_method("amn", pretrained=True)
    assert (method.recipe.optimizer, method.recipe.power) == ("adam", 0.0)
    assert dataclasses.replace(method.recipe, batch_size=16).steps_for(10_582) == math.floor(
        5 * 10_582 / 16 + 0.5
    )
    old = {id(p) for p in method.backbone.parameters()}
    for group in method.param_groups(5e-6, 1e-4):
        for parameter in group["params"]:
            assert group["lr"] == pytest.approx(5e-6 if id(parameter) in old else 1e-4)


@pytest.mark.parametrize("config", [{"smoothing": 1.0}, {"dropout": -0.1}])
def test_bad_settings_are_named(config: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        make_method("amn", **config)
