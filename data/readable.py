"""The images of a list; with `--skip-bad-images` only those that can be read."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from data.catalog import Catalog
from data.flags import DatasetFlags, catalog_from
from data.saliency_maps import no_saliency
from tool.cli import one_line, printable
from tool.files import list_hash
from tool.limits import raise_if_limit
from tool.parallel import dist
from tool.parallel.processes import cores


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListFlags(DatasetFlags):
    """The flags that name a dataset, and say which images of a list count.

    Attributes:
        skip_bad_images: Decode every file of the list first; leave out, count and print the images
            that cannot be read. Without it the first such file ends the run.
    """

    skip_bad_images: bool = False


@dataclasses.dataclass(frozen=True)
class ImageList:
    """The images of a list, which a stage reads once.

    Attributes:
        name: The list's name or path.
        all_ids: Every id of the list, in its order.
        ids: Those whose files can be read, with `--skip-bad-images`; else all.
    """

    name: str
    all_ids: list[str]
    ids: list[str]

    @property
    def sha256(self) -> str:
        """The hash of the list that every stage notes: of every id, whether it is read or not."""
        return list_hash(self.all_ids)


def open_list(
    flags: ListFlags, *, saliency: bool = False, masks: bool = False, who: str = "this method"
) -> tuple[Catalog, ImageList]:
    """Open the dataset and read the list that the flags name.

    Args:
        flags: The flags.
        saliency: The stage reads saliency maps.
        masks: The stage reads masks of the dataset.
        who: What reads the saliency maps, for a message.

    Raises:
        FileNotFoundError: As `open_catalog` and `Catalog.ids`.
        ValueError: As `open_catalog` and `Catalog.ids`, there is no folder of saliency maps, or no
            image can be read.
    """
    catalog, name = catalog_from(flags)
    if saliency and not catalog.has_saliency:
        raise ValueError(no_saliency(catalog, who))
    ids = catalog.ids(name)
    if not flags.skip_bad_images:
        return catalog, ImageList(name, ids, ids)
    bad = bad_images(catalog, ids, saliency=saliency, masks=masks)
    if dist.is_main():
        for image_id, reason in bad.items():
            print(printable(f"skipped {image_id}: {reason}"), file=sys.stderr)
        print(f"--skip-bad-images: {len(bad)} of {len(ids)} images skipped", file=sys.stderr)
    if len(bad) == len(ids):
        raise ValueError(f"none of the {len(ids)} images of {name} can be read")
    return catalog, ImageList(name, ids, [image_id for image_id in ids if image_id not in bad])


def bad_images(
    catalog: Catalog, ids: Sequence[str], *, saliency: bool = False, masks: bool = False
) -> dict[str, str]:
    """Return {image id: why it cannot be read}; every file is decoded."""
    read = partial(complaint, catalog, saliency=saliency, masks=masks)
    with ThreadPoolExecutor(cores()) as pool:
        reasons = pool.map(read, ids)
        return {i: reason for i, reason in zip(ids, reasons, strict=True) if reason is not None}


def complaint(catalog: Catalog, image_id: str, *, saliency: bool, masks: bool) -> str | None:
    """Return in one line what is wrong with the files of an image; None if they can be read."""
    try:
        catalog.read_image(image_id)
        if saliency:
            catalog.read_saliency(image_id)
        if masks:
            catalog.read_mask(image_id)
    except (ValueError, OSError) as error:
        raise_if_limit(error)  # the file may be whole
        return one_line(error)
    return None
