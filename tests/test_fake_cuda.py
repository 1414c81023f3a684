"""Every method on fake CUDA tensors: nothing is on the wrong device, nothing waits for the device.

The branches that the code takes on an accelerator run here without one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_cuda import CUDA, META, ReadBack, all_of, fake, fake_batch, fake_module, watched
from fake_cuda import no_generator as stand_in
from method_cases import METHODS, MIXED, make_batch, make_method
from torch import Tensor

from data.colour import DeviceTransform, draw_jitter
from network.methods import Method
from network.walk.random_walk import pairs_within, path_affinity
from tool.crf import mean_field
from tool.infer.multiscale import infer_images
from tool.progress import Progress
from tool.train.engine import Settings, take_step
from tool.train.history import History

PRESENT = 2  # classes of the image that is inferred
SIZE = (48, 64)
SCALES = (0.5, 1.0)
# What the inference of one image may read back: which classes are present, so that the work and the
# memory are those of the present classes.
PRESENT_CLASSES = ["nonzero"]
# The random walk also checks what it is given (least and largest edge; values that are not finite)
# and builds a sparse matrix, whose size is the number of cells inside the map.
WALK = ["item", "item", "mask", "mask", "mask"]
SMALLER = {"irn": {"radius": 4, "exponent": 3}}  # as many kinds of operations, far fewer of them
EITHER = [True, pytest.param(False, marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Draws without a generator; no fake kernel stays in the CRF's cache; no warning of no GPU."""
    monkeypatch.setattr(Progress, "generator", stand_in)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*CUDA is not available")
        yield
    mean_field._smoothness.cache_clear()


def real_method(name: str, *, pretrained: bool = True) -> Method:
    """A small method in channels_last, as training and inference have it."""
    method = make_method(name, pretrained=pretrained, **SMALLER.get(name, {}))
    return method.to(memory_format=torch.channels_last)


