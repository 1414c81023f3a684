"""The images of the pictures of a run: the same ones each time, whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.data import default_collate

from data.dataset import TrainDataset
from tool.train.batch import Batch
from tool.train.engine import to_device
from tool.train.pictures import Shown

IMAGES = 8


def shown_images(
    dataset: TrainDataset, device: torch.device, transform: Callable[[Batch], Batch]
) -> Shown:
    """Load the images that the pictures of a run show, which depend on its list alone.

    Args:
        dataset: The images that the run trains on, and what its method reads of them.
        device: Where the method computes.
        transform: Turns a batch on the device into one that the method expects.

    Raises:
        ValueError: A file is broken; names it.
    """
    catalog, ids = dataset.catalog, chosen(dataset.ids)
    plain = dataset.whole(ids)
    batch = default_collate([plain[0, place] for place in range(len(ids))])
    return Shown(
        batch=transform(to_device(batch, device)),
        class_names=catalog.class_names,
        truth=[catalog.mask_if_there(image_id) for image_id in ids],
        saliency=[catalog.saliency_if_there(image_id) for image_id in ids],
    )


def chosen(ids: list[str]) -> list[str]:
    """Return at most `IMAGES` ids, evenly spaced in a list."""
    count = min(IMAGES, len(ids))
    return [ids[place * len(ids) // count] for place in range(count)]
