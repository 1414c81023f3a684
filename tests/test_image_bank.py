"""The image bank of SFC: what it stores, what it draws, resumed, in micro-batches and in ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from method_cases import MIXED, make_batch, make_method
from torch import Tensor

from network.calibration.bank import Crops, ImageBank, interleaved, newest
from network.methods import Method
from tool.progress import Progress

SIDE = 16
CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def make_bank(num_classes: int = 5) -> ImageBank:
    return ImageBank(num_classes, SIDE, mean=MEAN, std=STD)


def eight_bit_batch(label: list[list[int]], side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Images of one grey value each (10, 20, ...), whose last columns are padding."""
    grey = torch.arange(1, len(label) + 1).view(-1, 1, 1, 1).expand(-1, 3, side, side) * 10.0
    image = (grey / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    valid = torch.ones(len(label), 1, side, side, dtype=torch.bool)
    valid[..., side - 3 :] = False
    return image * valid, valid, torch.tensor(label).float()


def fill(bank: ImageBank, label: list[list[int]], side: int = SIDE) -> Crops:
    crops = bank.store(*eight_bit_batch(label, side))
    bank.write(crops)
    return crops


def greys(crops: Crops) -> list[int]:
    return crops.image[:, 0, 0, 0].tolist()


def none(bank: ImageBank) -> Crops:
    """One crop without a class."""
    return bank.store(*eight_bit_batch([[0] * 5]))


@pytest.mark.parametrize("side", [SIDE, SIDE - 5])
def test_a_crop_comes_back_as_it_was(side: int) -> None:
    bank, batch = make_bank(), eight_bit_batch([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], side)
    found = bank.restore(bank.store(*batch), (side, side))
    assert torch.allclose(found[0], batch[0], atol=1e-6)
    assert (found[0][..., side - 3 :] == 0).all(), "padding is exactly 0"
    assert torch.equal(found[1], batch[1])
    assert torch.equal(found[2], batch[2])
    assert bank.image.dtype == torch.uint8


def test_a_crop_larger_than_a_slot_is_refused() -> None:
    with pytest.raises(ValueError, match="--bank-side 17"):
        make_bank().store(*eight_bit_batch([[1, 0, 0, 0, 0]], SIDE + 1))


def test_an_image_fills_the_slots_of_its_classes_and_the_last_one_wins() -> None:
    bank = make_bank()
    fill(bank, [[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    assert bank.image[:, 0, 0, 0].tolist() == [10, 20, 0, 20, 0]
    assert bank.written.tolist() == [1, 1, 0, 1, 0]
    assert bank.label[3].tolist() == [False, True, False, True, False], "the whole label"
    fill(bank, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    assert bank.image[:, 0, 0, 0].tolist() == [40, 20, 0, 20, 0]
    assert bank.written.tolist() == [2, 1, 0, 1, 0]
    assert newest(torch.tensor([[True, False], [True, False]])).tolist() == [1, -1]


def test_empty_slots_are_never_drawn() -> None:
    bank = make_bank()
    fill(bank, [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    uniform = torch.arange(1000) / 1000
    drawn = bank.draw(none(bank), uniform)
    assert greys(drawn)[:500] == [10] * 500
    assert greys(drawn)[500:] == [20] * 500
    assert drawn.label.any(dim=1).all()
    last = torch.tensor([1 - 2**-24])  # the largest number that is drawn
    assert greys(bank.draw(none(bank), last)) == [20]


def test_the_images_of_the_step_are_drawn_too() -> None:
    bank = make_bank()
    fill(bank, [[0, 1, 0, 0, 0]])
    crops = bank.store(*eight_bit_batch([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]))
    assert greys(bank.draw(crops, torch.tensor([0.0, 0.49, 0.5, 0.99]))) == [20, 20, 30, 30]
    assert bank.written.tolist() == [0, 1, 0, 0, 0], "a draw writes nothing"


def test_without_any_class_the_batch_itself_is_drawn() -> None:
    bank = make_bank()
    crops = bank.store(*eight_bit_batch([[0] * 5, [0] * 5]))
    drawn = bank.draw(crops, torch.tensor([0.0, 0.3, 0.7]))
    assert greys(drawn) == [10, 10, 20]
    assert not drawn.label.any()


@pytest.mark.parametrize(("images", "draws"), [(16, 4), (8, 2), (6, 4), (4, 8), (12, 0)])
def test_the_order_of_a_batch_does_not_depend_on_the_ranks(images: int, draws: int) -> None:
    alone = interleaved(images, draws, CPU).tolist()
    assert sorted(alone) == list(range(images + draws))
    assert [i for i in alone if i < images] == list(range(images))
    half, few = images // 2, draws // 2
    shared = [
        i + rank * half if i < half else images + i - half + rank * few
        for rank in (0, 1)
        for i in interleaved(half, few, CPU).tolist()
    ]
    assert shared == alone


def one_step(method: Method, parts: list[dict], progress: Progress) -> list[dict]:
    batches = [
        method.before_losses(part, dataclasses.replace(progress, micro=micro))
        for micro, part in enumerate(parts)
    ]
    method.after_step(progress)
    return batches


def half(batch: dict, number: int) -> dict:
    return {key: value[2 * number : 2 * number + 2] for key, value in batch.items()}


def test_micro_batches_fill_the_bank_as_a_whole_batch_does() -> None:
    batch = make_batch(MIXED)
    whole, parted = make_method("sfc"), make_method("sfc")
    one_step(whole, [batch], Progress())
    parts = one_step(parted, [half(batch, i) for i in (0, 1)], Progress(accumulate=2))
    assert [len(part["image"]) for part in parts] == [4, 4]
    for name, value in whole.bank.state_dict().items():
        assert torch.equal(parted.bank.state_dict()[name], value), name


def test_the_batch_grows_by_the_draws() -> None:
    method, batch = make_method("sfc"), make_batch(MIXED)
    (grown,) = one_step(method, [batch], Progress())
    assert {key: len(value) for key, value in grown.items()} == dict.fromkeys(
        ("image_id", "image", "valid", "label"), 8
    )
    assert grown["image_id"][:4] == batch["image_id"]
    assert torch.equal(grown["image"][0], batch["image"][0])
    assert grown["label"].sum(dim=1).min() > 0
    plain = make_method("sfc", bank_draws=0)
    assert plain.before_losses(batch, Progress()) is batch
    plain.after_step(Progress())
    assert plain.bank.written.sum() == 0


def test_pending_images_of_a_step_that_was_not_taken_are_dropped() -> None:
    method = make_method("sfc")
    method.before_losses(make_batch([[1, 1, 1, 1, 1]]), Progress())
    one_step(method, [make_batch([[0, 1, 0, 0, 0]])], Progress())
    assert method.bank.written.tolist() == [0, 1, 0, 0, 0]


def test_draws_that_the_ranks_cannot_share_are_refused() -> None:
    batch = make_batch(MIXED)
    for parts in ({"world_size": 3}, {"accumulate": 8}, {"world_size": 2, "accumulate": 4}):
        with pytest.raises(ValueError, match="--bank-draws 4 must divide"):
            make_method("sfc").before_losses(batch, Progress(**parts))


def test_a_resumed_run_draws_the_same() -> None:
    first, batch = make_method("sfc", pretrained=True), make_batch(MIXED)
    one_step(first, [batch], Progress())
    second = make_method("sfc", pretrained=True)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    step, batch = Progress(step=1), make_batch([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], seed=5)
    grown = [one_step(method, [batch], step)[0] for method in (first, second)]
    assert all(torch.equal(grown[0][key], grown[1][key]) for key in ("image", "valid", "label"))
    terms = [method(one, step) for method, one in zip((first, second), grown, strict=True)]
    assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])
    assert torch.equal(first.bank.written, second.bank.written)
