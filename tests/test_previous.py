"""Seeds and CAMs of an earlier stage: aligned with the image, checked, named when missing."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_refused, command, environment, run, train_flags
from test_train_stage import assert_same_state, wait_for_step
from torch.utils.data import default_collate

from data.catalog import Catalog, open_catalog
from data.colour import DeviceTransform
from data.dataset import InferDataset, TrainDataset
from data.transforms import RandomScale
from tool.formats.cam import Cam, save_cam
from tool.formats.checkpoint import load_checkpoint
from tool.formats.mask import save_mask
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


def write_seeds(catalog: Catalog, folder: Path) -> Path:
    """Class 1 in the left half, background right, a row of 255 at the top."""
    folder.mkdir()
    for image_id in catalog.ids("train"):
        width, height = catalog.image_size(image_id)
        seed = np.zeros((height, width), np.uint8)
        seed[:, : width // 2] = 1
        seed[:4] = 255
        save_mask(folder / f"{image_id}.png", seed)
    return folder


def training(catalog: Catalog, folder: Path, **changes: object) -> TrainDataset:
    settings = {"resize": RandomScale(0.5, 1.5), "crop": 96, "seed": 0, "inputs": ("label", "seed")}
    previous = PreviousOutputs({"seed": folder} if folder else {})
    return TrainDataset(catalog, catalog.ids("train"), previous=previous, **(settings | changes))


def test_a_seed_follows_its_image(catalog: Catalog, tmp_path: Path) -> None:
    folder = write_seeds(catalog, tmp_path / "seed")
    width, height = catalog.image_size("a1")
    half = np.zeros((height, width, 3), np.uint8)
    half[:, : width // 2] = 255
    catalog.image_path("a1").unlink()
    Image.fromarray(half).save(catalog.root / "images" / "a1.png")
    dataset = training(catalog, folder)
    index, sides = dataset.ids.index("a1"), set()
    for epoch in range(12):
        batch = DeviceTransform((0, 0, 0), (1, 1, 1))(default_collate([dataset[epoch, index]]))
        seed, valid = batch["seed"][0], batch["valid"][0, 0]
        assert seed.dtype == torch.int64
        assert (seed[~valid] == 255).all()
        assert set(seed.unique().tolist()) <= {0, 1, 255}
        known = seed != 255
        bright = dataset[epoch, index]["image"][0] > 127
        assert ((seed == 1) == bright)[known].float().mean() > 0.97
        columns = torch.arange(96.0).expand(96, 96)
        sides.add(bool(columns[seed == 1].mean() > columns[seed == 0].mean()))
    assert sides == {True, False}, "mirrored and not"


def test_the_scale_is_uniform_over_its_range(catalog: Catalog, tmp_path: Path) -> None:
    dataset = training(catalog, tmp_path, inputs=("image", "label"), crop=200)
    index, (width, _) = dataset.ids.index("a1"), catalog.image_size("a1")
    widths = [int(dataset[e, index]["valid"][0].any(0).sum()) / width for e in range(60)]
    assert 0.5 <= min(widths) < 0.6
    assert 1.4 < max(widths) <= 1.5
    with pytest.raises(ValueError, match=r"scale 0\.\.1"):
        RandomScale(0, 1)


def test_without_jitter_the_colours_stay(catalog: Catalog, tmp_path: Path) -> None:
    plain = training(catalog, tmp_path, inputs=("image",), jitter=False)[0, 0]
    identity = torch.cat([torch.eye(3), torch.zeros(3, 3)], dim=1)
    torch.testing.assert_close(plain["jitter"], identity)


def test_inference_gives_seed_and_cam_of_the_image(catalog: Catalog, tmp_path: Path) -> None:
    seeds, cams = write_seeds(catalog, tmp_path / "seed"), tmp_path / "cam"
    width, height = catalog.image_size("a1")
    maps = np.linspace(0, 1, height * width, dtype=np.float32).reshape(1, height, width)
    save_cam(cams / "a1.npy", Cam(np.array([1], np.uint8), maps))
    inputs = ("image", "label", "seed", "cam")
    dataset = InferDataset(
        catalog,
        ["a1"],
        views=Views((1.0,)),
        inputs=inputs,
        previous=PreviousOutputs({"seed": seeds, "cam": cams}),
    )
    sample = dataset[0]
    assert sample["seed"].shape == (height, width)
    assert sample["seed"].dtype == torch.int64
    assert sample["cam"].shape == (catalog.num_classes, -(-height // 4), -(-width // 4))
    assert sample["cam"][1:].abs().max() == 0
    assert sample["cam"][0].mean() == pytest.approx(0.5, abs=0.01)


def test_what_is_missing_names_the_flag_or_the_command(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs seeds: pass --seed-dir"):
        training(catalog, None)
    with pytest.raises(FileNotFoundError, match=r"nothing.*crf_postprocess.py .*--seeds"):
        training(catalog, tmp_path / "nothing")
    folder = write_seeds(catalog, tmp_path / "seed")
    (folder / "d6.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 8 seeds .*d6.*crf_postprocess.py"):
        training(catalog, folder)
    with pytest.raises(FileNotFoundError, match=r"CAMs.*infer_cam.py"):
        InferDataset(
            catalog,
            ["a1"],
            views=Views((1.0,)),
            inputs=("cam",),
            previous=PreviousOutputs({"cam": folder}),
        )


def test_a_seed_that_does_not_fit_is_named(catalog: Catalog, tmp_path: Path) -> None:
    dataset = training(catalog, write_seeds(catalog, tmp_path / "seed"))
    index, path = dataset.ids.index("a1"), tmp_path / "seed" / "a1.png"
    save_mask(path, np.zeros((3, 5), np.uint8))
    with pytest.raises(ValueError, match=r"a1.png is 5x3, its image is 80x64"):
        dataset[0, index]
    save_mask(path, np.full((64, 80), 9, np.uint8))
    with pytest.raises(ValueError, match=r"a1.png has class 9: there are 3 classes"):
        dataset[0, index]


def amn_flags(root: Path, out: Path, seeds: Path, *, steps: int) -> list[object]:
    flags = train_flags(root, out, method="amn", steps=steps)
    return [*flags, "--seed-dir", seeds, "--long-side", 48, 80]


def infer_flags(root: Path, out: Path) -> list[object]:
    data = ["--dataset", "folder", "--root", root, "--list", "train"]
    return ["--checkpoint", out / "checkpoint.pth", *data, "--scales", 1, "--num-workers", 0]


@pytest.mark.slow
def test_amn_interrupted_goes_on_to_the_same_weights(
    catalog: Catalog, folder_dataset: Path, tmp_path: Path
) -> None:
    seeds = write_seeds(catalog, tmp_path / "seed")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = amn_flags(folder_dataset, whole, seeds, steps=12)
    assert run("train_fbr.py", *flags).returncode == 0
    flags = amn_flags(folder_dataset, parts, seeds, steps=12)
    process = subprocess.Popen(command("train_fbr.py", *flags), env=environment())
    wait_for_step(parts, 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert 2 <= load_checkpoint(parts / "checkpoint.pth")["step"] < 12
    assert run("train_fbr.py", *flags).returncode == 0
    one, two = (load_checkpoint(out / "checkpoint.pth") for out in (whole, parts))
    assert one["optimizer"]["state"], "Adam has a state"
    for part in ("model", "optimizer"):
        assert_same_state(one[part], two[part])


def test_amn_infers_with_its_seeds_alone(
    catalog: Catalog, folder_dataset: Path, tmp_path: Path
) -> None:
    seeds, out = write_seeds(catalog, tmp_path / "seed"), tmp_path / "run"
    assert run("train_fbr.py", *amn_flags(folder_dataset, out, seeds, steps=1)).returncode == 0
    infer = infer_flags(folder_dataset, out)
    assert_refused(run("infer_cam.py", *infer, "--out", tmp_path / "cam"), "--seed-dir")
    result = run("infer_cam.py", *infer, "--out", tmp_path / "cam", "--seed-dir", seeds)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "cam").glob("*.npy"))) == 8


def test_a_run_does_not_go_on_with_other_seeds(
    catalog: Catalog, folder_dataset: Path, tmp_path: Path
) -> None:
    one, other = (write_seeds(catalog, tmp_path / name) for name in ("one", "other"))
    (one / "crf.json").write_text('{"seed": [0.3, 0.05]}')
    (other / "crf.json").write_text('{"seed": [0.5, 0.05]}')
    out = tmp_path / "out"
    assert run("train_fbr.py", *amn_flags(folder_dataset, out, one, steps=2)).returncode == 0
    flags = amn_flags(folder_dataset, out, other, steps=2)
    assert_refused(run("train_fbr.py", *flags), "seeds", "another --out")


def test_seeds_without_a_note_are_known_by_their_files(
    catalog: Catalog, folder_dataset: Path, tmp_path: Path
) -> None:
    one, out = write_seeds(catalog, tmp_path / "one"), tmp_path / "out"
    flags = amn_flags(folder_dataset, out, one, steps=2)
    assert run("train_fbr.py", *flags).returncode == 0
    assert "is complete" in run("train_fbr.py", *flags).stdout
    save_mask(one / "a1.png", np.zeros((64, 80), np.uint8))
    assert_refused(run("train_fbr.py", *flags), "seeds", "another --out")


def test_maps_of_other_cams_or_seeds_do_not_mix(
    catalog: Catalog, folder_dataset: Path, tmp_path: Path
) -> None:
    seeds, out = write_seeds(catalog, tmp_path / "seed"), tmp_path / "run"
    assert run("train_fbr.py", *amn_flags(folder_dataset, out, seeds, steps=1)).returncode == 0
    infer = infer_flags(folder_dataset, out)
    infer += ["--out", tmp_path / "cam", "--seed-dir"]
    assert_refused(run("infer_cam.py", *infer, tmp_path / "typo"), "typo", "crf_postprocess.py")
    assert run("infer_cam.py", *infer, seeds).returncode == 0, "the typo claimed nothing"
    save_mask(seeds / "a1.png", np.zeros((64, 80), np.uint8))
    assert_refused(run("infer_cam.py", *infer, seeds), "another seeds")
