"""The embedded dataset `toy`: eight VOC classes drawn by this program, for runs without a download.

`python -m data.toy --root R` writes it. With `--dataset toy` a stage writes it by itself if it is
missing. The folder has VOC's layout (`JPEGImages`, `SegmentationClassAug`, `saliency`,
`labels.csv`, `cls_labels.npy`, lists under `ImageSets/Segmentation`), and `classes.txt`.

It also has the folder `context`. The context of a class is something that is often near an object
of the class without being part of it, such as the rails of a train. Its maps mark the pixels of a
context with the mask value of the class. Seven of the eight classes have a context, which is in
about 85 % of their pictures and in a few others.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import list_bytes
from data.labels import label_files
from data.toy.drawing.scene import CLASS_NAMES, Sample, make_sample
from tool.documents import read_dict
from tool.files import temporary_folder, write_json
from tool.formats.mask import save_mask

VERSION = 2
MARKER = "toy.json"
LISTS = "ImageSets/Segmentation"
FOLDERS = ("JPEGImages", "SegmentationClassAug", "saliency", "context", LISTS)


def write_toy(root: Path, *, seed: int = 0, train: int = 240, val: int = 120) -> None:
    """Write the dataset to `root`, completely or not at all.

    An image depends only on `seed` and its number; val images are numbered after train images. So
    of two datasets with the same number of train images, the smaller one holds the first images of
    the larger one. An older or damaged copy in `root` is replaced.

    Args:
        root: The folder. If it already holds the same dataset, nothing is written.
        seed: Seed of the pictures.
        train: Number of train images, at least 1.
        val: Number of val images, at least 1.

    Raises:
        ValueError: A number is below 1, or `root` is a file or holds files that are no copy of this
            dataset.
    """
    if min(train, val) < 1:
        raise ValueError(f"toy needs at least one train and one val image, not {train} and {val}")
    root = Path(root)
    settings = {"version": VERSION, "seed": seed, "train": train, "val": val}
    if is_complete(root) and read_dict(root / MARKER) == settings:
        return
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file: give a folder for the toy dataset (--root)")
    if root.exists() and read_dict(root / MARKER) is None and any(root.iterdir()):
        raise ValueError(
            f"{root} holds files that are not the toy dataset: choose another --root, or for your "
            "own data --dataset folder, voc12 or coco14"
        )
    # Write into a new folder beside `root`, and rename it when it is complete.
    root.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root.parent) as fresh:
        _write_all(fresh, seed=seed, train=train, val=val)
        write_json(fresh / MARKER, settings)
        _install(fresh, root, settings)


def is_complete(root: Path) -> bool:
    """Return whether `root` holds a complete dataset of this version, of any seed and size."""
    settings = read_dict(root / MARKER)
    if settings is None or settings.get("version") != VERSION:
        return False
    names = (*FOLDERS, "classes.txt", "labels.csv", f"{LISTS}/train.txt", f"{LISTS}/val.txt")
    return all((root / name).exists() for name in names)


def _install(fresh: Path, root: Path, settings: dict) -> None:
    """Rename `fresh` to `root`, unless another process has already finished the same dataset.

    Args:
        fresh: The folder of the new dataset.
        root: Its final path; an older copy there is removed.
        settings: The content of its marker file.
    """
    if is_complete(root) and read_dict(root / MARKER) == settings:
        return
    fresh.chmod(0o755)  # `mkdtemp` lets only the owner in
    # A folder cannot be renamed onto one with files, so move the old one away first.
    with temporary_folder(root.parent) as old:
        if root.exists():
            os.replace(root, old)
        try:
            os.replace(fresh, root)
        except OSError:
            # Another process may have renamed its own copy in between, which is as good.
            if not is_complete(root):
                raise


def _write_all(root: Path, *, seed: int, train: int, val: int) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    ids = [f"toy_{index:06d}" for index in range(train + val)]
    labels = {}
    # Write the images with their maps. The generator depends on the seed and the number only.
    for index, image_id in enumerate(ids):
        sample = make_sample(np.random.default_rng([seed, index]))
        _write_sample(root, image_id, sample)
        present = np.isin(np.arange(len(CLASS_NAMES)) + 1, sample.classes)
        labels[image_id] = present.astype(np.float32)  # (K,)
    # Write the lists, the names of the classes and the labels.
    lists = {f"{LISTS}/train.txt": ids[:train], f"{LISTS}/val.txt": ids[train:]}
    lists["classes.txt"] = CLASS_NAMES
    files = {root / name: list_bytes(lines) for name, lines in lists.items()}
    for path, content in (files | label_files(root, labels, CLASS_NAMES)).items():
        path.write_bytes(content)


def _write_sample(root: Path, image_id: str, sample: Sample) -> None:
    # The mask is a palette PNG, saliency and context are grey ones.
    sample.image.save(root / "JPEGImages" / f"{image_id}.jpg", quality=92)
    save_mask(root / "SegmentationClassAug" / f"{image_id}.png", sample.mask)
    Image.fromarray(sample.saliency).save(root / "saliency" / f"{image_id}.png")
    Image.fromarray(sample.context).save(root / "context" / f"{image_id}.png")
