"""The NROI gate: a plain reference, its edges, its file, and stage 2 with it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from method_cases import MIXED, make_batch, make_method
from PIL import Image
from runs import assert_refused, run, run_ranks, train_flags

import infer_cam
import train_fbr
from data.catalog import open_catalog
from data.regions import sample_ids, training_ids
from network.backbones import build_backbone
from network.contrast.gate import NroiGate, RegionCollector
from network.contrast.gate_steps import (
    GateSettings,
    background_regions,
    best_of_others,
    class_prototypes,
    gate_of,
    sum_features,
)
from network.maps import over_maximum
from tool.files import list_hash
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.regions import Regions, load_regions, read_regions, save_regions
from tool.infer.multiscale import infer_images
from tool.train.batch import part
from tool.train.pictures import map_panels

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder_root) -> Path:
    """A run of `fbr`, whose recipe has the gate."""
    out = tmp_path_factory.mktemp("gate") / "run"
    result = run("train_fbr.py", *train_flags(folder_root, out, steps=2))
    assert result.returncode == 0, result.stderr
    return out


def flags(run_dir: Path, root: Path, out: Path, *more: object) -> list[object]:
    base = ["--checkpoint", run_dir / "checkpoint.pth", "--dataset", "folder", "--root", root]
    base += ["--list", "train", "--out", out, "--scales", 1, "--num-workers", 0, "--device", "cpu"]
    return [*base, *more]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_stage_2_gates_and_a_restart_gives_the_same_bytes(trained, folder_root, tmp_path) -> None:
    first = tmp_path / "first"
    result = run("infer_cam.py", *flags(trained, folder_root, first))
    assert result.returncode == 0, result.stderr
    note = json.loads((first / "made_from.json").read_text())
    assert note["post"]["gate"] == "nroi"
    whole, regions = content(first), (trained / "nroi.npz").read_bytes()
    assert len(whole) == 8
    # Half of the files lost: made again as they were, from the same regions.
    for path in sorted(first.glob("*.npy"))[::2]:
        path.unlink()
    assert run("infer_cam.py", *flags(trained, folder_root, first)).returncode == 0
    assert content(first) == whole
    # The regions lost as well.
    (trained / "nroi.npz").unlink()
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "second")).returncode == 0
    assert content(tmp_path / "second") == whole
    assert (trained / "nroi.npz").read_bytes() == regions
    # Batches of several images.
    batched = flags(trained, folder_root, tmp_path / "b", "--batch-size", 4)
    assert run("infer_cam.py", *batched).returncode == 0
    for name in whole:
        ours, theirs = load_cam(first / name), load_cam(tmp_path / "b" / name)
        np.testing.assert_allclose(ours.cam, theirs.cam, atol=2e-2)
    # Without the gate the maps are others, and the two never share a folder.
    off = flags(trained, folder_root, tmp_path / "off", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    assert content(tmp_path / "off") != whole
    mixed = run("infer_cam.py", *flags(trained, folder_root, first, "--gate", "none"))
    assert_refused(mixed, "another gate")
    # Both from one pass; a lost file of either kind is made again.
    both = flags(trained, folder_root, tmp_path / "both", "--keep-plain")
    for lost in (None, "a1.npy", "plain/a1.npy"):
        if lost:
            (tmp_path / "both" / lost).unlink()
        assert run("infer_cam.py", *both).returncode == 0
        assert content(tmp_path / "both") == whole
        assert content(tmp_path / "both" / "plain") == content(tmp_path / "off")
    post = json.loads((tmp_path / "both" / "plain" / "made_from.json").read_text())["post"]
    assert post["gate"] == "none"
    assert_refused(run("infer_cam.py", *both, "--gate", "none"), "--keep-plain")


@pytest.mark.slow
def test_ranks_give_the_same_bytes(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    (trained / "nroi.npz").unlink()
    result = run_ranks(
        2, tmp_path / "texts", "infer_cam.py", *flags(trained, folder_root, tmp_path / "two")
    )
    assert result.returncode == 0, result.stderr
    assert (trained / "nroi.npz").read_bytes() == regions
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_regions_of_another_checkpoint_or_damaged_ones_are_one_line(
    trained, folder_root, tmp_path
) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    path = trained / "nroi.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    damaged = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "y"))
    assert_refused(damaged, "nroi.npz is no whole file of regions", "remove it")
    path.write_bytes(whole)
    with np.load(path) as content:
        noted = json.loads(bytes(content["about"]))["made_from"]
    save_regions(path, read_regions(path)[0], noted | {"checkpoint_sha256": "0" * 64})
    other = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "y"))
    assert_refused(other, "nroi.npz differs in checkpoint_sha256", "remove it")
    assert not list((tmp_path / "y").glob("*.npy"))
    path.unlink()


def test_other_scales_have_regions_of_their_own(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    inodes = set()
    for _ in range(2):  # a restart finds them
        mirrored = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "x", "--no-mirror"))
        assert mirrored.returncode == 0, mirrored.stderr
        inodes.add((tmp_path / "x" / "nroi.npz").stat().st_ino)
    assert len(inodes) == 1
    assert (trained / "nroi.npz").read_bytes() == regions
    assert (tmp_path / "x" / "nroi.npz").read_bytes() != regions


def ids_in(path: Path) -> list[str]:
    return read_regions(path)[0].image_ids


def test_regions_are_those_of_the_training_list_whatever_is_inferred(
    trained, folder_root, tmp_path
) -> None:
    regions = trained / "nroi.npz"
    regions.unlink(missing_ok=True)
    val = ("--list", "val")
    done = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "val", *val))
    assert done.returncode == 0, done.stderr
    assert "gate: regions of 8 images of train" in done.stdout
    assert ids_in(regions) == sorted(FOLDER_IMAGES)
    assert len(content(tmp_path / "val")) == 3
    # New photographs, without the training list: the run's regions are used.
    new = shutil.copytree(folder_root, tmp_path / "new")
    (new / "lists" / "train.txt").unlink()
    (new / "images" / "empty.jpg").unlink()
    done = run("infer_cam.py", *flags(trained, new, tmp_path / "cam", *val))
    assert done.returncode == 0, done.stderr
    assert str(regions) in done.stdout
    assert content(tmp_path / "cam") == content(tmp_path / "val")
    # Without them, too: then they are those of the list that is inferred, beside its CAMs.
    regions.unlink()
    done = run("infer_cam.py", *flags(trained, new, tmp_path / "other", *val))
    assert done.returncode == 0, done.stderr
    assert "gate: regions of 3 images of val" in done.stdout
    assert not regions.exists()
    assert ids_in(tmp_path / "other" / "nroi.npz") == ["a1", "my photo", "v1.2.x"]


def test_a_training_list_that_is_not_whole_is_named_and_does_without(
    trained, folder_root, tmp_path
) -> None:
    (trained / "nroi.npz").unlink(missing_ok=True)
    root = shutil.copytree(folder_root, tmp_path / "part")
    (root / "images" / "c5.jpg").unlink()
    done = run("infer_cam.py", *flags(trained, root, tmp_path / "cam", "--list", "val"))
    assert done.returncode == 0, done.stderr
    assert "training list cannot be sampled: image of 'c5' does not exist" in done.stdout
    assert ids_in(tmp_path / "cam" / "nroi.npz") == ["a1", "my photo", "v1.2.x"]
    assert not (trained / "nroi.npz").exists()


def test_bad_images_are_left_out_of_the_sample_also_in_a_restart(
    trained, folder_root, tmp_path
) -> None:
    (trained / "nroi.npz").unlink(missing_ok=True)
    root = shutil.copytree(folder_root, tmp_path / "bad")
    (root / "images" / "c5.jpg").write_bytes(b"no image")
    base = flags(trained, root, tmp_path / "cam")
    assert_refused(run("infer_cam.py", *base), "c5.jpg")
    done = run("infer_cam.py", *base, "--skip-bad-images")
    assert done.returncode == 0, done.stderr
    assert ids_in(trained / "nroi.npz") == sorted(set(FOLDER_IMAGES) - {"c5"})
    (trained / "nroi.npz").unlink()


def test_an_export_has_regions_beside_its_cams(trained, folder_root, tmp_path) -> None:
    """It lies beside the checkpoint by default, whose regions are the checkpoint's."""
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    assert run("network/export.py", trained / "checkpoint.pth").returncode == 0
    export = next(trained.glob("*.safetensors"))
    base = flags(trained, folder_root, tmp_path / "two")
    base[1] = export
    done = run("infer_cam.py", *base)
    assert done.returncode == 0, done.stderr
    assert (trained / "nroi.npz").read_bytes() == regions
    assert (tmp_path / "two" / "nroi.npz").is_file()
    for name, values in content(tmp_path / "one").items():
        assert content(tmp_path / "two")[name] == values
    image = next((folder_root / "images").glob("*.jpg"))
    shown = run("network/predict/__main__.py", image, "--checkpoint", export, "--classes", "disc")
    assert shown.returncode == 0, shown.stderr
    assert "without the gate" in shown.stderr
    export.unlink()


