"""The NROI gate: a plain reference, its edges and its file."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from method_cases import make_method

from data.regions import sample_ids
from network.contrast.gate import NroiGate, RegionCollector
from network.contrast.gate_steps import (
    GateSettings,
    background_regions,
    best_of_others,
    class_prototypes,
    gate_of,
    sum_features,
)
from tool.formats.regions import Regions, load_regions, save_regions
from tool.infer.multiscale import infer_images

CPU = torch.device("cpu")
SETTINGS = GateSettings()
D = 6
LABEL = torch.tensor([1.0, 0, 1])  # of `squares`


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def features_of(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(D, *size, generator=generator) for size in sizes]


def squares(num_classes: int = 3, side: int = 16) -> torch.Tensor:
    """A CAM with a square of class 0 and one of class 2, and little elsewhere."""
    cam = torch.zeros(num_classes, side, side)
    cam[0] = 0.02
    cam[0, 2:8, 2:8] = 1.0
    if num_classes > 2:
        cam[2] = 0.05
        cam[2, 9:15, 9:15] = 0.8
    return cam


def some_regions(num_classes: int = 3, seed: int = 1) -> Regions:
    rng = np.random.default_rng(seed)
    rows = rng.random((12, D)).astype(np.float32)
    prototype = rng.random((num_classes, D)).astype(np.float32)
    return Regions(
        ["a", "b", "c"],
        np.repeat(np.arange(3), 4),
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        prototype / np.linalg.norm(prototype, axis=1, keepdims=True),
    )


def gate_for(regions: Regions, *, has_background: bool = False) -> NroiGate:
    return NroiGate(regions, CPU, seed=0, has_background=has_background)


def test_it_is_the_plain_computation() -> None:
    """Cell by cell, with one scale on the grid of the features."""
    (feature,), cam, regions = features_of((4, 4)), squares(), some_regions()
    gate, present = gate_for(regions).gate("b", [feature], cam, LABEL)
    assert present.tolist() == [0, 2]
    z = np.stack([[unit(feature[:, y, x].numpy()) for x in range(4)] for y in range(4)])
    maps = cam[[0, 2]].numpy()
    maps = maps / (maps.max(axis=(1, 2), keepdims=True) + 1e-5)
    small = maps.reshape(2, 4, 4, 4, 4).mean(axis=(2, 4))
    bank = regions.region[regions.owner != 1]
    prototypes = []
    for row, value in enumerate((0, 2)):
        own = np.zeros(D)
        for y, x in np.ndindex(4, 4):
            if small[row, y, x] > 0.5 and small[:, y, x].argmax() == row:
                own += small[row, y, x] * z[y, x]
        prototype = unit(unit(own) + regions.prototype[value])
        prototypes.append(prototype)
    for row, prototype in enumerate(prototypes):
        for y, x in np.ndindex(4, 4):
            ground = np.sort(bank @ z[y, x])[-8:].mean()
            ground = max(ground, prototypes[1 - row] @ z[y, x])
            expected = 1 / (1 + np.exp(-(prototype @ z[y, x] - ground) / 0.1))
            assert gate[row, y, x] == pytest.approx(expected, abs=1e-4)


def test_the_rival_of_a_class_is_the_nearest_other_one() -> None:
    near = torch.tensor([[0.9, 0.2, 0.5], [0.3, 0.8, 0.5], [0.1, 0.4, -torch.inf]])
    expected = torch.tensor([[0.3, 0.8, 0.5], [0.9, 0.4, 0.5], [0.9, 0.8, 0.5]])
    assert torch.equal(best_of_others(near), expected)


def test_without_rivals_and_with_one_class_only_the_background_counts() -> None:
    z, region = sum_features(features_of((4, 4))), torch.eye(D)
    prototype = torch.nn.functional.normalize(torch.rand(2, D), dim=1)
    plain = dataclasses.replace(SETTINGS, rivals=False)
    both = gate_of(z, prototype, region, SETTINGS)
    assert (both <= gate_of(z, prototype, region, plain) + 1e-6).all()
    alone = gate_of(z, prototype[:1], region, SETTINGS)
    torch.testing.assert_close(alone, gate_of(z, prototype, region, plain)[:1])
    unknown = prototype * torch.tensor([[1.0], [0.0]])  # it has no cell, so it is no rival
    torch.testing.assert_close(gate_of(z, unknown, region, SETTINGS)[:1], alone)
    assert (gate_of(z, unknown, region, SETTINGS)[1] == 1).all()


def test_features_of_several_scales_are_summed_on_the_largest_grid() -> None:
    features = features_of((2, 3), (4, 6))
    z = sum_features(features)
    assert z.shape == (D, 4, 6)
    torch.testing.assert_close(z.norm(dim=0), torch.ones(4, 6))
    alone = sum_features(features[1:])
    torch.testing.assert_close(alone, torch.nn.functional.normalize(features[1], dim=0))
    assert not torch.allclose(z, alone)


def test_the_own_regions_of_an_image_are_left_out() -> None:
    features, cam, regions = features_of((4, 4)), squares(), some_regions()
    changed = regions.region.copy()
    changed[regions.owner == 1] = -1 / np.sqrt(D)
    other = dataclasses.replace(regions, region=changed)
    maps = {"cam": cam}
    own = [gate_for(r)("b", features, maps, LABEL)["cam"] for r in (regions, other)]
    assert torch.equal(*own)
    foreign = [gate_for(r)("new", features, maps, LABEL)["cam"] for r in (regions, other)]
    assert not torch.equal(*foreign)


def test_the_maximum_of_each_class_stays() -> None:
    """A class that is weak beside another one stays so."""
    cam, features = squares(), features_of((4, 4), (8, 8))
    gated = gate_for(some_regions())("new", features, {"cam": cam, "other": cam / 2}, LABEL)
    assert torch.equal(cam, squares()), "its argument is changed"
    for values in gated.values():
        assert values.shape == cam.shape
        assert (values[1] == 0).all(), "an absent class"
    highest = gated["cam"][[0, 2]].amax(dim=(1, 2))
    torch.testing.assert_close(highest, torch.tensor([1.0, 0.8]), atol=1e-3, rtol=0)
    torch.testing.assert_close(gated["cam"] / 2, gated["other"], atol=1e-3, rtol=0)
    assert not torch.allclose(gated["cam"], cam, atol=0.01)


def test_a_background_row_stays() -> None:
    cam = torch.cat([torch.full((1, 16, 16), 0.3), squares()])
    gate = gate_for(some_regions(), has_background=True)
    gated = gate("new", features_of((4, 4)), {"cam": cam}, LABEL)
    assert torch.equal(gated["cam"][0], cam[0])
    assert (gated["cam"][1:] <= cam[1:]).all()
    assert (gated["cam"][1] < cam[1]).any()


def test_scores_with_a_background_row_are_compared_as_they_are() -> None:
    """A softmax gives every class some score: only the label's classes count, unstretched."""
    cam = torch.full((21, 16, 16), 0.04)
    cam[0], cam[3] = 0.9, 0.01
    cam[0, 2:8, 2:8], cam[3, 2:8, 2:8] = 0.05, 0.8
    label = torch.eye(20)[2]
    gate = gate_for(some_regions(20), has_background=True)
    _, small, present = gate.cells(features_of((4, 4)), cam, label)
    assert present.tolist() == [2]
    assert (small < SETTINGS.background).float().mean() > 0.6
    assert small.max() > SETTINGS.foreground


