"""Hashes of what a run reads of its dataset and of previous stages.

A run cannot go on with other data. The hashes depend on names and contents, never on dates or on
where the dataset is: a run goes on with a copy of it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.catalog import Catalog
from data.dataset import InferDataset
from data.fields import TRUTH
from tool.files import file_hash, spelled
from tool.infer.kinds import KINDS
from tool.infer.previous import PreviousOutputs
from tool.parallel import dist
from tool.parallel.processes import cores
from tool.provenance import file_hashes, fingerprint


def data_hashes(
    catalog: Catalog,
    image_ids: Sequence[str],
    inputs: Sequence[str],
    *,
    with_masks: bool = False,
    previous: PreviousOutputs | None = None,
) -> dict[str, str]:
    """Return the hash of each kind of data that a run reads, by its name in the run's config.

    Under torchrun one rank reads the files, and all get its result.

    Args:
        catalog: The dataset.
        image_ids: Every image of the list. One without a label or file counts as such: whoever
            needs it will say so.
        inputs: The batch keys of the method.
        with_masks: The run reads the dataset's own masks.
        previous: The folders of files of previous stages. Their notes do not tell whether somebody
            has changed a file since.
    """

    def label(image_id: str) -> str:
        return str(catalog.label(image_id).tolist() if catalog.has_label(image_id) else None)

    def photograph(image_id: str) -> str:
        return _of_file(image_id, catalog.image_path, file_hash)

    def saliency(image_id: str) -> str:
        return _of_file(image_id, catalog.saliency_path, file_hash)

    def mask(image_id: str) -> str:
        return _of_file(image_id, catalog.mask_path, file_hash)

    facts = {"photographs_sha256": photograph}
    if "label" in inputs:
        facts["labels_sha256"] = label
    if "saliency" in inputs:
        facts["saliency_sha256"] = saliency
    if with_masks:
        facts["truth_sha256"] = mask
    for key, folder in (previous or PreviousOutputs()).folders.items():
        if key in inputs and not (key == "mask" and with_masks):
            kind = KINDS[key]
            facts[f"{key}_files_sha256"] = functools.partial(_of_previous, folder, kind.suffix)
    return dist.on_main(lambda: {name: _hash_of(image_ids, one) for name, one in facts.items()})


def _of_previous(folder: Path, suffix: str, image_id: str) -> str:
    """Return the facts of the file of an image in a folder of a previous stage."""
    return _of_file(image_id, lambda name: spelled(folder, f"{name}{suffix}"), file_hash)


def fingerprints(previous: PreviousOutputs, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what identifies the files of previous stages that the run reads."""
    return {
        KINDS[key].plural: str(folder) if (key, folder) == ("mask", TRUTH) else fingerprint(folder)
        for key, folder in previous.folders.items()
        if key in inputs
    }


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


def source_hashes(dataset: InferDataset) -> dict[str, dict[str, str]]:
    """Return the hashes of what inference reads of each image beside its photograph.

    The note in a folder of such files does not tell whether somebody has changed one since.

    Args:
        dataset: The images, with what the method reads of them.

    Returns:
        {kind in the plural: {image id: hash}}: "labels" if the labels are read, and each kind of
        file of previous stages that is read.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: An image has no label, or two files have its name.
    """
    hashes = {}
    if dataset.with_label:
        labels = {one: dataset.catalog.label(one).tobytes() for one in dataset.ids}
        hashes["labels"] = {one: hashlib.sha256(text).hexdigest() for one, text in labels.items()}
    for key, kind in KINDS.items():
        if key in dataset.inputs:
            folder = dataset.previous.folders[key]
            paths = {one: spelled(folder, f"{one}{kind.suffix}") for one in dataset.ids}
            hashes[kind.plural] = file_hashes(paths)
    return hashes