def test_neither_stride_nor_batches_change_the_regions(
    trained, folder_root, tmp_path, monkeypatch
) -> None:
    found = []
    monkeypatch.setattr("network.contrast.gate.LARGEST", 3)
    for number, more in enumerate(((), ("--cam-stride", 8), ("--batch-size", 4))):
        (trained / "nroi.npz").unlink(missing_ok=True)
        infer_cam.main(list(map(str, flags(trained, folder_root, tmp_path / str(number), *more))))
        found.append(read_regions(trained / "nroi.npz")[0])
    (trained / "nroi.npz").unlink()
    one, strided, batched = found
    assert np.array_equal(one.region, strided.region)
    assert np.array_equal(one.owner, batched.owner)
    assert len(set(one.owner.tolist())) == 3, "the cap"
    np.testing.assert_allclose(batched.region, one.region, atol=1e-4)


def test_a_folder_of_another_run_is_refused_before_regions_are_collected(
    trained, folder_root, tmp_path
) -> None:
    off = flags(trained, folder_root, tmp_path / "off", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    (trained / "nroi.npz").unlink(missing_ok=True)
    mixed = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "off"))
    assert_refused(mixed, "another gate")
    assert not (trained / "nroi.npz").exists()


def test_other_methods_take_it_by_a_flag(folder_root, tmp_path) -> None:
    result = run("train_fbr.py", *train_flags(folder_root, tmp_path / "run", method="cam", steps=1))
    assert result.returncode == 0, result.stderr
    for gate, made in ((), False), (("--gate", "nroi"), True):
        out = tmp_path / f"cam-{made}"
        assert (
            run("infer_cam.py", *flags(tmp_path / "run", folder_root, out, *gate)).returncode == 0
        )
        assert (tmp_path / "run" / "nroi.npz").is_file() == made


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Pretrained weights of the slim backbone."""
    path = tmp_path_factory.mktemp("weights") / "slim.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        safetensors.torch.save_file(build_backbone("resnet38d_slim").state_dict(), path)
    return path


def gate_alone(cams: Path, root: Path, out: Path, weights: Path, *more: object):
    base = ["--method", "gate", "--cam-dir", cams, "--backbone", "resnet38d_slim"]
    base += ["--weights", weights, "--dataset", "folder", "--root", root, "--list", "train"]
    base += ["--out", out, "--scales", 1, "--num-workers", 0, "--device", "cpu"]
    return run("infer_cam.py", *base, *more)


@pytest.mark.parametrize("layout", ["native", "irn", "psa"])
def test_anyones_cams_are_gated(layout, trained, weights, folder_root, tmp_path) -> None:
    """By a frozen backbone, without a checkpoint; the layout of the files changes nothing."""
    off = flags(trained, folder_root, tmp_path / "plain", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    convert = ["--cam-dir", tmp_path / "plain", "--out", tmp_path / layout, "--to", layout]
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    assert run("data/convert_cams.py", *convert, *data).returncode == 0
    result = gate_alone(tmp_path / layout, folder_root, tmp_path / "gated", weights)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "gated" / "nroi.npz").is_file()
    plain = gate_alone(tmp_path / layout, folder_root, tmp_path / "off", weights, "--gate", "none")
    assert plain.returncode == 0, plain.stderr
    changed = 0
    for path in sorted((tmp_path / "plain").glob("*.npy")):
        before, kept, after = (
            load_cam(tmp_path / n / path.name) for n in ("plain", "off", "gated")
        )
        assert before.class_index.tolist() == after.class_index.tolist()
        assert before.cam.shape == after.cam.shape
        np.testing.assert_allclose(kept.cam, before.cam, atol=1e-3)
        changed += bool(np.abs(after.cam - kept.cam).max(initial=0) > 0.01)
    assert changed > 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "cam"], ["--checkpoint is needed"]),
        (["--method", "gate"], ["--weights is needed by --method gate"]),
        (["--method", "gate", "--weights", "no.pth"], ["no.pth"]),
        (["--checkpoint", "x.pth", "--weights", "pypi"], ["only by it"]),
        (["--method", "gate", "--weights", "pypi", "--set", "beta=5"], ["takes no"]),
        (["--method", "gate", "--weights", "pypi", "--background", "first"], ["takes no"]),
    ],
)
def test_a_gate_without_a_network_is_one_line(more, words, folder_root, tmp_path) -> None:
    base = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--out", tmp_path]
    assert_refused(run("infer_cam.py", *base, *more), *words)


def test_a_folder_of_foreign_cams_is_not_an_output(weights, trained, folder_root, tmp_path) -> None:
    """Its files would count as done: plain CAMs that are said to be gated."""
    off = flags(trained, folder_root, tmp_path / "plain", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    (tmp_path / "plain" / "made_from.json").unlink()
    before = content(tmp_path / "plain")
    same = gate_alone(tmp_path / "plain", folder_root, tmp_path / "plain", weights)
    assert_refused(same, "files that this command did not make", "choose another --out")
    assert content(tmp_path / "plain") == before


def test_foreign_cams_of_other_classes_are_refused(weights, folder_root, tmp_path) -> None:
    """Such as keys that count from 1: the gated map of the image's class would be 0 everywhere."""
    for image_id, (classes, (width, height), _) in FOLDER_IMAGES.items():
        values = [FOLDER_CLASSES.index(name) for name in classes]
        keys = [1] if image_id == "a1" else values
        maps = np.random.default_rng(0).random((len(keys), height, width)).astype(np.float32)
        (tmp_path / "cams").mkdir(exist_ok=True)
        content = {"keys": np.array(keys, np.int64), "cam": 0, "high_res": maps}
        np.save(tmp_path / "cams" / f"{image_id}.npy", np.array(content, dtype=object))
    result = gate_alone(tmp_path / "cams", folder_root, tmp_path / "gated", weights)
    words = ("a1.npy has maps of the classes 2 and none of class 1", "other labels")
    assert_refused(result, *words)