@pytest.mark.parametrize("num_classes", [1, 80])
@pytest.mark.parametrize("kind", ["zero", "one", "flat", "point"])
def test_odd_maps_stay_finite(num_classes: int, kind: str) -> None:
    cam = torch.zeros(num_classes, 16, 16)
    if kind != "zero":
        cam[0] = {"one": 1.0, "flat": 0.3, "point": 0.0}[kind]
        cam[0, 5, 5] = max(float(cam[0, 5, 5]), 0.4)
    features = features_of((4, 4))
    collector = RegionCollector(num_classes, seed=0, has_background=False)
    maps, label = {"cam": cam}, torch.zeros(num_classes)
    label[0] = 1
    assert collector("x", features, maps, label) is maps
    regions = collector.regions(["x"])
    assert 1 <= len(regions.region) <= 8
    np.testing.assert_allclose(np.linalg.norm(regions.region, axis=1), 1, atol=1e-5)
    for image_id in ("x", "new"):  # "x" is the only image: its own regions have to do
        gated = gate_for(regions)(image_id, features, maps, label)["cam"]
        assert torch.isfinite(gated).all()
        assert gated.shape == cam.shape
        assert (gated[0].amax() > 0) == (kind != "zero")
        without = gate_for(regions)(image_id, features, maps, 0 * label)["cam"]
        assert torch.equal(without, cam), "an image without a class"


def test_prototypes_are_those_of_confident_cells() -> None:
    z = sum_features(features_of((4, 4)))
    cam = torch.zeros(2, 4, 4)
    cam[0, 1, 2] = 0.9
    cam[1] = 0.1
    cam[1, 3, 3] = 0.4  # no cell is above one half: those near the maximum count
    prototype = class_prototypes(z, cam, SETTINGS)
    torch.testing.assert_close(prototype[0], z[:, 1, 2])
    torch.testing.assert_close(prototype[1], z[:, 3, 3])


def test_regions_are_clusters_of_the_background() -> None:
    """Two kinds of background and an object: the object is in no region."""
    z = torch.zeros(3, 6, 6)
    z[0, :3], z[1, 3:] = 1, 1
    z[:, 2:4, 2:4] = torch.tensor([0.0, 0, 1])[:, None, None]
    cam = torch.zeros(1, 6, 6)
    cam[0, 2:4, 2:4] = 1
    region = background_regions(z, cam, 0, SETTINGS)
    assert region[:, 2].abs().max() < 1e-5
    assert {int(row.argmax()) for row in region} == {0, 1}
    assert torch.equal(region, background_regions(z, cam, 0, SETTINGS))
    whole = background_regions(z, torch.ones_like(cam), 0, SETTINGS)  # no cell is background
    assert len(whole) == 7  # the lowest fifth of 36 cells


