"""What `eps`, `ppc` and `fbr` are beside the contract: signs, views, contrast, NROIs."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch
from method_cases import (
    METHODS,
    MIXED,
    ONE_CLASS,
    SIDE,
    first_steps,
    gradients,
    make_batch,
    make_method,
    second_step,
)
from torch import Tensor, nn

from network.contrast import fbr as terms_of_fbr
from network.contrast import prototypes, queries
from network.contrast.nroi import region_means
from network.maps import resize
from tool.progress import Progress

VIEW = ("image", "saliency", "label", "valid")  # what a view is made of
WITH_REFINED = [name for name in METHODS if "sal_refined" in make_method(name).weights()]


def test_the_headline_terms_train_the_foreground_projection_and_the_features() -> None:
    method, terms = second_step("fbr")
    for term in ("nce_fg", "nce_nroi", "nce_prototype", "nce_pseudo", "bg_sim"):
        found = gradients(terms[term], method)
        assert found["project_foreground.weight"].abs().max() > 0
        assert found["backbone.net.b7.conv_branch2b2.weight"].abs().max() > 0
    for term in ("nce_fg", "nce_nroi"):
        assert "project_background.weight" not in gradients(terms[term], method)
    for term in ("bg_seg", "bg_sim"):
        found = gradients(terms[term], method)
        assert found["project_background.weight"].abs().max() > 0
    for term in ("cls_refined", "sal_refined", "ecr"):
        trained = {n for n, g in gradients(terms[term], method).items() if g.abs().max() > 0}
        assert trained == {f"correlation.{part}.weight" for part in ("low", "mid", "embed")}


def test_fbr_contrasts_nothing_where_there_is_nothing_to_contrast() -> None:
    method = make_method("fbr")
    one_class = first_steps(method, make_batch(ONE_CLASS), 1)
    assert one_class["nce_fg"] == 0
    assert one_class["nce_nroi"] == 0  # the bank is empty in the first step
    assert gradients(one_class["nce_fg"] + one_class["nce_nroi"], method)
    later = first_steps(method, make_batch(ONE_CLASS), 1)
    assert later["nce_fg"] == 0
    assert later["nce_nroi"] > 0


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [("fbr", terms_of_fbr, "info_nce"), ("ppc", prototypes, "prototype_cross_entropy")],
)
def test_the_contrast_is_not_autocast(
    monkeypatch: pytest.MonkeyPatch, name: str, module, function: str
) -> None:
    seen, inner = [], getattr(module, function)

    def spy(*args: object, **settings: object) -> object:
        seen.append(torch.is_autocast_enabled("cpu"))
        return inner(*args, **settings)

    monkeypatch.setattr(module, function, spy)
    with torch.autocast("cpu", torch.bfloat16):
        make_method(name, pretrained=True)(make_batch(MIXED[:1]), Progress())
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(("space", "views"), [("bg", 2), ("fg", 1), ("f", 1)])
def test_the_bank_is_written_after_the_step(space: str, views: int) -> None:
    method, batch = make_method("fbr", nroi_space=space), make_batch(MIXED)
    method(batch, Progress(steps=100))
    assert int(method.bank.filled) == 0
    assert len(method._pending) == views
    method.after_step(Progress())
    assert 0 < int(method.bank.filled) <= views * 8 * len(MIXED)
    filled = int(method.bank.filled)
    method.after_step(Progress(step=1))
    assert int(method.bank.filled) == filled  # nothing was pending


def test_what_a_step_leaves_pending_does_not_outlive_the_next() -> None:
    method, batch = make_method("fbr"), make_batch(MIXED)
    for step in range(3):
        method(batch, Progress(step=step))
    assert len(method._pending) == 1
    method(batch, Progress(step=3))
    method(batch, Progress(step=3, micro=1))
    assert len(method._pending) == 2


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 25 * 4 * 8),
        ({"nroi_space": "bg"}, 25 * 4 * 8 * 2),
        ({"bank_share": 0.5}, 50 * 4 * 8),
        ({"bank_share": 0.0}, 50_000),
        ({"bank_size": 10}, 10),
    ],
)
def test_the_bank_keeps_a_share_of_the_rows_of_the_run(options: dict, rows: int) -> None:
    """Whatever ranks and micro-batches the batch is divided into."""
    for images, share in ((4, {}), (2, {"accumulate": 2}), (2, {"world_size": 2})):
        method = make_method("fbr", **options)
        method.limit_bank(images, Progress(steps=100, **share))
        assert method.bank.limit == rows


def test_a_bank_of_few_rows_forgets_the_first_steps() -> None:
    method, batch = make_method("fbr", bank_share=0.05), make_batch(MIXED)
    for step in range(8):
        progress = Progress(step=step, steps=8)
        method(batch, progress)
        method.after_step(progress)
    assert int(method.bank.written) > int(method.bank.filled)
    assert int(method.bank.filled) == method.bank.limit == int(0.05 * 8 * 4 * 8)
    assert method.bank.storage[method.bank.limit :].abs().max() == 0


def test_an_accelerator_computes_all_classes_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = make_batch(MIXED)
    some = first_steps(make_method("fbr"), batch)
    monkeypatch.setattr(terms_of_fbr, "class_ids_of", lambda label: torch.arange(label.shape[1]))
    monkeypatch.setattr(queries, "_most", lambda candidates: candidates.shape[1])
    whole = property(lambda drawn: lambda: [(0, drawn.chosen.shape[1], len(drawn.class_ids))])
    monkeypatch.setattr(queries.Queries, "blocks", whole)
    every = first_steps(make_method("fbr"), batch)
    for term in ("nce_fg", "nce_nroi"):
        assert every[term].item() == pytest.approx(some[term].item(), rel=1e-5)


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(make_method(n), "saliency_loss")])
def test_sal_raises_a_present_class_on_salient_cells(name: str) -> None:
    method = make_method(name)
    score = torch.zeros(1, 6, 8, 8, requires_grad=True)
    label, saliency = torch.tensor([[0.0, 1, 0, 0, 0]]), torch.zeros(1, 1, 64, 64)
    saliency[..., :32, :] = 1.0
    method.saliency_loss(score.softmax(dim=1), label, saliency).backward()
    salient, rest = score.grad[0, :, :4], score.grad[0, :, 4:]
    assert (salient[2] < 0).all()  # more of the present class on salient cells: a lower loss
    assert (salient[0] > 0).all()
    assert (rest[2] > 0).all()


@pytest.mark.parametrize("name", WITH_REFINED)
@pytest.mark.parametrize("pretrained", [False, True])
def test_a_centred_correlation_keeps_more_of_a_cam_and_learns(name: str, pretrained: bool) -> None:
    batch, kept = make_batch([[0, 1, 0, 0, 0], [1, 0, 0, 1, 0]]), []
    for centred in (False, True):
        method = make_method(name, pretrained=pretrained, centred=centred).train()
        terms = method.losses(batch, Progress())
        kept.append(method.metrics()["refined_contrast"].item())
        terms["sal_refined"].backward()
        assert all(p.grad.abs().max() > 0 for p in method.correlation.parameters())
    assert 0 < kept[0] < kept[1]


@pytest.mark.parametrize("name", WITH_REFINED)
@pytest.mark.parametrize("level", [0.2, 0.6])
def test_sal_refined_raises_a_present_class_on_salient_cells(name: str, level: float) -> None:
    method = make_method(name)
    batch = make_batch([[0, 1, 0, 0, 0]])
    batch["saliency"] = torch.zeros(1, 1, 64, 64)
    batch["saliency"][..., :32, :] = 1.0
    refined = torch.zeros(1, 6, 8, 8)
    refined[:, 2, :4] = level
    refined[:, 0] = 1 - refined[:, 2]
    refined.requires_grad_(True)
    view = method.view(*(batch[key] for key in VIEW))
    view = dataclasses.replace(view, refined_cam=refined)
    loss = method.view_losses(view)["sal_refined"]
    gradient = torch.autograd.grad(loss, refined)[0][0]
    assert (gradient[2, :4] < 0).all()
    assert (gradient[0, :4] > 0).all()
    raised = refined.detach().clone()
    raised[:, 2, :4] += 0.05
    after = method.view_losses(dataclasses.replace(view, refined_cam=raised))["sal_refined"]
    assert after < loss


@pytest.mark.parametrize("name", WITH_REFINED)
def test_sal_refined_divides_the_refined_scores_by_their_sum(name: str) -> None:
    method, batch = make_method(name), make_batch([[0, 1, 0, 0, 0]])
    batch["saliency"] = torch.zeros(1, 1, 64, 64)
    batch["saliency"][..., :32, :] = 1.0
    view = method.view(*(batch[key] for key in VIEW))
    refined = torch.zeros(1, 6, 8, 8)
    refined[:, 2, :4], refined[:, 0, 4:] = 0.3, 0.2
    perfect = method.view_losses(dataclasses.replace(view, refined_cam=refined))
    assert perfect["sal_refined"].item() == pytest.approx(0, abs=1e-6)
    wrong = method.view_losses(dataclasses.replace(view, refined_cam=refined.flip(2)))
    assert wrong["sal_refined"] > 0.4


@pytest.mark.parametrize("name", WITH_REFINED)
@pytest.mark.parametrize("pretrained", [False, True])
def test_host_terms_are_of_both_views_or_of_the_first(name: str, pretrained: bool) -> None:
    """`er` and `ecr` always compare the two."""
    batch, found = make_batch([[0, 1, 0, 0, 0], [1, 0, 0, 0, 0]], side=96), {}
    for kind in ("both", "first"):
        method = make_method(name, pretrained=pretrained, host_views=kind).eval()
        views = method.views(batch)
        found[kind] = method.host_losses(views)
        own = [method.view_losses(view) for view in views]
    for term, value in own[0].items():
        assert torch.equal(found["first"][term], value), term
        torch.testing.assert_close(found["both"][term], (value + own[1][term]) / 2)
        assert not torch.equal(found["both"][term], value), term
    for term in ("er", "ecr"):
        assert torch.equal(found["first"][term], found["both"][term])
    assert torch.autograd.grad(found["first"]["sal"], method.classifier.weight)[0].abs().sum() > 0


def test_the_second_view_is_two_sevenths_of_the_cells_and_at_least_eight() -> None:
    method = make_method("ppc", pretrained=True).eval()
    for side, cells in ((64, 8), (448, 16)):
        with torch.no_grad():
            first, second = method.views(make_batch([[1, 0, 0, 0, 0]], side=side))
        assert first.score.shape[-2:] == (side // 8, side // 8)
        assert second.score.shape[-2:] == (cells, cells)
        assert second.saliency.shape[-2:] == (8 * cells, 8 * cells)


def test_fbr_pools_by_tap_and_the_hosts_plainly() -> None:
    batch = make_batch(MIXED)
    cases: list[tuple[str, dict[str, str], bool]] = [
        ("ppc", {}, True),
        ("fbr", {}, False),
        ("fbr", {"pooling": "average"}, True),
    ]
    for name, options, plainly in cases:
        method = make_method(name, pretrained=True, **options).eval()
        with torch.no_grad():
            view = method.view(*(batch[key] for key in VIEW))
            plain = view.score.mean(dim=(2, 3))
            equal = torch.allclose(method.image_logit(view), plain, atol=1e-6)
            same = method.classify(batch) - method.image_logit(view)[:, 1:].sigmoid()
        assert equal == plainly
        assert same.abs().max() < 1e-6


def test_nrois_are_centroids_of_the_background_cells_of_their_image() -> None:
    method, batch = make_method("fbr", num_clusters=64, nroi_space="bg"), make_batch(MIXED)
    batch["valid"][0, :, SIDE // 2 :] = False  # the lower half of the first image is padding
    seen, inner = [], method.fbr_contrast

    def spy(embeddings, cells, label, background, *args: object, **more: object) -> object:
        result = inner(embeddings, cells, label, background, *args, **more)
        seen.extend(zip(background, cells, method._pending, strict=True))
        return result

    method.fbr_contrast = spy
    method(batch, Progress())
    assert len(seen) == 2
    for output, cells, (centroid, valid) in seen:
        background = resize(output.detach().relu(), (8, 8))
        assert output.min() < 0  # phi_bg's ReLU is part of it
        member = (cells.pseudo == 0).view(len(MIXED), 8, 8)
        member[0, 4:] = False
        member = member.flatten(1)
        assert torch.equal(valid.sum(dim=1), member.sum(dim=1))  # 64 cells: the cells themselves
        for image in range(len(MIXED)):
            own = background[image].flatten(1).T[member[image]]
            given = centroid[image][valid[image]]
            assert torch.equal(own.sum(dim=1).sort().values, given.sum(dim=1).sort().values)


def test_region_means_are_those_of_each_cluster_in_the_other_space() -> None:
    """Two clusters that only Z_bg tells apart; a cell that is no member counts nowhere."""
    feature = torch.tensor([[0.0, 0], [0, 0.1], [5, 5], [5, 5.1], [0, 0]])[None]
    member = torch.tensor([[True, True, True, True, False]])
    embedding = torch.arange(10.0).view(1, 5, 2)
    centroid, found = torch.tensor([[[0, 0.05], [5, 5.05], [0, 0]]]), torch.tensor([[1, 1, 0]]) > 0
    mean, has_cell = region_means(feature, member, centroid, found, embedding)
    assert has_cell.tolist() == [[True, True, False]]
    torch.testing.assert_close(mean[0, :2], torch.tensor([[1.0, 2], [5, 6]]))


@pytest.mark.parametrize("space", ["fg", "f"])
def test_nrois_in_the_space_of_the_queries_are_means_of_their_image_s_cells(space: str) -> None:
    """Of the first view alone."""
    side = 96  # 12 cells per side, of which the contrast grid has 8
    method, batch = make_method("fbr", nroi_space=space), make_batch(MIXED, side=side)
    batch["valid"][0, :, side // 2 :] = False
    embeddings: list[Tensor] = []
    method.project_foreground.register_forward_hook(lambda *a: embeddings.append(a[2].relu()))
    with mock.patch.object(terms_of_fbr, "image_nrois", wraps=terms_of_fbr.image_nrois) as spy:
        method(batch, Progress())
    ((region,),) = (call.args[0] for call in spy.call_args_list)
    ((mean, found),) = method._pending
    assert region.background.shape[1:] == region.embedding.shape[-2:] == (12, 12)
    assert torch.equal(region.embedding, embeddings[0])
    clustered = {"f": method.backbone.taps["high"].channels, "fg": method.config.width}
    assert region.feature.shape[1] == clustered[space]
    assert region.background.any()
    assert not region.background[0, region.background.shape[1] // 2 :].any(), "padding"
    for image in range(len(MIXED)):
        own = region.embedding[image].flatten(1).T[region.background[image].flatten()]
        given = mean[image][found[image]]
        assert (len(own) > 0) == (len(given) > 0)
        if len(own):  # means of the cells
            assert given.min() >= own.min() - 1e-5
            assert given.max() <= own.max() + 1e-5


@pytest.mark.parametrize("name", ["ppc", "fbr"])
def test_padding_takes_no_part_in_the_contrast(name: str) -> None:
    """Neither its gradient nor its content: whatever is drawn there changes nothing."""
    batch = make_batch(MIXED)
    batch["valid"][:, :, SIDE // 2 :] = False
    method, results = make_method(name), []
    with torch.no_grad():
        views = [
            dataclasses.replace(view, refined_cam=view.refined_cam + 0.05)
            for view in method.views(batch)
        ]
    for noise in (0.0, 5.0):
        changed = []
        for view in views:
            lower = torch.zeros_like(view.embedding)
            lower[..., view.embedding.shape[2] // 2 :, :] = noise
            embedding = (view.embedding + lower * torch.rand_like(lower)).requires_grad_()
            changed.append(dataclasses.replace(view, embedding=embedding))
        progress = Progress(seed=3)
        if name == "ppc":
            terms = method.contrast_losses(tuple(changed), batch["valid"], progress)
        else:
            background = [method.project_background(view.high) for view in changed]
            terms = method.contrast(tuple(changed), background, batch["valid"], progress)
        sum(terms.values()).backward()
        for view in changed:
            half = view.embedding.shape[2] // 2
            assert view.embedding.grad[..., :half, :].abs().max() > 0
            assert view.embedding.grad[..., half:, :].abs().max() == 0
        results.append({term: value.item() for term, value in terms.items()})
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def spied_queries(method: nn.Module, batch: dict) -> list[tuple[Tensor, Tensor]]:
    """The queries and the foreground negatives of each view, as indices of cells."""
    found: list[tuple[Tensor, Tensor]] = []
    with (
        mock.patch.object(terms_of_fbr, "query_embedding", wraps=queries.query_embedding) as query,
        mock.patch.object(terms_of_fbr, "take", wraps=terms_of_fbr.take) as taken,
    ):
        method(batch, Progress())
    for call, other in zip(query.call_args_list, taken.call_args_list, strict=True):
        chosen = call.args[1]
        found.append((chosen.cell[chosen.chosen], other.args[1]))
    return found


def test_only_salient_cells_are_queries_and_negatives() -> None:
    batch = make_batch(MIXED)
    batch["saliency"] = torch.zeros_like(batch["saliency"])
    batch["saliency"][..., : SIDE // 2] = 1.0
    batch["valid"][:, :, : SIDE // 4] = False
    left, padding = torch.zeros(2, len(MIXED), 8, 8, dtype=torch.bool)
    padding[:, :2] = True
    left[:, 2:, :4] = True
    outside = 0
    for threshold in (0.0, 0.5):
        method = make_method("fbr", query_saliency=threshold)
        views = spied_queries(method, batch)
        assert len(views) == 2
        for cells in (index for view in views for index in view):
            wrong = int((~left.flatten()[cells]).sum())
            outside += wrong if threshold == 0 else 0
            assert threshold == 0 or wrong == 0
        assert all(len(query) for query, _ in views)
        for view in views:
            for cells in view:
                assert not padding.flatten()[cells].any(), "padding never is"
    assert outside > 0, "without the rule there are others"


def test_pseudo_labels_come_from_the_chosen_maps() -> None:
    batch, changed = make_batch(MIXED), {}
    for source in ("refined", "cam"):
        method = make_method("fbr", pretrained=True, pseudo_source=source)
        before = method(batch, Progress())
        for part in method.correlation.parameters():
            nn.init.normal_(part)
        after = method(batch, Progress())
        changed[source] = {name for name in before if before[name] != after[name]}
    host = {"cls_refined", "sal_refined", "ecr"}
    assert changed["refined"] >= host | {"nce_prototype", "nce_pseudo", "nce_fg"}
    assert changed["cam"] == host, "the contrast does not see the correlation"


def test_pseudo_labels_of_the_cam_are_where_it_is() -> None:
    method, batch = make_method("fbr", pseudo_source="cam"), make_batch(MIXED)
    view = method.view(*(batch[key] for key in VIEW))
    score = torch.zeros_like(view.score)
    score[:, 1:, :, : score.shape[3] // 2] = 9.0
    score[:, 0, :, score.shape[3] // 2 :] = 9.0
    view = dataclasses.replace(view, score=score)
    background = method.project_background(view.high)
    member = method.first_region_view(view, background, batch["valid"]).background
    half = member.shape[2] // 2
    some = batch["label"].sum(dim=1) > 0
    assert not member[some, :, :half].any()
    assert member[:, :, half:].all(), "what the CAM leaves is background"


def test_the_background_segmentation_learns_nothing_from_padding() -> None:
    method, batch = make_method("fbr"), make_batch(MIXED)
    batch["valid"][0, :, SIDE // 2 :] = False
    logits = []
    layer = method.segment_background.classifier
    layer.register_forward_hook(lambda *args: args[2].retain_grad() or logits.append(args[2]))
    method(batch, Progress())["bg_seg"].backward()
    assert len(logits) == 2
    for logit in logits:
        half = logit.shape[2] // 2
        assert (logit.grad[0, :, half:] == 0).all()
        assert (logit.grad[0, :, :half] != 0).all()
        assert (logit.grad[1:] != 0).all()
