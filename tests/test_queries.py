"""Which cells are queries and which are negatives: against loops over images and classes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from method_cases import cosine, make_cells
from torch import Tensor

from network.contrast import prototypes
from network.contrast.cells import class_ids_of, l2_normalize
from network.contrast.queries import (
    Queries,
    draw_queries,
    foreground_negatives,
    hard_cells,
    query_embedding,
)
from tool.progress import Progress

STEP = Progress(step=2, steps=10, seed=4)


def test_hard_cells_equal_a_loop_over_images() -> None:
    torch.manual_seed(1)
    pseudo = torch.randint(0, 4, (3, 40))
    cells = make_cells(pseudo, num_classes=5, score=torch.rand(120))
    slots = torch.tensor([0, 2, 4])
    hard = hard_cells(cells, slots, quantile=0.6, floor=0.3)
    score = cells.score.view(3, 40)
    for row, slot in enumerate(slots.tolist()):
        for image in range(3):
            own = pseudo[image] == slot + 1
            counted = score[image][own & (score[image] > 0.3)]
            limit = torch.quantile(counted, 0.6) if len(counted) else 1.0
            expected = own & (score[image] <= limit)
            assert torch.equal(hard[row].view(3, 40)[image], expected)
    assert hard[:2].any(dim=1).all()
    assert not hard[2].any()


def test_cells_of_images_without_a_score_above_the_floor_are_hard() -> None:
    cells = make_cells([[1, 1, 0]], num_classes=1, score=torch.full((3,), 0.2))
    assert hard_cells(cells, torch.tensor([0]), quantile=0.6, floor=0.5).tolist() == [
        [True, True, False]
    ]


def test_queries_are_candidates_without_repetition_up_to_the_cap() -> None:
    cells = make_cells(torch.tensor([[0, 1, 2, 1] * 10] * 2), num_classes=3)
    slots = torch.tensor([0, 1, 2])
    candidates = cells.pseudo == slots[:, None] + 1
    queries = draw_queries(cells, candidates, slots, STEP, "q", cap=15)
    assert queries.chosen.sum(dim=1).tolist() == [15, 15, 0]
    for row in (0, 1):
        chosen = queries.cell[row][queries.chosen[row]]
        assert len(set(chosen.tolist())) == 15
        assert candidates[row, chosen].all()
    everyone = draw_queries(cells, candidates, slots, STEP, "q", cap=1000)
    assert everyone.chosen.sum(dim=1).tolist() == [40, 20, 0]
    later = dataclasses.replace(STEP, step=3)
    assert not torch.equal(
        draw_queries(cells, candidates, slots, later, "q", cap=15).cell, queries.cell
    )


def test_queries_come_first_and_so_do_the_classes_that_have_most_of_them() -> None:
    pseudo = torch.tensor([[1] * 5 + [2] * 90 + [3] * 70 + [0] * 35])
    cells, slots = make_cells(pseudo, num_classes=3), torch.tensor([0, 1, 2])
    candidates = cells.pseudo == slots[:, None] + 1
    queries = draw_queries(cells, candidates, slots, STEP, "q", cap=256)
    assert queries.class_ids.tolist() == [1, 2, 0]
    assert queries.chosen.sum(dim=1).tolist() == [90, 70, 5]
    for slot, cell, chosen in zip(queries.class_ids, queries.cell, queries.chosen, strict=True):
        assert (cells.pseudo[cell[chosen]] == slot + 1).all()
    inside = torch.zeros_like(queries.chosen)
    for first, last, slots_inside in queries.blocks():
        inside[:slots_inside, first:last] = True
    assert (inside | ~queries.chosen).all()
    assert not inside.all()


PROTOTYPES = torch.tensor([[0.0, 0], [1, 0], [0.9, 0.3], [-1, 0.2], [0, 1]])


def negative_classes(
    pseudo: list[list[int]], slots: list[int], count: int
) -> tuple[Tensor, Tensor]:
    """The pseudo classes (P, n) of the drawn negatives, and the cells' own (P, n)."""
    cells = make_cells(pseudo, num_classes=4, width=2, prototype=PROTOTYPES)
    cell, has_other = foreground_negatives(
        cells, torch.tensor(slots), STEP, "fg", count=count, temperature=0.5
    )
    return torch.where(has_other[:, None], cells.pseudo[cell], -1), cell


