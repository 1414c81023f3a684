"""Samples: keys, ranges, alignment of the fields, keyed randomness, checks at construction."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FOLDER_IMAGES
from PIL import Image
from torch.utils.data import default_collate

from data.catalog import Catalog, open_catalog
from data.colour import DeviceTransform
from data.dataset import InferDataset, TrainDataset
from data.transforms import RandomLongSide
from tool.infer.scales import Views, scaled_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    return open_catalog("folder", folder_dataset)


def training(catalog: Catalog, ids: list[str] | None = None, **changes: object) -> TrainDataset:
    settings = {
        "inputs": ("image", "label", "saliency"),
        "crop": 48,
        "seed": 0,
    }
    settings["resize"] = RandomLongSide(*changes.pop("long_side", (40, 90)))
    return TrainDataset(catalog, ids or catalog.ids("train"), **(settings | changes))


def finished(
    dataset: TrainDataset, epoch: int, index: int = 0, *, mean: tuple = MEAN, std: tuple = STD
) -> dict[str, object]:
    """A sample as a method sees it, without the N."""
    batch = DeviceTransform(mean, std)(default_collate([dataset[epoch, index]]))
    return {key: value[0] for key, value in batch.items()}


def add_image(catalog: Catalog, image: np.ndarray, saliency: np.ndarray) -> list[str]:
    """Put a lossless image "new" with label "disc" into the dataset."""
    Image.fromarray(image).save(catalog.root / "images" / "new.png")
    Image.fromarray(saliency).save(catalog.root / "saliency" / "new.png")
    with open(catalog.root / "labels.csv", "a") as file:
        file.write("new,disc\n")
    return ["new"]


def test_a_sample_has_the_documented_keys(catalog: Catalog) -> None:
    dataset = training(catalog)
    for index, (image_id, (classes, _, _)) in enumerate(FOLDER_IMAGES.items()):
        sample = finished(dataset, 0, index)
        assert set(sample) == {"image_id", "image", "label", "saliency", "valid"}
        assert sample["image_id"] == image_id
        forms = {
            "image": ((3, 48, 48), torch.float32),
            "label": ((3,), torch.float32),
            "saliency": ((1, 48, 48), torch.float32),
            "valid": ((1, 48, 48), torch.bool),
        }
        for key, (shape, dtype) in forms.items():
            assert type(sample[key]) is torch.Tensor
            assert (sample[key].shape, sample[key].dtype) == (shape, dtype)
        assert sample["label"].sum() == len(classes)
        assert 0 <= sample["saliency"].min() <= sample["saliency"].max() <= 1


def test_only_what_is_asked_for_is_loaded(catalog: Catalog) -> None:
    for path in (catalog.root / "saliency").iterdir():
        path.unlink()
    (catalog.root / "saliency").rmdir()
    assert "saliency" not in training(catalog, inputs=("image", "label"))[0, 0]
    with pytest.raises(
        ValueError, match=r"needs saliency, .*: python -m data\.saliency .* --saliency-root"
    ):
        training(catalog)


def test_padding_is_mean_colour_invalid_and_not_salient(catalog: Catalog) -> None:
    white = np.full((60, 40, 3), 255, np.uint8)
    ids = add_image(catalog, white, np.full((60, 40), 255, np.uint8))
    dataset = training(catalog, ids, crop=80, long_side=(60, 60))
    corners = set()
    for epoch in range(8):
        sample = finished(dataset, epoch)
        valid = sample["valid"]
        rows, columns = valid[0].any(1).nonzero()[:, 0], valid[0].any(0).nonzero()[:, 0]
        assert (len(rows), len(columns), int(valid.sum())) == (60, 40, 2400)
        corners.add((int(rows[0]), int(columns[0])))
        assert (sample["image"][~valid.expand(3, -1, -1)] == 0).all()
        assert (sample["image"][valid.expand(3, -1, -1)] != 0).all()
        assert (sample["saliency"] == valid).all()
    assert len(corners) > 4


def test_long_side_is_uniform_over_its_range_and_keeps_the_shape(catalog: Catalog) -> None:
    ids = add_image(catalog, np.zeros((40, 80, 3), np.uint8), np.full((40, 80), 255, np.uint8))
    dataset = training(catalog, ids, crop=64, long_side=(50, 53))
    drawn = set()
    for epoch in range(40):
        valid = dataset[epoch, 0]["valid"][0]
        height, width = int(valid.any(1).sum()), int(valid.any(0).sum())
        assert height == round(width / 2)
        drawn.add(width)
    assert drawn == {50, 51, 52, 53}


def test_saliency_follows_the_image(catalog: Catalog) -> None:
    saliency = np.zeros((60, 72), np.uint8)
    saliency[5:25, 40:70] = 255
    image = np.where(saliency[..., None] > 0, 220, 20).astype(np.uint8).repeat(3, axis=2)
    dataset = training(catalog, add_image(catalog, image, saliency), crop=64)
    sides = []
    for epoch in range(20):
        sample = dataset[epoch, 0]
        salient = sample["saliency"] > 127
        bright = sample["image"][:1] > 120
        assert (salient == bright).float().mean() > 0.98
        if salient.any():
            columns = torch.arange(64.0).expand(64, 64)
            side = columns[salient[0]].mean() - columns[sample["valid"][0]].mean()
            sides.append(float(side))
    assert min(sides) < -5 < 5 < max(sides), "both orientations occur"


def test_large_photographs_are_aligned_too(catalog: Catalog) -> None:
    saliency = np.zeros((900, 1200), np.uint8)
    saliency[200:500, 300:700] = 255
    ids = add_image(catalog, np.zeros((4, 4, 3), np.uint8), saliency)
    (catalog.root / "images" / "new.png").unlink()
    Image.fromarray(saliency).convert("RGB").save(catalog.root / "images" / "new.jpg")
    sample = training(catalog, ids, crop=90)[0, 0]
    bright = sample["image"][:1] > 120
    assert ((sample["saliency"] > 127) == bright).float().mean() > 0.98


def test_colour_jitter_has_its_range(catalog: Catalog) -> None:
    grey = np.full((30, 30, 3), 100, np.uint8)
    bright = np.full((30, 30), 255, np.uint8)
    dataset = training(catalog, add_image(catalog, grey, bright), crop=8)
    images = [finished(dataset, epoch, **PLAIN)["image"] for epoch in range(60)]
    values = torch.stack([image.mean() for image in images]) * 255
    assert 69 <= values.min() < 80
    assert 120 < values.max() <= 131
    red = np.zeros((30, 30, 3), np.uint8) + np.array([200, 80, 80], np.uint8)
    Image.fromarray(red).save(catalog.root / "images" / "new.png")
    images = [finished(dataset, epoch, **PLAIN)["image"] for epoch in range(60)]
    colours = torch.stack([image.mean((1, 2)) for image in images])
    assert (colours[:, 1] - colours[:, 2] > 0.05).any(), "the hue turns to yellow"
    assert (colours[:, 2] - colours[:, 1] > 0.05).any(), "and to violet"
    assert (colours[:, 0] - colours[:, 1:].amax(1) > 0).all(), "but no further"


def test_normalisation_is_that_of_the_backbone(catalog: Catalog) -> None:
    plain, scaled = finished(training(catalog), 0, **PLAIN), finished(training(catalog), 0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    expected = (plain["image"] - mean) / std * plain["valid"]
    assert 0 <= plain["image"].min() <= plain["image"].max() <= 1
    torch.testing.assert_close(scaled["image"], expected, atol=1e-5, rtol=1e-5)


def test_the_draw_is_keyed_by_seed_epoch_and_id(catalog: Catalog) -> None:
    def image(seed: int, epoch: int, ids: list[str], index: int) -> torch.Tensor:
        torch.rand(3)
        return training(catalog, ids, seed=seed)[epoch, index]["image"]

    reference = image(0, 0, ["a1", "b-4"], 0)
    assert torch.equal(reference, image(0, 0, ["b-4", "d6", "a1"], 2))
    assert not torch.equal(reference, image(1, 0, ["a1"], 0))
    assert not torch.equal(reference, image(0, 1, ["a1"], 0))
    (catalog.root / "images" / "b-4.jpeg").write_bytes(catalog.image_path("a1").read_bytes())
    (catalog.root / "saliency" / "b-4.png").write_bytes(catalog.saliency_path("a1").read_bytes())
    assert not torch.equal(reference, image(0, 0, ["b-4"], 0))


def test_the_ambient_generator_is_left_alone(catalog: Catalog) -> None:
    dataset = training(catalog)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_missing_files_are_found_at_construction(catalog: Catalog) -> None:
    ids = [*catalog.ids("train"), "gone", "lost", "off", "away"]
    with pytest.raises(FileNotFoundError, match=r"image of 'gone'.*in all: 4, also 'lost', 'off'"):
        training(catalog, ids)
    catalog.saliency_path("d6").unlink()
    with pytest.raises(FileNotFoundError, match=r"saliency map of 'd6'.*--saliency-root"):
        training(catalog)
    training(catalog, inputs=("image", "label"))


@pytest.mark.parametrize("make", [training, lambda catalog, ids: infer(catalog, ids=ids)])
def test_missing_labels_are_found_at_construction(catalog: Catalog, make: object) -> None:
    (catalog.root / "labels.csv").write_text("image_id,classes\na1,disc\n")
    with pytest.raises(ValueError, match=r"7 of 8 images have no label in .*'2007_000032'"):
        make(catalog, catalog.ids("train"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("image", "depth")}, "training cannot load input 'depth'"),
        ({"long_side": (50, 40)}, "long side 50..40"),
        ({"crop": 0}, "crop 0"),
    ],
)
def test_bad_settings(catalog: Catalog, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        training(catalog, **changes)


def test_empty_list(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="empty"):
        TrainDataset(catalog, [], inputs=(), crop=8, resize=RandomLongSide(8, 8), seed=0)
    with pytest.raises(ValueError, match="empty"):
        InferDataset(catalog, [], views=Views())


def test_saliency_of_another_size_is_an_error(catalog: Catalog) -> None:
    Image.new("L", (9, 9)).save(catalog.saliency_path("a1"))
    with pytest.raises(ValueError, match="9x9, image 'a1' is 80x64"):
        training(catalog)[0, 0]


def infer(catalog: Catalog, *, ids: list[str] | None = None, **changes: object) -> InferDataset:
    settings = {"views": Views(changes.pop("scales", (0.5, 1.0, 1.5)))}
    return InferDataset(catalog, ids or catalog.ids("train"), **(settings | changes))


def test_inference_gives_each_scale(catalog: Catalog) -> None:
    dataset = infer(catalog)
    for index, (image_id, (_, (width, height), _)) in enumerate(FOLDER_IMAGES.items()):
        sample = dataset[index]
        assert sample["image_id"] == image_id
        assert sample["size"] == (height, width)
        assert (sample["label"].numpy() == catalog.label(image_id)).all()
        for scale, image in zip(dataset.views.scales, sample["images"], strict=True):
            assert image.shape == (3, round(height * scale), round(width * scale))
            assert image.dtype == torch.uint8
    whole = torch.from_numpy(np.array(catalog.read_image(image_id))).permute(2, 0, 1)
    assert torch.equal(sample["images"][1], whole)


def test_inference_resizes_bicubically(catalog: Catalog) -> None:
    found = infer(catalog, scales=(2.0,))[0]["images"][0]
    image = catalog.read_image("a1").resize((160, 128), Image.Resampling.BICUBIC)
    assert torch.equal(found, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_inference_batches_images_of_one_size(catalog: Catalog) -> None:
    for index in range(4):
        catalog.read_image("a1").save(catalog.root / "images" / f"new{index}.png")
    names = ["new0", "d6", "new1", "new2", "a1", "b-4", "new3"]
    dataset = infer(catalog, ids=names, inputs=("image",))
    everything = range(len(dataset))
    assert dataset.batches(everything, 1) == [[index] for index in everything]
    for batch_size in (2, 3, 50):
        batches = dataset.batches(everything, batch_size)
        assert sorted(i for batch in batches for i in batch) == list(everything)
        for batch in batches:
            assert len(batch) <= batch_size
            assert len({dataset[index]["size"] for index in batch}) == 1
    assert dataset.batches([6, 5, 0, 1], 3) == [[6, 0], [5], [1]]
    assert dataset.batches(everything, 50) == [[0, 2, 3, 4, 6], [1], [5]]


def test_tiny_images_keep_a_pixel(catalog: Catalog) -> None:
    ids = add_image(catalog, np.zeros((1, 30, 3), np.uint8), np.full((1, 30), 255, np.uint8))
    assert infer(catalog, ids=ids, scales=(0.25,))[0]["images"][0].shape == (3, 1, 8)
    assert training(catalog, ids)[0, 0]["valid"].any()
    assert scaled_size(1, 1, 0.01) == (1, 1)


def test_inference_without_labels_reads_none(catalog: Catalog) -> None:
    (catalog.root / "labels.csv").unlink()
    assert "label" not in infer(catalog, inputs=("image",))[0]
    with pytest.raises(FileNotFoundError, match="--labels"):
        infer(catalog)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (float("inf"),), (float("nan"),)])
def test_bad_scales(catalog: Catalog, scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales"):
        infer(catalog, scales=scales)
