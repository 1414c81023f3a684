"""Every field of a training batch follows its image through the augmentation, and is documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from data.catalog import Catalog, open_catalog
from data.colour import DeviceTransform
from data.dataset import TrainDataset
from data.fields import FIELDS, TRUTH
from data.transforms import RandomScale, ScaleChoice, resize_of
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import save_mask
from tool.infer.kinds import KINDS
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views

CROP = 96
SIDE = 80  # of the image; white in its left half


@pytest.fixture
def catalog(folder_dataset: Path) -> Catalog:
    """The dataset; its image `a1` and all that belongs to it show the same left half."""
    catalog = open_catalog("folder", folder_dataset)
    half = np.zeros((SIDE, SIDE), np.uint8)
    half[:, : SIDE // 2] = 1
    catalog.image_path("a1").unlink()
    Image.fromarray(np.repeat(255 * half[..., None], 3, 2)).save(catalog.root / "images" / "a1.png")
    Image.fromarray(255 * half).save(catalog.saliency_path("a1"))
    save_mask(catalog.mask_path("a1"), half)
    for name in ("seed", "mask", "boundary"):
        save_mask(folder_dataset.parent / name / "a1.png", half)
    save_cam(folder_dataset.parent / "cam" / "a1.npy", Cam(np.array([1]), half[None] * 0.8))
    return catalog


def previous(catalog: Catalog, **changes: Path | None) -> PreviousOutputs:
    folders = {key: catalog.root.parent / key for key in KINDS} | changes
    return PreviousOutputs({key: folder for key, folder in folders.items() if folder})


def training(catalog: Catalog, *keys: str, **changes: Path | None) -> TrainDataset:
    return TrainDataset(
        catalog,
        ["a1"],
        inputs=("image", *keys),
        crop=CROP,
        resize=RandomScale(0.5, 1.5),
        seed=0,
        jitter=False,
        previous=previous(catalog, **changes),
    )


def batch_of(dataset: TrainDataset, epoch: int) -> dict:
    return DeviceTransform((0, 0, 0), (1, 1, 1))(default_collate([dataset[epoch, 0]]))


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_follows_its_image(catalog: Catalog, key: str) -> None:
    dataset, left = training(catalog, key), set()
    for epoch in range(12):
        batch = batch_of(dataset, epoch)
        white, valid = batch["image"][0, 0] > 0.5, batch["valid"][0, 0]
        values = batch[key][0]
        if key == "cam":
            assert values.shape == (catalog.num_classes, CROP // 4, CROP // 4)
            assert values[1:].abs().max() == 0
            assert 0 <= values.min() <= values.max() <= 1
            cells = torch.nn.functional.avg_pool2d((0.8 * white)[None, None].float(), 4)[0, 0]
            assert (values[0] - cells).abs().mean() < 0.04
        else:
            assert values.shape[-2:] == (CROP, CROP)
            shown = values.reshape(CROP, CROP).float()
            assert ((shown == 1) == white)[valid].float().mean() > 0.97
            assert (shown[~valid] == FIELDS[key].pad).all()
        columns = torch.arange(float(CROP)).expand(CROP, CROP)
        left.add(bool(columns[white].mean() < columns[valid & ~white].mean()))
    assert left == {True, False}, "mirrored and not"


def test_the_types_are_those_of_the_documentation(catalog: Catalog) -> None:
    batch = batch_of(training(catalog, *FIELDS), 0)
    types = {"seed": torch.int64, "mask": torch.int64, "boundary": torch.uint8}
    for key in FIELDS:
        assert batch[key].dtype == types.get(key, torch.float32), key
        assert f"| `{key}` |" in TrainDataset.__doc__
    assert "label" not in batch, "not one of the inputs: no labels are read"


def test_a_run_without_labels_needs_none(catalog: Catalog) -> None:
    (catalog.root / "labels.csv").unlink()
    assert batch_of(training(catalog, "mask"), 0)["mask"].shape == (1, CROP, CROP)
    with pytest.raises(FileNotFoundError, match="--labels"):
        training(catalog, "label", "mask")


def test_the_datasets_own_masks(catalog: Catalog) -> None:
    truth = training(catalog, "mask", mask=TRUTH)
    assert torch.equal(batch_of(truth, 3)["mask"], batch_of(training(catalog, "mask"), 3)["mask"])
    catalog.mask_path("a1").unlink()
    with pytest.raises(FileNotFoundError, match="mask of 'a1'"):
        training(catalog, "mask", mask=TRUTH)


@pytest.mark.parametrize("key", KINDS)
def test_what_is_missing_names_flag_and_command(catalog: Catalog, key: str) -> None:
    with pytest.raises(ValueError, match=f"pass --{key}-dir"):
        training(catalog, key, **{key: None})
    (next((catalog.root.parent / key).iterdir())).unlink()
    with pytest.raises(FileNotFoundError, match=r"a1.*run "):
        training(catalog, key)


@pytest.mark.parametrize("key", ["seed", "mask", "boundary", "cam"])
def test_another_size_is_named(catalog: Catalog, key: str) -> None:
    folder = catalog.root.parent / key
    if key == "cam":
        save_cam(folder / "a1.npy", Cam(np.array([1]), np.ones((1, 3, 5), np.float32)))
    else:
        save_mask(folder / "a1.png", np.zeros((3, 5), np.uint8))
    with pytest.raises(ValueError, match=r"a1\.(png|npy).*(5x3|3, 5)"):
        training(catalog, key)[0, 0]


def test_cams_of_an_image_without_a_class(catalog: Catalog) -> None:
    empty = Cam(np.zeros(0, np.uint8), np.zeros((0, SIDE, SIDE), np.float32))
    save_cam(catalog.root.parent / "cam" / "a1.npy", empty)
    batch = batch_of(training(catalog, "cam"), 0)
    assert batch["cam"].shape == (1, catalog.num_classes, CROP // 4, CROP // 4)
    assert batch["cam"].abs().max() == 0


def test_scales_are_a_range_or_choices(catalog: Catalog) -> None:
    assert isinstance(resize_of((0.5, 1.5), (1, 2)), RandomScale)
    assert resize_of(None, (30, 60)).longest_side == 60
    choice = resize_of((0.5, 1.0, 1.5), (1, 2))
    assert isinstance(choice, ScaleChoice)
    assert choice.longest_side is None
    image = catalog.read_image("a1")
    assert {choice(image).size[0] for _ in range(40)} == {40, 80, 120}
    assert resize_of((2.0,), (1, 2))(image).size == (160, 160)
    with pytest.raises(ValueError, match="not positive"):
        resize_of((0.5, -1.0, 2.0), (1, 2))


def test_views_are_scales_or_squares(catalog: Catalog) -> None:
    image = catalog.read_image("d6")
    width, height = image.size
    shapes = [tuple(view.shape) for view in Views((0.5, 2.0)).of(image)]
    assert shapes == [(3, round(height / 2), round(width / 2)), (3, 2 * height, 2 * width)]
    assert [tuple(v.shape) for v in Views(sides=(16, 48)).of(image)] == [(3, 16, 16), (3, 48, 48)]
    assert Views((1.0,)).note() == {"scales": [1.0]}
    assert Views(sides=(16,)).note() == {"sides": [16]}
    for wrong in ({"scales": ()}, {"sides": ()}, {"sides": (0,)}):
        with pytest.raises(ValueError, match="are not positive"):
            Views(**wrong)
