"""The picture of a run: what is heat, what is a mask, and that the background is neither."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tool.report.picture import heat, label_colours
from tool.train.log import training_picture

SIDE, BAR = 32, 18


def panels(maps: dict[str, Tensor], bg_threshold: float | None) -> list[np.ndarray]:
    """The panels of a black image, without their captions."""
    picture = training_picture(torch.zeros(3, SIDE, SIDE), maps, bg_threshold=bg_threshold)
    count = picture.shape[1] // SIDE
    return [picture[BAR:, SIDE * place : SIDE * (place + 1)] for place in range(count)]


@pytest.mark.parametrize("names", [("prob",), ("cam", "classifier", "prototype")])
def test_the_background_row_of_every_map_is_left_out_of_the_heat(names: tuple[str, ...]) -> None:
    maps = {}
    for place, name in enumerate(names):
        maps[name] = torch.zeros(3, SIDE, SIDE)
        maps[name][0] = 1  # background everywhere
        maps[name][1, :8] = 0.25 * (place + 1)
    _, *heats, mask = panels(maps, None)
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    for name, found in zip(names, heats, strict=True):
        assert np.array_equal(found, heat(black, maps[name][1].numpy())), name
    assert not mask.any(), "the background wins every pixel"


def test_a_segmentation_network_shows_its_mask() -> None:
    prob = torch.zeros(3, SIDE, SIDE)
    prob[0], prob[2, :8] = 0.5, 0.75
    *_, mask = panels({"prob": prob}, None)
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:8] = 2
    assert np.array_equal(mask, label_colours(np.zeros((SIDE, SIDE, 3), np.uint8), label))


def test_a_map_of_one_row_has_no_background() -> None:
    edge = torch.rand(1, SIDE, SIDE)
    (_, found) = panels({"edge": edge}, None)
    assert np.array_equal(found, heat(np.zeros((SIDE, SIDE, 3), np.uint8), edge[0].numpy()))