def test_a_background_row_of_foreign_cams_stays(weights, folder_root, tmp_path) -> None:
    """As in SIPE's and AMN's files; the gate then lowers classes only."""
    for image_id, (classes, (width, height), _) in FOLDER_IMAGES.items():
        rng = np.random.default_rng(len(image_id))
        values = sorted(FOLDER_CLASSES.index(name) + 1 for name in classes)
        maps = rng.random((1 + len(values), height, width)).astype(np.float32)
        save_cam(tmp_path / "cams" / f"{image_id}.npy", Cam(np.array([0, *values], "u1"), maps))
    done = gate_alone(tmp_path / "cams", folder_root, tmp_path / "gated", weights)
    assert done.returncode == 0, done.stderr
    lower = 0
    for image_id in FOLDER_IMAGES:
        before, after = (load_cam(tmp_path / n / f"{image_id}.npy") for n in ("cams", "gated"))
        assert before.class_index.tolist() == after.class_index.tolist()
        np.testing.assert_allclose(after.cam[0], before.cam[0], atol=1e-3)
        assert (after.cam[1:] <= before.cam[1:] + 1e-3).all()
        lower += int((after.cam[1:] < before.cam[1:] - 0.01).sum())
    assert lower > 100
    rows = load_cam(tmp_path / "cams" / "d6.npy").foreground()
    save_cam(tmp_path / "cams" / "d6.npy", rows)
    mixed = gate_alone(tmp_path / "cams", folder_root, tmp_path / "mixed", weights)
    assert_refused(mixed, "d6.npy has no background row")
    for image_id in FOLDER_IMAGES:  # the other way round, and the first CAM has no row at all
        rows = load_cam(tmp_path / "cams" / f"{image_id}.npy")
        if image_id == "a1":
            rows = Cam(rows.class_index[:0], rows.cam[:0])
        elif image_id != "c5":
            rows = rows.foreground()
        save_cam(tmp_path / "cams" / f"{image_id}.npy", rows)
    mixed = gate_alone(tmp_path / "cams", folder_root, tmp_path / "other", weights)
    assert_refused(mixed, "c5.npy has a background row, other CAMs of the folder none")