def test_the_sample_is_keyed_and_has_every_class() -> None:
    ids = [f"{number:04d}" for number in range(2000)]

    def label(image_id: str) -> np.ndarray:
        number = int(image_id)
        return np.array([1, number % 100 == 0, number == 7, 0], np.float32)

    chosen = sample_ids(ids, label, seed=0)
    assert chosen == sample_ids(ids, label, seed=0) != sample_ids(ids, label, seed=1)
    assert len(set(chosen)) == len(chosen)
    counts = sum(label(one) for one in chosen)
    assert counts.tolist()[1:] == [8, 1, 0]
    assert 128 <= len(chosen) <= 128 + 8 + 1, "rare and absent classes cost only their own images"
    alone = len(sample_ids(ids[:300], lambda _: np.ones(1), seed=0))
    assert alone == 37
    assert sorted(sample_ids(ids[:20], label, seed=0)) == ids[:20]


def test_the_file_comes_back_and_has_equal_bytes(tmp_path: Path) -> None:
    regions, about = some_regions(), {"checkpoint_sha256": "x", "scales": (1.0, 2.0)}
    for name in ("one.npz", "two.npz"):
        save_regions(tmp_path / name, regions, about)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    back, noted = load_regions(tmp_path / "one.npz", about)
    assert noted == {"checkpoint_sha256": "x", "scales": [1.0, 2.0]}
    for field in dataclasses.fields(Regions):
        mine, theirs = getattr(regions, field.name), getattr(back, field.name)
        assert np.array_equal(mine, theirs), field.name
    assert load_regions(tmp_path / "one.npz", {"scales": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"one.npz differs in scales"):
        load_regions(tmp_path / "one.npz", about | {"scales": [1.0]})
    with pytest.raises(ValueError, match=r"differs in class_names"):
        load_regions(tmp_path / "one.npz", about | {"class_names": ["cat"]})


def test_damaged_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    path, about = tmp_path / "nroi.npz", {"scales": [1.0]}
    save_regions(path, some_regions(), about)
    whole = path.read_bytes()
    np.savez(tmp_path / "foreign.npz", owner=np.zeros(3, np.int64))
    np.savez_compressed(tmp_path / "bomb.npz", region=np.zeros((1000, 1000), np.float32))
    wrong = dataclasses.replace(some_regions(), owner=np.full(12, 9))
    save_regions(tmp_path / "owner.npz", wrong, about)
    infinite = dataclasses.replace(some_regions(), region=np.full((12, D), np.inf, np.float32))
    save_regions(tmp_path / "infinite.npz", infinite, about)
    for content in (b"", whole[:200], whole[:-30], b"x" * 500, whole.replace(b"<f4", b"<f8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"nroi.npz is no whole file of regions"):
            load_regions(path, about)
    for name in ("foreign", "bomb", "owner", "infinite"):
        with pytest.raises(ValueError, match=rf"{name}.npz is no whole file of regions"):
            load_regions(tmp_path / f"{name}.npz", about)


def test_damage_of_any_kind_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "nroi.npz"
    save_regions(path, some_regions(), {"scales": [1.0]})
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        path.write_bytes(content)
        with contextlib.suppress(ValueError):  # nothing else; some changes are harmless
            load_regions(path, {"scales": [1.0]})


def test_regions_of_another_width_or_number_of_classes_are_named() -> None:
    gate = gate_for(some_regions())
    wide = [torch.rand(D + 1, 4, 4)]
    with pytest.raises(ValueError, match=rf"have {D} channels and 3 classes.*{D + 1} and 3"):
        gate("new", wide, {"cam": squares()}, LABEL)
    with pytest.raises(ValueError, match=r"3 classes.*and 5"):
        gate("new", features_of((4, 4)), {"cam": squares(5)}, torch.ones(5))


def test_cam_and_features_come_from_one_forward_pass() -> None:
    method = make_method("eps").eval()
    calls = []
    method.backbone.register_forward_hook(lambda *_: calls.append(1))
    sample = {
        "image_id": "x",
        "size": (40, 48),
        "images": [torch.zeros(3, 20 * n, 24 * n, dtype=torch.uint8) for n in (1, 2, 3)],
        "label": torch.eye(5)[0],
    }
    seen = []

    def refine(image_id: str, features: list, maps: dict, label: torch.Tensor) -> dict:
        seen.append([tuple(feature.shape) for feature in features])
        return maps

    plain = infer_images(method, [sample], device=CPU)[0]["cam"]
    assert len(calls) == 3
    refined = infer_images(method, [sample], device=CPU, refine=refine)[0]["cam"]
    assert len(calls) == 6
    assert torch.equal(plain, refined)
    assert [shape[1:] for shape in seen[0]] == [(5, 6), (8, 9)], "the scales of at least 1"
