"""The `fill` baseline: no network, saliency above one half takes the image's first label.

`python -m data.fill --dataset toy --out DIR` writes one mask an image. It stands in every results
table, because on pictures of one class saliency does most of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.catalog import add_dataset_flags, catalog_from
from data.usable import add_skip_flag, ids_from
from tool.cli import Parser, run_stage
from tool.formats.mask import save_mask

THRESHOLD = 127  # of 255: the values above it are those above one half


def fill_mask(saliency: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The mask of one image.

    Args:
        saliency: (H, W) uint8.
        label: (K,) in {0, 1}, image-level, without background.

    Returns:
        (H, W) uint8: 1 + the lowest present class where saliency is above one half, else 0;
        all 0 when no class is present.
    """
    present = np.flatnonzero(label)
    value = present[0] + 1 if present.size else 0
    return np.where(saliency > THRESHOLD, value, 0).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `python -m data.fill`."""
    parser = Parser(
        prog="python -m data.fill", description="masks of the baseline without a network"
    )
    add_dataset_flags(parser)
    add_skip_flag(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder for the mask PNGs")
    args = parser.parse_args(argv)
    catalog = catalog_from(args)
    ids = ids_from(args, catalog, saliency=True)
    for image_id in ids:
        saliency = np.asarray(catalog.read_saliency(image_id))
        save_mask(args.out / f"{image_id}.png", fill_mask(saliency, catalog.label(image_id)))
    print(f"{args.out}: {len(ids)} masks")


if __name__ == "__main__":
    run_stage(main)
