"""Pixel contrast against references in loops: labels, prototypes, queries, negatives, InfoNCE."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from method_cases import cosine, make_cells
from torch import Tensor

from network.contrast import prototypes
from network.contrast.cells import Cells, class_prototypes, l2_normalize, pseudo_labels, view_cells
from network.contrast.info_nce import class_balanced_mean, class_mean, info_nce, mean_query
from network.contrast.queries import Queries
from network.losses import full_precision
from tool.progress import Progress

STEP = Progress(step=2, steps=10, seed=4)


def test_pseudo_labels_are_the_argmax_of_the_softmax_over_present_classes_and_background() -> None:
    torch.manual_seed(0)
    score, label = torch.rand(3, 4, 5, 5), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1], [0] * 4])
    pseudo = pseudo_labels(score, label, bg_score=0.6)
    for image in range(3):
        present = label[image].nonzero()[:, 0]
        channels = torch.cat([torch.full((1, 5, 5), 0.6), score[image, present]])
        values = torch.cat([torch.zeros(1, dtype=torch.long), present + 1])
        assert torch.equal(pseudo[image], values[channels.softmax(dim=0).argmax(dim=0)])
    assert set(pseudo[2].unique().tolist()) == {0}


def test_an_all_zero_map_and_a_tie_with_the_background_are_background() -> None:
    score = torch.tensor([0.0, 0.1, 0.11]).view(1, 1, 1, 3)
    assert pseudo_labels(score, torch.ones(1, 1), bg_score=0.1).tolist() == [[[0, 0, 1]]]


def test_a_prototype_averages_the_top_cells_of_the_images_that_have_the_class() -> None:
    embedding = torch.arange(8.0).view(2, 1, 2, 2) + 1  # image 0: 1..4, image 1: 5..8
    score = torch.tensor([[[[0.2, 0.9], [0.5, 0.1]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    label = torch.tensor([[1.0], [0.0]])
    prototype, valid = class_prototypes(embedding, score, label, top=2)
    assert prototype.flatten().tolist() == pytest.approx([(0.9 * 2 + 0.5 * 3) / 1.4])
    assert valid.tolist() == [True]
    both, _ = class_prototypes(embedding, score, torch.ones(2, 1), top=4)
    assert both.item() == pytest.approx(6.5)


def test_a_class_without_image_or_without_score_has_no_prototype() -> None:
    score = torch.stack([torch.rand(2, 4, 4), torch.zeros(2, 4, 4)], dim=1)
    prototype, valid = class_prototypes(
        torch.rand(2, 3, 4, 4), score, torch.tensor([[0.0, 1.0], [0.0, 1.0]]), top=3
    )
    assert valid.tolist() == [False, False]
    assert prototype.abs().max() == 0


@pytest.mark.parametrize("background", [False, True])
def test_cells_of_a_view(background: bool) -> None:
    torch.manual_seed(0)
    embedding = torch.rand(2, 5, 8, 8, requires_grad=True)
    refined, label = torch.rand(2, 3, 8, 8), torch.tensor([[1.0, 0, 0], [1, 0, 1]])
    inside = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    cells = view_cells(embedding, refined, label, inside, bg_score=0.3, background=background)
    assert cells.valid.tolist() == [background, True, False, True]
    assert not cells.embedding.requires_grad
    for index in range(128):
        image, cell = divmod(index, 64)
        y, x = divmod(cell, 8)
        assert torch.equal(cells.embedding[index], embedding[image, :, y, x])
        value = int(cells.pseudo[index])
        assert value in (0, 1) if image == 0 else value in (0, 1, 3)
        own = refined[image, value - 1, y, x] if value else 0
        assert float(cells.score[index]) == float(own)
    top = (refined[:, 0].flatten()).topk(64 // 16)  # both images have class 1
    expected = (cells.embedding[top.indices] * top.values[:, None]).sum(0) / top.values.sum()
    assert torch.allclose(cells.prototype[1], expected, atol=1e-6)
    assert (cells.prototype[0].abs().max() > 0) == background


@pytest.mark.parametrize("background", [False, True])
def test_padding_gives_no_prototype_and_has_no_pseudo_label(background: bool) -> None:
    refined, label = torch.full((1, 2, 4, 4), 0.9), torch.tensor([[1.0, 0]])
    refined[..., :2] = 0.5
    inside = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    inside[..., 2:] = False  # where the scores are highest, and 1 - score lowest
    refined[..., 3] = 0.0
    embedding = torch.cat([inside.float(), 1 - inside.float()], dim=1)
    cells = view_cells(embedding, refined, label, inside, bg_score=0.3, background=background)
    assert torch.equal(cells.inside.view(4, 4), inside[0, 0])
    assert torch.equal(cells.pseudo.view(4, 4), inside[0, 0].long())
    for row in cells.prototype[cells.valid]:
        assert row.tolist() == [1.0, 0.0]


def contrast_of(
    query: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    temperature: float,
    blocks: list[tuple[int, int, int]] | None = None,
) -> Tensor:
    """Of any vectors, each made a unit one."""
    query, positive, negative = (l2_normalize(one) for one in (query, positive, negative))
    (loss,) = info_nce(query, positive, [negative], temperature=temperature, blocks=blocks)
    return loss


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.05])
def test_info_nce_equals_its_definition_in_loops(temperature: float) -> None:
    torch.manual_seed(2)
    query, positive, negative = torch.randn(2, 3, 4), torch.randn(2, 4), torch.randn(2, 5, 4)
    loss = contrast_of(query, positive, negative, temperature=temperature)
    for p in range(2):
        for m in range(3):
            near = math.exp(cosine(query[p, m], positive[p]) / temperature)
            cosines = [cosine(query[p, m], negative[p, r]) for r in range(5)]
            far = sum(math.exp(value / temperature) for value in cosines)
            assert float(loss[p, m]) == pytest.approx(-math.log(near / (near + far)), rel=1e-4)


def test_info_nce_trains_the_queries_only_and_pulls_them_to_the_positive() -> None:
    torch.manual_seed(3)
    query, positive, negative = (
        torch.randn(shape, requires_grad=True) for shape in ((1, 2, 4), (1, 4), (1, 6, 4))
    )
    loss = contrast_of(query, positive, negative, temperature=0.5)
    loss.sum().backward()
    assert positive.grad is None
    assert negative.grad is None
    moved = query.detach() - 0.1 * query.grad
    assert contrast_of(moved, positive, negative, temperature=0.5).sum() < loss.sum()


def test_the_gradient_of_info_nce_is_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(4)
    query, positive, negative, second = (
        l2_normalize(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((2, 3, 4), (2, 4), (2, 5, 4), (2, 6, 4))
    )

    def loss(query: Tensor) -> tuple[Tensor, ...]:
        return info_nce(query, positive, [negative, second], temperature=0.1)

    assert torch.autograd.gradcheck(loss, query.requires_grad_())


def test_info_nce_is_finite_at_the_lowest_temperature() -> None:
    torch.manual_seed(5)
    query = torch.randn(1, 4, 4, requires_grad=True)
    same = l2_normalize(query.detach())
    for negative in (same, -same):
        loss = contrast_of(query, same[:, 0], negative, temperature=0.03)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert query.grad.isfinite().all()


def test_only_the_rows_of_the_blocks_are_computed_and_they_are_the_same() -> None:
    torch.manual_seed(6)
    query, positive = torch.randn(3, 150, 4, requires_grad=True), torch.randn(3, 4)
    negative = torch.randn(3, 5, 4)
    queries = queries_of([150, 70, 0], cap=150)
    blocks = queries.blocks()
    assert sum((last - first) * slots for first, last, slots in blocks) < 150 + 2 * 150
    losses, gradients = [], []
    for wanted in (blocks, None):
        loss = contrast_of(query, positive, negative, temperature=0.5, blocks=wanted)
        losses.append(loss[queries.chosen])
        gradients.append(torch.autograd.grad(losses[-1].sum(), query)[0])
    assert torch.allclose(*losses)
    assert torch.allclose(*gradients, atol=1e-7)
    assert gradients[0][queries.chosen].abs().amin(dim=0).min() > 0


def test_the_mean_query_gives_the_mean_cosine() -> None:
    torch.manual_seed(7)
    query, other = l2_normalize(torch.randn(3, 4, 5)), l2_normalize(torch.randn(3, 6, 5))
    queries = queries_of([4, 1, 0], cap=4)
    usable = torch.ones(3, dtype=torch.bool)
    direct = class_balanced_mean(
        (query @ other.transpose(1, 2)).mean(dim=2), queries.chosen, queries, usable, STEP
    )
    mean = mean_query(query, queries.chosen, queries)
    ours = class_mean((mean * other.mean(dim=1)).sum(dim=1), queries, usable, STEP)
    assert ours.item() == pytest.approx(direct.item())


def test_zero_embeddings_give_finite_losses_and_gradients() -> None:
    query = torch.zeros(1, 3, 4, requires_grad=True)
    loss = contrast_of(query, torch.zeros(1, 4), torch.zeros(1, 5, 4), temperature=0.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert query.grad.isfinite().all()


def queries_of(counts: list[int], *, cap: int) -> Queries:
    chosen = torch.arange(cap) < torch.tensor(counts)[:, None]
    cell = torch.arange(len(counts) * cap).view(-1, cap)
    return Queries(torch.arange(len(counts)), cell, chosen)


def test_the_mean_is_over_the_queries_of_a_class_then_over_usable_classes() -> None:
    value = torch.tensor([[1.0, 2, 9], [5, 9, 9], [9, 9, 9], [7, 7, 7]], requires_grad=True)
    queries = queries_of([2, 1, 0, 3], cap=3)
    usable = torch.tensor([True, True, True, False])
    mean = class_balanced_mean(value, queries.chosen, queries, usable, STEP)
    assert mean.item() == pytest.approx((1.5 + 5) / 2)
    nothing = class_balanced_mean(value, queries.chosen, queries, usable & False, STEP)
    assert nothing.item() == 0
    nothing.backward()
    assert value.grad.abs().max() == 0


def test_the_mean_over_ranks_of_the_shares_is_the_global_mean() -> None:
    value = torch.tensor([[1.0, 2, 3], [5, 9, 9]])
    queries = queries_of([3, 1], cap=3)
    usable = torch.ones(2, dtype=torch.bool)
    here = torch.tensor([[True, False, False], [False, False, False]])
    two = dataclasses.replace(STEP, world_size=2)
    shares = [
        class_balanced_mean(value, part & queries.chosen, queries, usable, two)
        for part in (here, ~here)
    ]
    assert (sum(shares) / 2).item() == pytest.approx((2 + 5) / 2)


def cross_entropy_reference(
    vector: Tensor, cells: Cells, positive: int, others: list[int]
) -> float:
    near = math.exp(cosine(vector, cells.prototype[positive]) / 0.1)
    far = [math.exp(cosine(vector, cells.prototype[k]) / 0.1) for k in others]
    return -math.log(near / (near + sum(far)))


def test_prototype_cross_entropy_equals_a_loop_over_cells() -> None:
    torch.manual_seed(4)
    embedding = torch.randn(1, 6, 2, 3, requires_grad=True)
    cells = make_cells([[1, 2, 4, 0, 1, 2]], num_classes=4)
    positive = torch.tensor([1, 2, 4, -1, 3, 0])  # class 3 and the background have no prototype
    loss, has = prototypes.prototype_cross_entropy(embedding, cells, positive, temperature=0.1)
    assert has.tolist() == [True, True, True, False, False, False]
    for index, own in enumerate((1, 2, 4)):
        vector = embedding[0].flatten(1)[:, index]
        others = [k for k in (1, 2, 4) if k != own]
        expected = cross_entropy_reference(vector, cells, own, others)
        assert loss[index].item() == pytest.approx(expected, rel=1e-4)
    assert loss[3:].abs().max() == 0
    loss.sum().backward()
    moved = embedding.grad.abs().sum(dim=1).flatten() > 0
    assert torch.equal(moved, has)


def test_negatives_are_the_prototypes_of_ranks_by_the_similarity_of_the_cell() -> None:
    """Its positive does not count, so with rank 1 to 2 of the others two classes remain."""
    cells = make_cells([[1, 2, 3, 4, 5]], num_classes=5)
    embedding = torch.randn(1, 6, 1, 1, generator=torch.Generator().manual_seed(1))
    loss, _ = prototypes.prototype_cross_entropy(
        embedding, cells, torch.tensor([1]), temperature=0.1, ranks=(1, 2)
    )
    others = sorted(range(2, 6), key=lambda k: -cosine(embedding.flatten(), cells.prototype[k]))
    expected = cross_entropy_reference(embedding.flatten(), cells, 1, others[:2])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_without_a_prototype_the_cross_entropy_is_zero_and_attached() -> None:
    cells = make_cells([[0, 0]], num_classes=2)
    embedding = torch.randn(1, 6, 1, 2, requires_grad=True)
    loss, has = prototypes.prototype_cross_entropy(
        embedding, cells, torch.tensor([0, 1]), temperature=0.1
    )
    loss.sum().backward()
    assert not has.any()
    assert embedding.grad.abs().max() == 0


def test_negatives_of_ranks_are_counted_by_the_similarity_of_each_cell() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.5, 0.3, 0.7], [0.1, 0.2, 0.3, 0.4, 0.5]])
    others = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
    chosen = prototypes.of_ranks(similarity, others, 2, 3)
    assert [row.nonzero()[:, 0].tolist() for row in chosen] == [[2, 3], [1, 2]]
    assert torch.equal(prototypes.of_ranks(similarity, others, 2, 5), others), "fewer than five"


def test_weights_of_cells_become_equal_for_classes() -> None:
    weight = torch.tensor([1.0, 2, 1, 0, 0, 5])
    balanced = prototypes.class_balanced(weight, torch.tensor([0, 1, 1, 1, 2, 4]), 4)
    torch.testing.assert_close(balanced, torch.tensor([1 / 3, 2 / 9, 1 / 9, 0, 0, 1 / 3]))
    assert prototypes.class_balanced(0 * weight, torch.zeros(6).long(), 4).tolist() == [0] * 6


def test_contrast_stays_in_full_precision_under_autocast() -> None:
    one = torch.rand(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (one @ one).dtype == torch.bfloat16
        with full_precision(one):
            assert (one @ one).dtype == torch.float32