def two_steps(method: Method, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The terms of the second step, for which a bank is filled."""
    for step in range(2):
        progress = Progress(step=step, steps=10, seed=1)
        terms = method(method.before_losses(batch, progress), progress)
        method.after_step(progress)
    return terms


@pytest.mark.parametrize("pretrained", EITHER)
@pytest.mark.parametrize("name", METHODS)
def test_losses_stay_on_the_device(name: str, pretrained: bool) -> None:
    method, batch = real_method(name, pretrained=pretrained).train(), make_batch(MIXED)
    with watched():
        terms = two_steps(fake_module(method, CUDA), fake_batch(batch, CUDA))
        assert {term.device.type for term in terms.values()} == {CUDA.type}
        assert all(term.shape == () for term in terms.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_whole_step_waits_for_nothing(name: str, monkeypatch) -> None:
    """What the engine does: losses, their backward, the optimizer, bank and log."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    method, batch = real_method(name).train(), make_batch(MIXED)
    with watched():
        method, batch = fake_module(method, META), fake_batch(batch, META)
        optimizer = torch.optim.SGD(method.param_groups(0.1, 1e-4), momentum=0.9)
        history, settings = History(), Settings(steps=2, batch_size=len(MIXED))
        for step in range(2):
            progress = Progress(step=step, steps=2)
            take_step(method, method, optimizer, batch, progress, settings, history)
        trained = [p for p in method.parameters() if p.requires_grad]
        assert any(p.grad is not None for p in trained)


def samples(method: Method) -> list[dict[str, Any]]:
    """Two images as the loader gives them, on the CPU."""
    cells = (1, 5, SIZE[0] // 4, SIZE[1] // 4)
    fields = {
        "label": torch.zeros(5),
        "seed": torch.zeros(SIZE, dtype=torch.long),
        "cam": torch.zeros(cells[1:]),
        "saliency": torch.zeros(1, *SIZE),
    }
    sizes = [tuple(int(side * scale) for side in SIZE) for scale in SCALES]
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]
    asked = {key: fields[key] for key in method.infer_inputs if key != "image"}
    return [{"image_id": name, "size": SIZE, "images": images, **asked} for name in ("a", "b")]


def dense(rows: Tensor, columns: Tensor, values: Tensor, *, size: Any, **_: Any) -> Tensor:
    """In place of `torch.sparse_csr_tensor`: there are no fake sparse tensors."""
    assert {rows.device.type, columns.device.type, values.device.type} == {CUDA.type}
    return values.new_empty(size)


def whole_masks(shape: torch.Size) -> int:
    """No value of a (C, h, w) CAM is odd; all cells of the transition are inside the map."""
    return 0 if len(shape) == 3 else all_of(shape)


@pytest.mark.parametrize("pretrained", EITHER)
@pytest.mark.parametrize("name", METHODS)
def test_inference_reads_only_the_present_classes_back(
    name: str, pretrained: bool, monkeypatch
) -> None:
    monkeypatch.setattr(torch, "sparse_csr_tensor", dense)
    method = real_method(name, pretrained=pretrained).eval()
    score = method.score
    with watched(nonzero=PRESENT, item=0.5, mask=whole_masks) as watch:
        fake_module(method, CUDA)

        def counted(batch: dict[str, Any]) -> Tensor:
            before = len(watch.reads)
            found = score(batch)
            assert watch.reads[before:] == [], "score() reads the device back"
            return found

        monkeypatch.setattr(method, "score", counted)
        merged = infer_images(method, samples(method), device=CUDA, mirror=method.recipe.mirror)
        for maps in merged:
            assert {value.device.type for value in maps.values()} == {CUDA.type}
            assert {value.shape[-2:] for value in maps.values()} == {torch.Size(SIZE)}
    if "label" not in method.infer_inputs:
        assert watch.reads == []
    elif type(method).merge is Method.merge:
        assert watch.reads == len(merged) * PRESENT_CLASSES
    else:
        assert watch.reads in (
            len(merged) * PRESENT_CLASSES,
            len(merged) * (PRESENT_CLASSES + WALK),
        )


def test_the_augmentation_stays_on_the_device() -> None:
    jitter = torch.stack([draw_jitter(), draw_jitter()])
    batch = {
        "image": torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "valid": torch.ones(2, 1, 8, 8, dtype=torch.bool),
        "jitter": jitter,
        "saliency": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        "seed": torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    }
    with watched():
        finish = DeviceTransform((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), CUDA)
        finished = finish(fake_batch(batch, CUDA))
        assert {value.device.type for value in finished.values()} == {CUDA.type}
        assert finished["image"].dtype == torch.float32


def test_the_crf_reads_back_only_the_size_of_its_lattices() -> None:
    image, unary = torch.zeros(2, 6, 8, 3, dtype=torch.uint8), torch.zeros(2, 3, 6, 8)
    with watched(item=9, nonzero=20) as watch:
        prob = mean_field.mean_field(
            fake(image, CUDA),
            fake(unary, CUDA),
            gaussian=(3.0, 3.0),
            bilateral=(80.0, 13.0, 10.0),
            iterations=3,
        )
        assert prob.device.type == CUDA.type
        assert prob.shape == (2, 3, 6, 8)
    of_positions = ["item"] * 2 + ["nonzero"]  # the extent of each axis, the lattice points
    of_pixels = ["item"] * 5 + ["item"] + ["nonzero"]  # likewise, and the number of images
    assert watch.reads == of_positions + of_pixels


def test_the_affinity_of_training_stays_on_the_device() -> None:
    with watched():
        affinity = path_affinity(fake(torch.zeros(2, 9, 8), CUDA), pairs_within(4))
        assert affinity.device.type == CUDA.type


def read(term: Tensor) -> Tensor:
    return term * term.item()


def constant(term: Tensor) -> Tensor:
    return term + torch.ones(3).sum(dim=0, keepdim=True)


def moved(term: Tensor) -> Tensor:
    return term.cpu()


def branch(term: Tensor) -> Tensor:
    return term if term > 0 else -term


def compared(term: Tensor) -> Tensor:
    return term[term > 0].sum()


@pytest.mark.parametrize("device", [CUDA, META], ids=["cuda", "meta"])
@pytest.mark.parametrize("wrong", [read, constant, moved, branch, compared])
def test_what_is_wrong_in_a_loss_is_seen(wrong, device, monkeypatch) -> None:
    """A read-back, a constant on the CPU, a branch or a choice by value: each raises."""
    method, batch = real_method("cam").train(), make_batch(MIXED)
    losses = method.losses
    monkeypatch.setattr(method, "losses", lambda *args: {"cls": wrong(losses(*args)["cls"][None])})
    with watched():
        fake_module(method, device)
        batch = fake_batch(batch, device)
        error = RuntimeError if wrong is constant else ReadBack
        with pytest.raises(error):
            method(batch, Progress())


def test_the_answers_are_counted() -> None:
    with watched(nonzero=2, item=7) as watch:
        value = fake(torch.zeros(5), CUDA)
        assert value.nonzero().shape == (2, 1)
        assert value[0].item() == 7
        with pytest.raises(ReadBack):
            value.cpu()
    assert watch.reads == ["nonzero", "item"]
