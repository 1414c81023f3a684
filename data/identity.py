"""Hashes of what a run reads of its dataset, so that a run cannot go on with other data.

They depend on names, sizes and contents, never on dates or on where the dataset is: a run goes on
with a copy of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.catalog import Catalog
from tool.files import file_hash
from tool.parallel.processes import cores


def data_hashes(
    catalog: Catalog, image_ids: Sequence[str], inputs: Sequence[str], *, with_masks: bool = False
) -> dict[str, str]:
    """Return the hash of each kind of data that a run reads, by its name in the run's config.

    Args:
        catalog: The dataset.
        image_ids: Every image of the list. One without a label or file counts as such: whoever
            needs it will say so.
        inputs: The batch keys of the method.
        with_masks: The run reads the dataset's own masks.
    """

    def label(image_id: str) -> str:
        return str(catalog.label(image_id).tolist() if catalog.has_label(image_id) else None)

    def size(image_id: str) -> str:
        return _of_file(image_id, catalog.image_path, lambda path: str(path.stat().st_size))

    def saliency(image_id: str) -> str:
        return _of_file(image_id, catalog.saliency_path, file_hash)

    def mask(image_id: str) -> str:
        return _of_file(image_id, catalog.mask_path, file_hash)

    found = {"images_sha256": _hash_of(image_ids, size)}
    if "label" in inputs:
        found["labels_sha256"] = _hash_of(image_ids, label)
    if "saliency" in inputs:
        found["saliency_sha256"] = _hash_of(image_ids, saliency)
    if with_masks:
        found["truth_sha256"] = _hash_of(image_ids, mask)
    return found


def _of_file(image_id: str, find: Callable[[str], Path], facts: Callable[[Path], str]) -> str:
    """Return the name and the facts of the file of an image; "none" if it has none."""
    try:
        path = find(image_id)
        return f"{path.suffix}\0{facts(path)}"
    except FileNotFoundError:
        return "none"


def _hash_of(image_ids: Sequence[str], facts: Callable[[str], str]) -> str:
    """Return the SHA-256 of the facts of images, in their order."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(cores()) as pool:
        for image_id, text in zip(image_ids, pool.map(facts, image_ids), strict=True):
            digest.update(f"{image_id}\0{text}\n".encode())
    return digest.hexdigest()