def test_a_gate_is_not_trained(capsys) -> None:
    with pytest.raises(SystemExit):
        train_fbr.main(["--method", "gate", "--out", "x"])
    assert "invalid choice: 'gate'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fbr", "fbr_amn"])
@pytest.mark.parametrize("count", [1, 4])
def test_training_pictures_show_cam_gate_and_product(name: str, count: int) -> None:
    method, batch = make_method(name).eval(), part(make_batch(MIXED), slice(count))
    with torch.no_grad():
        maps = method.pictures(batch)
    assert torch.equal(maps["gated CAM"], over_maximum(maps["cam"] * maps["gate"]))
    present = batch["label"][0] > 0
    assert (maps["gate"][present] > 0).all()
    assert (maps["gate"][~present] == 0).all()
    image = (batch["image"][0].clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    names = [str(index) for index in range(method.num_classes)]
    of = functools.partial(map_panels, image, bg_threshold=0.22, class_names=names)
    assert list(of(maps)) == [*maps, "label"]
    # The pseudo label is that of the gated CAM.
    maps["gated CAM"] = torch.zeros_like(maps["gated CAM"])
    caption, nothing = of(maps)["label"]
    assert caption == "pseudo label: background"
    assert not np.array_equal(nothing, of({"cam": maps["cam"]})["label"][1])


def test_predict_shows_the_gate_of_the_run(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "cam")).returncode == 0
    image = next((folder_root / "images").glob("*.jpg"))
    base = [image, "--checkpoint", trained / "checkpoint.pth", "--classes", "disc"]
    sizes = []
    for number, more in enumerate(((), ("--gate", "none"))):
        out = tmp_path / f"{number}.png"
        result = run("network/predict/__main__.py", *base, *more, "--out", out, "--device", "cpu")
        assert result.returncode == 0, result.stderr
        with Image.open(out) as picture:
            sizes.append(picture.width)
    assert sizes[0] == sizes[1] / 3 * 5  # image, CAM, gate, gated CAM, mask
    (trained / "nroi.npz").unlink()
    wanted = run(
        "network/predict/__main__.py", *base, "--gate", "nroi", "--out", tmp_path / "x.png"
    )
    assert_refused(wanted, "nroi.npz does not exist", "run infer_cam.py first")


@pytest.mark.parametrize("name", [None, 3, ["train"], "no such list", "../train"])
def test_a_checkpoint_that_names_no_list_has_no_training_list(
    folder_root: Path, name: object
) -> None:
    catalog = open_catalog("folder", folder_root)
    ids = catalog.ids("train")
    assert training_ids(catalog, {"list": "train", "list_sha256": list_hash(ids)}) == ids
    assert training_ids(catalog, {"list": name, "list_sha256": list_hash(ids)}) is None
    assert training_ids(catalog, {}) is None
