"""Write the masks of the `fill` baseline: saliency above one half takes the image's first label.

There is no network, and one mask per image. The baseline is in every table of results, because on
pictures of one class saliency does most of the work.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.readable import ListFlags, open_list
from data.saliency_maps import HALF, require_saliency
from tool.cli import run_stage
from tool.flags import parse_flags
from tool.formats.mask import save_mask


def fill_mask(saliency: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the mask of one image.

    Args:
        saliency: (H, W) uint8.
        label: (K,) in {0, 1}, image-level, without background.

    Returns:
        (H, W) uint8: 1 + the lowest present class where saliency is above one half, else 0. If no
        class is present, all 0.
    """
    present = np.flatnonzero(label)
    value = present[0] + 1 if present.size else 0
    return np.where(saliency > HALF, value, 0).astype(np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        out: Folder that receives the mask PNGs.
    """

    data: ListFlags
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Write the masks of a list."""
    command = parse_flags(Command, argv, example="--out out/toy-fill/mask")
    catalog, images = open_list(command.data, saliency=True, who="method 'fill'")
    catalog.refuse_own(command.out, images.ids)
    require_saliency(catalog, images.ids)
    for image_id in images.ids:
        saliency = np.asarray(catalog.read_saliency(image_id))
        save_mask(command.out / f"{image_id}.png", fill_mask(saliency, catalog.label(image_id)))
    print(f"{command.out}: {len(images.ids)} masks")


if __name__ == "__main__":
    run_stage(main)
