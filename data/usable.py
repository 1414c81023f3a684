"""The images of a list; with `--skip-bad-images` only those that can be read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from data.catalog import Catalog
from tool.cli import one_line
from tool.parallel import dist
from tool.parallel.processes import cores


def add_skip_flag(parser: argparse.ArgumentParser) -> None:
    """Add --skip-bad-images."""
    parser.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="look through the list first, leave out and list the images that cannot be read",
    )


def ids_from(
    args: argparse.Namespace, catalog: Catalog, *, saliency: bool = False, masks: bool = False
) -> list[str]:
    """Return the ids of `--list`; with `--skip-bad-images` only those whose files can be read.

    Args:
        saliency: Whether the stage reads saliency maps.
        masks: Whether the stage reads masks of the dataset.

    Raises:
        ValueError: As `Catalog.ids`, or no image can be read.
    """
    ids = catalog.ids(args.list)
    if not args.skip_bad_images:
        return ids
    bad = bad_images(catalog, ids, saliency=saliency, masks=masks)
    if dist.is_main():
        for image_id, reason in bad.items():
            print(f"skipped {image_id}: {reason}", file=sys.stderr)
        print(f"--skip-bad-images: {len(bad)} of {len(ids)} images skipped", file=sys.stderr)
    if len(bad) == len(ids):
        raise ValueError(f"none of the {len(ids)} images of {args.list} can be read")
    return [image_id for image_id in ids if image_id not in bad]


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
        return one_line(error)
    return None
