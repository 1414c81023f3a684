"""Find the background regions of the NROI gate: in a file, or in a sample of images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.catalog import Catalog
from data.dataset import InferDataset
from data.readable import ImageList
from tool.cli import one_line
from tool.files import list_hash
from tool.formats.regions import REGIONS, differing, load_regions, read_regions
from tool.progress import derive_seed
from tool.train.run_directory import CHECKPOINT

SAMPLE, PER_CLASS = 128, 8  # images of a sample, and at least per class
FEWEST, SHARE = 32, 8  # of a short list an eighth, but no fewer images


@dataclasses.dataclass(frozen=True)
class RegionSource:
    """The source of a gate's regions: their file, and the images to make it from.

    Attributes:
        path: The file of the regions.
        made_from: The note of provenance that the file has, or gets.
        seed: Keys the k-means of each image.
        sample: The images from which the file is made; None if it exists.
        of: Name of the list that the sample is drawn from.
    """

    path: Path
    made_from: dict[str, Any]
    seed: int
    sample: InferDataset | None = None
    of: str = ""

    def note(self) -> dict[str, Any]:
        """Return the entries about the gate in the provenance note of the maps."""
        return {name: self.made_from[name] for name in ("sample_sha256", "settings")}


def region_source(
    dataset: InferDataset,
    images: ImageList,
    config: Mapping[str, Any],
    made_from: Mapping[str, Any],
    *,
    checkpoint: Path | None,
    folder: Path,
    report: Callable[[str], object],
) -> RegionSource:
    """Return the source of the regions for the images of a list.

    The run's own file is used whatever list is inferred. If it does not exist, a sample of the
    training list is collected, and the file lies in the run directory. The file lies in `folder` if
    it cannot be the run's own: the run's file was made otherwise, such as at other scales; the
    training list is not in the dataset, and the sample is one of the list that is inferred; or the
    checkpoint lies in no run directory.

    Args:
        dataset: The images that are inferred.
        images: Their list.
        config: Configuration of the run.
        made_from: The note that the file must have, such as the checkpoint's hash and the gate's
            `settings`.
        checkpoint: The checkpoint of the run; None if there is none.
        folder: The folder of the maps.
        report: Called with a line that tells why the training list was not sampled.

    Raises:
        ValueError: The method infers without labels, or the run's file is damaged or of another
            checkpoint.
    """
    if not dataset.with_label:
        raise ValueError(
            "the gate needs image labels, and this method infers without: pass --gate none"
        )
    catalog, seed = dataset.catalog, config.get("seed", 0)
    facts = {**made_from, "class_names": list(catalog.class_names)}
    of_run = run_file(checkpoint)
    if of_run is not None and of_run.is_file():
        _, noted = read_regions(of_run)
        differ = differing(noted, facts)
        if {"checkpoint_sha256", "class_names"} & set(differ):
            load_regions(of_run, facts)
        elif not differ and "sample_sha256" in noted:
            return RegionSource(of_run, facts | {"sample_sha256": noted["sample_sha256"]}, seed)
    writable = of_run is not None and os.access(of_run.parent, os.W_OK) and not of_run.exists()
    trained = training_ids(catalog, config)
    if trained is not None:
        path = of_run if of_run is not None and writable else folder / REGIONS
        try:
            sample, sha256 = draw(dataset, trained, images, seed)
            facts["sample_sha256"] = sha256
            return RegionSource(path, facts, seed, sample, config["list"])
        except (FileNotFoundError, ValueError) as error:
            report(f"gate: the training list cannot be sampled: {one_line(error)}")
    sample, sha256 = draw(dataset, images.all_ids, images, seed)
    facts["sample_sha256"] = sha256
    return RegionSource(folder / REGIONS, facts, seed, sample, images.name)


def draw(
    dataset: InferDataset, ids: list[str], images: ImageList, seed: int
) -> tuple[InferDataset, str]:
    """Return a sample of a list, to be inferred as `dataset` is, and the hash of its ids.

    Mirrors are left out: features never come from them, and the maps hardly change. It halves the
    time. If the list is the one that is inferred, images that it leaves out are left out here, too.
    They count for the hash, so that `--skip-bad-images` does not change it.

    Raises:
        FileNotFoundError: An image or a file of a previous stage is missing.
        ValueError: An image has no label.
    """
    sample = sample_ids(ids, dataset.catalog.label, seed=seed)
    readable = set(images.ids) if ids == images.all_ids else set(sample)
    chosen = InferDataset(
        dataset.catalog,
        [image_id for image_id in sample if image_id in readable],
        views=dataclasses.replace(dataset.views, mirror=False),
        inputs=dataset.inputs,
        previous=dataset.previous,
    )
    return chosen, list_hash(sample)


def run_file(checkpoint: Path | None) -> Path | None:
    """Return the path of the regions of a run; None if the checkpoint lies in no run directory."""
    if checkpoint is None or checkpoint.name != CHECKPOINT:
        return None
    folder = checkpoint.parent
    return folder / REGIONS if (folder / "config.json").is_file() else None


def training_ids(catalog: Catalog, config: Mapping[str, Any]) -> list[str] | None:
    """Return the list that a run was trained on; None if the dataset does not have it.

    Args:
        catalog: The dataset.
        config: Configuration of the run.
    """
    name = config.get("list")
    if not isinstance(name, str):
        return None
    try:
        ids = catalog.ids(name)
    except (FileNotFoundError, ValueError):
        return None
    return ids if list_hash(ids) == config.get("list_sha256") else None


def sample_ids(ids: Sequence[str], label: Callable[[str], np.ndarray], *, seed: int) -> list[str]:
    """Choose the images of a list whose regions are collected.

    They are `SAMPLE` images, an eighth of a shorter list but at least 32. Then come the images, in
    the same random order, with a class that fewer than `PER_CLASS` chosen images have. Classes that
    the list lacks, or that are rare in it, thus cost no more images than they have.

    Args:
        ids: The list.
        label: Returns the (K,) label of an image.
        seed: Keys the choice.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "gate", "sample"))
    order = torch.randperm(len(ids), generator=generator).tolist()
    wanted = max(FEWEST, min(SAMPLE, len(ids) // SHARE))
    chosen, counts = [], np.zeros(1)
    for index in order:
        has = label(ids[index]) > 0
        if len(chosen) < wanted or bool((has & (counts < PER_CLASS)).any()):
            chosen.append(ids[index])
            counts = counts + has
    return chosen
