"""The embedded dataset `toy`: eight VOC classes drawn by this program, for runs without a download.

`python -m data.toy --root R` writes it; `--dataset toy` does so by itself where it is missing. The
folder has VOC's layout (`JPEGImages`, `SegmentationClassAug`, `saliency`, `labels.csv`,
`cls_labels.npy`, lists under `ImageSets/Segmentation`), `classes.txt`, and `context/`: where the
picture shows what tends to stand by a class without being part of it, as the mask value of that
class. Seven of the eight classes have such a context in about 85 % of their pictures; it appears
in a few without them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from data.toy.drawing.scene import CLASS_NAMES, Sample, make_sample
from tool.formats.mask import save_mask

VERSION = 2
MARKER = "toy.json"
LISTS = "ImageSets/Segmentation"
FOLDERS = ("JPEGImages", "SegmentationClassAug", "saliency", "context", LISTS)


def write_toy(root: Path, *, seed: int = 0, train: int = 240, val: int = 120) -> None:
    """Write the dataset to `root`, whole or not at all; deterministic by `seed`.

    An image depends on `seed` and its number only: a smaller dataset holds the first images of a
    larger one with the same number of train images. An older or damaged copy in `root` is replaced.

    Raises:
        ValueError: a count below 1, or `root` holds files that are no copy of this dataset.
    """
    if min(train, val) < 1:
        raise ValueError(f"toy needs at least one train and one val image, not {train} and {val}")
    root = Path(root)
    settings = {"version": VERSION, "seed": seed, "train": train, "val": val}
    if is_complete(root) and _settings(root) == settings:
        return
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file: choose another --root for the toy dataset")
    if root.exists() and _settings(root) is None and any(root.iterdir()):
        raise ValueError(f"{root} holds files that are not the toy dataset: choose another --root")
    root.parent.mkdir(parents=True, exist_ok=True)
    with _sibling(root) as fresh:
        _write_all(fresh, seed=seed, train=train, val=val)
        (fresh / MARKER).write_text(json.dumps(settings) + "\n")
        _install(fresh, root, settings)


def is_complete(root: Path) -> bool:
    """Whether `write_toy` of this version finished a dataset, of any seed and size, in `root`."""
    settings = _settings(root)
    if settings is None or settings.get("version") != VERSION:
        return False
    names = (*FOLDERS, "classes.txt", "labels.csv", f"{LISTS}/train.txt", f"{LISTS}/val.txt")
    return all((root / name).exists() for name in names)


def _settings(root: Path) -> dict | None:
    """What the marker file says; None where there is none or it is broken."""
    try:
        settings = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


@contextlib.contextmanager
def _sibling(root: Path) -> Iterator[Path]:
    """An empty folder beside `root`, removed in the end unless it was renamed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _install(fresh: Path, root: Path, settings: dict) -> None:
    """Rename `fresh` to `root`; a process that was quicker with the same dataset wins."""
    if is_complete(root) and _settings(root) == settings:
        return
    fresh.chmod(0o755)
    with _sibling(root) as old:
        if root.exists():
            os.replace(root, old)
        try:
            os.replace(fresh, root)
        except OSError:
            if not is_complete(root):
                raise


def _write_all(root: Path, *, seed: int, train: int, val: int) -> None:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    rows = ["image_id,classes"]
    labels = {}
    for index in range(train + val):
        sample = make_sample(np.random.default_rng([seed, index]))
        image_id = f"toy_{index:06d}"
        _write_sample(root, image_id, sample)
        labels[image_id] = np.zeros(len(CLASS_NAMES), np.float32)
        labels[image_id][[value - 1 for value in sample.classes]] = 1
        rows.append(f"{image_id},{';'.join(CLASS_NAMES[value - 1] for value in sample.classes)}")
    (root / "labels.csv").write_text("".join(f"{row}\n" for row in rows))
    field = np.array(labels, dtype=object)  # the pickled dictionary that the field's code expects
    np.save(root / "cls_labels.npy", field, allow_pickle=True)
    ids = [f"toy_{index:06d}\n" for index in range(train + val)]
    (root / LISTS / "train.txt").write_text("".join(ids[:train]))
    (root / LISTS / "val.txt").write_text("".join(ids[train:]))


def _write_sample(root: Path, image_id: str, sample: Sample) -> None:
    sample.image.save(root / "JPEGImages" / f"{image_id}.jpg", quality=92)
    save_mask(root / "SegmentationClassAug" / f"{image_id}.png", sample.mask)
    Image.fromarray(sample.saliency).save(root / "saliency" / f"{image_id}.png")
    Image.fromarray(sample.context).save(root / "context" / f"{image_id}.png")
