"""COCO's segmentations: what pycocotools paints, and what it would make up."""

from __future__ import annotations

import numpy as np
import pytest
from devkits import box, runs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from coco14.annotations import ImageObjects, Object, draw_mask
from tool.formats.coco_regions import region_of, run_lengths

BAD_COUNTS = [
    "0",
    "",
    "\0\0",
    "X",
    "\x7f",
    "é",
    "P" * 50,
    "1 ",
    "\ud800",
    [],
    [0],
    [241],
    [120, 119],
]


def test_all_forms_of_a_region_give_the_same_mask() -> None:
    region = runs_of(3, 2, 9, 8)
    packed = coco_mask.frPyObjects(region, 12, 20)
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    masks = [
        draw_mask(ImageObjects("x", 12, 20, (Object(4, 36, False, form),)), overlap="small")
        for form in (region, packed, text, box(3, 2, 9, 8))
    ]
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert masks[0].sum() == 4 * 36


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 9))
def test_run_lengths_are_those_of_pycocotools(h: int, w: int, share: float, seed: int) -> None:
    wanted = np.random.default_rng(seed).random((h, w)) < share
    packed = coco_mask.encode(np.asfortranarray(wanted.astype(np.uint8)))
    counts = run_lengths(packed, h, w)
    np.testing.assert_array_equal(region_of(packed, h, w), wanted)
    np.testing.assert_array_equal(region_of(packed | {"counts": counts}, h, w), wanted)


def test_run_lengths_of_the_largest_image() -> None:
    side = 2**15 - 1
    wanted = coco_mask.frPyObjects([[0, 0, side, 0, side, 1, 0, 1]], side, side)[0]
    assert run_lengths(wanted, side, side) == [0, 1] + [side - 1, 1] * (side - 1) + [side - 1]
    one = coco_mask.frPyObjects({"size": [side, side], "counts": [0, side * side]}, side, side)
    assert run_lengths(one, side, side) == [0, side * side]


@pytest.mark.parametrize("counts", BAD_COUNTS)
def test_run_lengths_that_do_not_fill_the_image_are_refused(counts) -> None:
    with pytest.raises(ValueError, match=r"run length.*(damaged|cut off|fill)"):
        region_of({"size": [12, 20], "counts": counts}, 12, 20)


@pytest.mark.parametrize("counts", ["0", "", [], [0, 239]])
def test_a_short_region_is_never_painted(counts) -> None:
    with pytest.raises(ValueError, match=r"run lengths that do not fill the image: .* of 240"):
        region_of({"size": [12, 20], "counts": counts}, 12, 20)


def test_run_lengths_of_another_image() -> None:
    with pytest.raises(ValueError, match=r"size \[20, 12\].*image of \[12, 20\]"):
        region_of(runs_of(3, 2, 9, 8) | {"size": [20, 12]}, 12, 20)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.floats(-150, 150), min_size=6, max_size=16).filter(lambda x: len(x) % 2 == 0))
def test_polygons_partly_outside_are_painted_whole(polygon: list[float]) -> None:
    runs = coco_mask.frPyObjects([polygon], 23, 40)[0]
    assert sum(run_lengths(runs, 23, 40)) == 23 * 40
    np.testing.assert_array_equal(region_of([polygon], 23, 40), region_of(runs, 23, 40))
