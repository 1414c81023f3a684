"""The picture of a run: what is heat, what is a mask, and that the background is neither."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from runs import run, train_flags
from torch import Tensor, nn

from tool.report.picture import grid, heat, label_colours, outlined
from tool.train.pictures import CELL, Shown, map_panels

SIDE, NAMES = 32, ("cat", "dog")
BLACK = np.zeros((SIDE, SIDE, 3), np.uint8)


def panels(maps: dict[str, Tensor], bg_threshold: float | None) -> list[np.ndarray]:
    """The panels of a black image, without their captions."""
    found = map_panels(BLACK, maps, bg_threshold=bg_threshold, class_names=NAMES)
    return [panel for _, panel in found.values()]


@pytest.mark.parametrize("names", [("prob",), ("cam", "classifier", "prototype")])
def test_the_background_row_of_every_map_is_left_out_of_the_heat(names: tuple[str, ...]) -> None:
    maps = {}
    for place, name in enumerate(names):
        maps[name] = torch.zeros(3, SIDE, SIDE)
        maps[name][0] = 1  # background everywhere
        maps[name][1, :8] = 0.25 * (place + 1)
    *heats, mask = panels(maps, None)
    for name, found in zip(names, heats, strict=True):
        assert np.array_equal(found, heat(BLACK, maps[name][1].numpy())), name
    assert not mask.any(), "the background wins every pixel"


def test_a_segmentation_network_shows_its_mask() -> None:
    prob = torch.zeros(3, SIDE, SIDE)
    prob[0], prob[2, :8] = 0.5, 0.75
    *_, mask = panels({"prob": prob}, None)
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[:8] = 2
    assert np.array_equal(mask, outlined(BLACK, label))


def test_a_map_of_one_row_has_no_background() -> None:
    edge = torch.rand(1, SIDE, SIDE)
    (found,) = panels({"edge": edge}, None)
    assert np.array_equal(found, heat(BLACK, edge[0].numpy()))


def test_label_panels_name_their_classes_and_have_a_contour() -> None:
    cam = torch.zeros(2, SIDE, SIDE)
    cam[0, 4:12, 4:12], cam[1, 20:28] = 0.9, 0.8
    caption, panel = map_panels(BLACK, {"cam": cam}, bg_threshold=0.5, class_names=NAMES)["label"]
    assert caption == "pseudo label: cat, dog"
    assert (panel[4, 4:12] == 255).all()
    label = np.zeros((SIDE, SIDE), np.uint8)
    label[4:12, 4:12] = 1
    inside = outlined(BLACK, label)[5:11, 5:11]
    assert np.array_equal(inside, label_colours(BLACK, label)[5:11, 5:11])
    assert not outlined(BLACK, label)[:4].any()
    assert not outlined(BLACK, np.zeros_like(label)).any()


class Watched(nn.Module):
    """A method that notes which images it is shown first, and copies their red channel."""

    has_background = False

    class recipe:
        class post:
            threshold = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.firsts: list[str] = []

    def pictures(self, batch: dict) -> dict[str, Tensor]:
        assert not self.training
        self.firsts.append(batch["image_id"][0])
        return {"cam": batch["image"][0, :2]}


def shown(truth: np.ndarray | None) -> Shown:
    """Two images, of which the second is padded below."""
    valid = torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    valid[1, :, 16:] = False
    image = torch.rand(2, 3, SIDE, SIDE) * valid
    label = torch.tensor([[1.0, 0], [1, 1]])
    batch = {"image_id": ["one", "two"], "image": image, "label": label, "valid": valid}
    saliency = np.full((16, SIDE), 77, np.uint8)
    return Shown(batch, NAMES, [None, truth], [None, saliency])  # type: ignore[arg-type]


def test_every_image_has_a_row_and_every_panel_its_column() -> None:
    truth = np.zeros((40, 80), np.uint8)
    truth[:, :40] = 2
    method = Watched().train()
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    picture = shown(truth).draw(method, mean=zero, std=one)  # type: ignore[arg-type]
    assert method.firsts == ["one", "two"]
    assert method.training
    height = CELL + 18
    assert picture.shape == (2 * height, 5 * CELL, 3)  # image, cam, pseudo label, truth, saliency
    second = picture[height + 18 :]
    assert (second[: CELL // 2, 4 * CELL :] == 77).all()
    assert (second[CELL // 2 :] == 255).all(), "padding is not shown"
    assert (picture[18:height, 3 * CELL :] == 255).all(), "no truth, no panel"
    left, right = second[10:80, 3 * CELL + 10 : 3 * CELL + 80], second[10:80, -CELL - 80 : -CELL]
    assert np.array_equal(right, second[10:80, CELL - 80 : CELL]), "the truth's background"
    assert not np.array_equal(left, second[10:80, 10:80])


def test_captions_that_are_too_long_are_cut() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    picture = grid([[("n" * 400, white), ("", white)]], 100)
    assert (picture[:18, :100] < 128).any()
    assert (picture[:18, 96:] == 255).all()


@pytest.mark.parametrize("method", ["cam", "fbr"])
def test_pictures_of_a_run_show_the_same_images(method: str, folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path, method=method, steps=2)
    assert run("train_fbr.py", *flags, "--picture-every", 1).returncode == 0
    first, second = (np.array(Image.open(tmp_path / f"pictures/00000{n}.png")) for n in (1, 2))
    assert first.shape[0] == 8 * (CELL + 18)
    columns = range(0, first.shape[1], CELL)
    same = [np.array_equal(first[:, x : x + CELL], second[:, x : x + CELL]) for x in columns]
    assert same[0], "the images"
    assert same[-2:] == [True, True], "truth and saliency"
    assert not all(same), "the maps change"


def test_pictures_change_nothing_that_is_trained(folder_root, tmp_path) -> None:
    found = set()
    for every in (0, 1):
        flags = train_flags(folder_root, tmp_path / str(every), steps=2)
        assert run("train_fbr.py", *flags, "--picture-every", every).returncode == 0
        found.add((tmp_path / str(every) / "checkpoint.pth").read_bytes())
    assert len(found) == 1