def test_foreground_negatives_follow_the_softmax_of_the_prototype_cosines() -> None:
    pseudo = [[1, 1, 2, 0, 0], [3, 3, 3, 3, 2]]  # class 4 has no cell
    drawn, _ = negative_classes(pseudo, [0, 1, 2, 3], 40_000)
    for row, own in enumerate((1, 2, 3)):
        others = [k for k in (1, 2, 3) if k != own]
        chance = [math.exp(cosine(PROTOTYPES[own], PROTOTYPES[k]) / 0.5) for k in others]
        for k, expected in zip(others, chance, strict=True):
            share = (drawn[row] == k).float().mean().item()
            assert share == pytest.approx(expected / sum(chance), abs=0.01)
        assert set(drawn[row].tolist()) == set(others)
    similar, different = ((drawn[0] == k).sum() for k in (2, 3))
    assert similar > different


def test_foreground_negatives_are_uniform_over_the_cells_of_a_class_in_all_images() -> None:
    _, cell = negative_classes([[1, 2, 2], [0, 2, 2]], [0, 1], 20_000)
    share = torch.bincount(cell[0], minlength=6) / 20_000
    assert share.tolist() == pytest.approx([0, 0.25, 0.25, 0, 0.25, 0.25], abs=0.02)


def test_one_class_alone_has_no_foreground_negatives() -> None:
    drawn, cell = negative_classes([[1, 1, 0, 0]], [0, 1], 16)
    assert (drawn[0] == -1).all()
    assert ((cell >= 0) & (cell < 4)).all()
    drawn, _ = negative_classes([[0, 0]], [0, 1, 2], 16)
    assert (drawn == -1).all()


def test_a_class_draws_the_same_whichever_classes_are_asked_for() -> None:
    pseudo = [[1, 1, 2, 0, 0], [3, 3, 3, 3, 2]]
    some, all_classes = (negative_classes(pseudo, slots, 64)[1] for slots in ([0, 1, 2], range(4)))
    assert torch.equal(some, all_classes[:3])


def test_query_embeddings_carry_the_gradient_to_the_chosen_cells_of_this_rank() -> None:
    embedding = torch.randn(2, 3, 2, 2, requires_grad=True)
    queries = Queries(
        torch.tensor([0]), torch.tensor([[5, 8, 15]]), torch.tensor([[True, True, False]])
    )
    progress = dataclasses.replace(STEP, rank=1, world_size=2)  # global cells 8..15
    query, is_local = query_embedding(embedding, queries, progress)
    assert is_local.tolist() == [[False, True, False]]
    assert torch.equal(query[0, 1], l2_normalize(embedding[0, :, 0, 0]))
    query[is_local][:, 0].sum().backward()
    assert embedding.grad[0, :, 0, 0].abs().min() > 0
    others = embedding.grad.clone()
    others[0, :, 0, 0] = 0
    assert others.abs().max() == 0


def test_intra_queries_are_a_random_half_and_the_hard_half_of_each_class() -> None:
    pseudo = torch.tensor([[1] * 20 + [2] * 10] * 2)
    cells = make_cells(pseudo, num_classes=2)
    weight = prototypes.intra_weights(cells, STEP, "intra")
    other = prototypes.intra_weights(cells, dataclasses.replace(STEP, step=9), "intra")
    assert not torch.equal(weight, other)
    for k, count in ((1, 40), (2, 20)):
        own = (cells.pseudo == k).nonzero()[:, 0]
        similarity = torch.tensor([cosine(cells.embedding[i], cells.prototype[k]) for i in own])
        ranked = own[similarity.argsort()]
        hard = ranked[count // 10 : 6 * count // 10]
        assert weight[own].sum() == count
        assert (weight[hard] >= 1).all()
        drawn = weight.clone()
        drawn[hard] -= 1
        assert set(drawn[own].tolist()) == {0.0, 1.0}
        assert drawn[own].sum() == count // 2


def test_padding_is_in_no_share_of_the_intra_queries() -> None:
    pseudo = torch.tensor([[0] * 30])
    whole = dataclasses.replace(make_cells(pseudo, num_classes=2), prototype=torch.randn(3, 6))
    padded = dataclasses.replace(whole, inside=torch.arange(30) < 20)
    weight = prototypes.intra_weights(padded, STEP, "intra")
    assert weight[20:].abs().max() == 0
    own = torch.arange(20)
    similarity = torch.tensor([cosine(whole.embedding[i], whole.prototype[0]) for i in own])
    hard = own[similarity.argsort()][2:12]
    assert (weight[hard] >= 1).all()
    assert weight.sum() == 20


def test_class_ids_of_are_the_classes_of_the_batch() -> None:
    label = torch.tensor([[1.0, 0, 0, 1], [1, 0, 0, 0]])
    assert class_ids_of(label).tolist() == [0, 3]
    assert class_ids_of(0 * label).tolist() == [0]
