"""Colour jitter as one matrix an image: closed forms, torchvision, padding."""

from __future__ import annotations

import colorsys
import itertools

import pytest
import torch
from torchvision.transforms.v2 import functional

from data.colour import JITTER, DeviceTransform, draw_jitter, jitter_matrix, jittered

RANDOM = torch.Generator().manual_seed(0)
# mid tones, which no step of the jitter clips
IMAGE = 0.4 + 0.15 * torch.rand(1, 3, 9, 7, generator=RANDOM)
VALID = torch.ones(1, 1, 9, 7, dtype=torch.bool)


def apply(image: torch.Tensor = IMAGE, **factors: float) -> torch.Tensor:
    return jittered(image, VALID, jitter_matrix(**factors)[None])


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_a_step_is_torchvisions(name: str, factor: float) -> None:
    expected = getattr(functional, f"adjust_{name}")(IMAGE, factor)
    torch.testing.assert_close(apply(**{name: factor}), expected, atol=2e-4, rtol=0)


def test_one_matrix_is_the_steps_one_by_one_in_any_order() -> None:
    steps = {"contrast": 1.3, "hue": 0.1, "brightness": 1.2, "saturation": 0.7}
    for order in itertools.permutations(steps):
        one_by_one = IMAGE
        for name in order:
            one_by_one = apply(one_by_one, **{name: steps[name]})
        torch.testing.assert_close(apply(**steps), one_by_one)
    torch.testing.assert_close(apply(), IMAGE)


def test_the_hue_turns_as_hsv_does() -> None:
    """Towards the same side, by about the same angle; grey and brightness (luma) stay."""
    for turn in (-0.1, -0.04, 0.04, 0.1):
        moved = apply(hue=turn)
        luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        torch.testing.assert_close((moved * luma).sum(1), (IMAGE * luma).sum(1))
        before = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in IMAGE[0].flatten(1).T.tolist()]
        after = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in moved[0].flatten(1).T.tolist()]
        turns = torch.tensor([(b - a + 0.5) % 1 - 0.5 for a, b in zip(before, after, strict=True)])
        assert turns.mean().item() == pytest.approx(turn, abs=0.02)
    grey = torch.full_like(IMAGE, 0.5)
    torch.testing.assert_close(apply(grey, hue=0.1), grey)


def test_padding_does_not_move_the_pivot_of_the_contrast() -> None:
    padded = torch.nn.functional.pad(IMAGE, (0, 5, 4, 0))
    valid = torch.nn.functional.pad(VALID, (0, 5, 4, 0))
    matrix = jitter_matrix(brightness=1.1, contrast=1.3)[None]
    torch.testing.assert_close(
        jittered(padded, valid, matrix)[..., 4:, :-5], jittered(IMAGE, VALID, matrix)
    )


def test_each_image_has_its_own_matrix_and_nothing_leaves_the_range() -> None:
    images = torch.rand(3, 3, 8, 8, generator=RANDOM)
    valid = torch.ones(3, 1, 8, 8, dtype=torch.bool)
    matrices = torch.stack([jitter_matrix(brightness=f) for f in (0.7, 1.0, 1.3)])
    together = jittered(images, valid, matrices)
    for i in range(3):
        alone = jittered(images[i : i + 1], valid[i : i + 1], matrices[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone)
    assert together.min() >= 0
    assert together.max() == 1


def test_draws_cover_their_ranges() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = torch.stack([draw_jitter() for _ in range(400)])
    white = draws[:, :, :3].sum((1, 2)) / 3 + draws[:, :, 3:].sum((1, 2)) / 3
    low, high = 1 - JITTER["brightness"], 1 + JITTER["brightness"]
    assert low - 1e-4 <= white.min() < low + 0.03  # on an image of one grey only brightness acts
    assert high - 0.03 < white.max() <= high + 1e-4
    assert len(torch.unique(draws.flatten(1), dim=0)) == 400


def test_finish_edits_nothing_and_zeroes_the_padding() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=RANDOM)
    valid = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    valid[0, :, :3] = False
    batch = {
        "image": image.clone(),
        "valid": valid,
        "jitter": torch.stack([draw_jitter(), draw_jitter()]),
        "saliency": image[:, :1].clone(),
        "label": torch.ones(2, 3),
    }
    finished = DeviceTransform((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(batch)
    assert torch.equal(batch["image"], image)
    assert torch.equal(batch["saliency"], image[:, :1])
    assert set(finished) == set(batch) - {"jitter"}
    assert (finished["image"][~valid.expand(2, 3, 8, 8)] == 0).all()
    assert finished["image"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(finished["saliency"], image[:, :1] / 255)
