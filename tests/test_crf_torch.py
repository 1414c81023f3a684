"""The torch CRF equals pydensecrf: stored expectations, and live where both are installed.

`python tests/test_crf_torch.py` makes the stored expectations anew, with pydensecrf.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.toy.drawing.scene import make_sample
from tool.crf.dense import PRESETS, label_unary, pick_backend, preset_of, score_unary
from tool.crf.jobs import mask_task, seed_task, solve, solve_batch, with_background
from tool.crf.mean_field import Kernel
from tool.crf.permutohedral import Lattice
from tool.formats.cam import Cam

DATA = Path(os.environ.get("WSSS_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
STORED = Path(__file__).with_name("crf_expected.npz")
COMPARED = ("psa80", "label50", "dlv2")


@functools.cache
def scenes() -> dict[str, tuple[np.ndarray, Cam]]:
    """A drawn image (stored) and noise: (H, W, 3) uint8, and CAMs of blobs."""
    rng = np.random.default_rng(0)
    drawn = np.load(STORED, allow_pickle=False)["drawn"]
    noise = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    found = {}
    for name, image, classes in (("drawn", drawn, (2, 5, 7)), ("noise", noise, (3,))):
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width]
        rows = []
        for _ in classes:
            distance = np.hypot(y - rng.uniform(0, height), x - rng.uniform(0, width))
            rows.append(np.exp(-((distance / (0.3 * height)) ** 2)))
        maps = np.stack(rows).astype(np.float32)
        found[name] = (np.ascontiguousarray(image), Cam(np.array(classes, np.uint8), maps))
    return found


def energies(cam: Cam, name: str) -> np.ndarray:
    preset, score = preset_of(name), with_background(cam, 8)
    if preset.from_labels:
        return label_unary(score.argmax(0), n_labels=len(score), gt_prob=preset.gt_prob)
    return score_unary(score)


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, agreement: float = 0.998) -> None:
    assert (ours.argmax(0) == theirs.argmax(0)).mean() >= agreement
    assert np.abs(ours - theirs).mean() < 2e-3


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("scene", ["drawn", "noise"])
def test_equals_the_stored_marginals(scene: str, name: str) -> None:
    image, cam = scenes()[scene]
    stored = np.load(STORED, allow_pickle=False)[f"{scene}-{name}"] / np.float32(65535)
    ours = preset_of(name).crf(image, energies(cam, name), backend="torch")
    assert stored.argmax(0).any(), "the expectation is not all background"
    np.testing.assert_allclose(ours.sum(0), 1, atol=1e-5)
    assert_close(ours, stored)


@pytest.mark.parametrize("name", COMPARED)
def test_equals_pydensecrf_live(name: str) -> None:
    pytest.importorskip("pydensecrf")
    cases = dict(scenes())
    for path in sorted((DATA / "voc_full" / "JPEGImages").glob("*.jpg"))[:1]:
        image = np.asarray(Image.open(path).convert("RGB"))
        saliency = Image.open(DATA / "voc_full" / "saliency" / f"{path.stem}.png").convert("L")
        maps = np.stack([np.asarray(saliency, np.float32) / 255, np.full(image.shape[:2], 0.2)])
        cases[path.stem] = (image, Cam(np.array([3, 9], np.uint8), maps.astype(np.float32)))
    for image, cam in cases.values():
        unary = energies(cam, name)
        crf = preset_of(name).crf
        assert_close(crf(image, unary, backend="torch"), crf(image, unary, backend="pydensecrf"))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    image, cam = scenes()["drawn"]
    images = [image, np.ascontiguousarray(image[::-1]), np.roll(image, 9, axis=1)]
    unaries = [energies(cam, "psa80")[: 2 + number] for number in (0, 1, 2)]
    crf = PRESETS["psa80"].crf
    together = crf.batch(images, unaries, device="cpu")
    for one, unary, batched in zip(images, unaries, together, strict=True):
        alone = crf(one, unary, backend="torch")
        assert batched.shape == unary.shape
        np.testing.assert_allclose(batched, alone, atol=2e-5)


def test_tasks_of_a_batch_give_their_own_masks() -> None:
    image, cam = scenes()["drawn"]
    empty = Cam(np.array([], np.uint8), np.zeros((0, *cam.size), np.float32))
    preset = PRESETS["label50"]
    tasks = [
        seed_task(image, cam, preset, fg=0.6, bg=0.1, n_labels=4),
        mask_task(image, empty, preset, alpha=8),
        mask_task(image, cam, preset, alpha=8),
    ]
    masks = solve_batch([image] * 3, tasks, preset.crf, device="cpu")
    for mask, task in zip(masks, tasks, strict=True):
        alone = solve(image, task, preset.crf, backend="torch")
        assert (mask == alone).mean() > 0.999
    assert not masks[1].any()
    assert 255 in masks[0]


def test_the_lattice_is_near_the_gaussian_and_nearly_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.rand(400, 3, generator=generator) * 4
    value = torch.rand(400, 2, generator=generator)
    exact = torch.exp(-torch.cdist(position, position).square() / 2)
    matrix = Lattice(position).filter(torch.eye(400))
    skew = (matrix - matrix.T).abs().mean() / matrix.mean()
    assert skew < 0.1, "the blur passes do not commute where lattice points are missing"
    torch.testing.assert_close(Lattice(position).filter(value), matrix @ value)
    ratio = (matrix @ value) / (exact @ value)
    assert ratio.std() / ratio.mean() < 0.1, "a constant factor apart, which normalisation removes"
    kernel = Kernel(position)(torch.eye(400))
    assert (kernel >= 0).all()


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_barycentric_weights_sum_to_one_and_rebuild_the_position(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    position = torch.randn(500, dims, generator=generator) * 10
    lattice = Lattice(position)
    assert (lattice._weight > -1e-4).all()
    torch.testing.assert_close(lattice._weight.sum(dim=1), torch.ones(500), atol=1e-4, rtol=0)
    constant = lattice.filter(torch.ones(500, 1))
    assert (constant > 0).all()


def test_groups_are_apart_and_far_positions_are_refused() -> None:
    position = torch.rand(60, 2)
    group = torch.arange(2).repeat_interleave(30)
    value = torch.rand(60, 1)
    both = Lattice(position, group).filter(value)
    for part in (slice(0, 30), slice(30, 60)):
        torch.testing.assert_close(both[part], Lattice(position[part]).filter(value[part]))
    with pytest.raises(ValueError, match="lattice cells"):
        Lattice(torch.tensor([[0.0] * 5, [1e6] * 5]))


def test_backends(monkeypatch) -> None:
    assert pick_backend("torch")[0] == "torch"
    monkeypatch.setattr("tool.crf.dense._has_gpu", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pick_backend("auto") == ("torch", "cpu")
    with pytest.raises(ValueError, match="pydensecrf2"):
        pick_backend("pydensecrf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert pick_backend("auto") == ("pydensecrf", "cpu")
    monkeypatch.setattr("tool.crf.dense._has_gpu", lambda: True)
    assert pick_backend("auto") == ("torch", "cuda")
    assert pick_backend("pydensecrf") == ("pydensecrf", "cpu")


def store() -> None:
    """Write the drawn image, and the expectations as 16-bit fractions."""
    drawn = np.asarray(make_sample(np.random.default_rng(5)).image)[::2, ::2]
    np.savez_compressed(STORED, drawn=drawn)
    content = {"drawn": drawn}
    for scene, (image, cam) in scenes().items():
        for name in COMPARED:
            prob = preset_of(name).crf(image, energies(cam, name), backend="pydensecrf")
            content[f"{scene}-{name}"] = (prob * 65535).round().astype(np.uint16)
    np.savez_compressed(STORED, **content)


if __name__ == "__main__":
    store()
