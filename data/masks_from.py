"""Read masks that were corrected by hand in COCO's, labelme's or CVAT's layout.

The PNGs are masks as stage 3 writes them: give their folder to the next training as --mask-dir or
--seed-dir. Classes are identified by their names. `coco` is a JSON file of polygons or run lengths,
`labelme` a folder of JSON files, `cvat` the zip file that CVAT exports as "Segmentation mask".
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data.catalog import Catalog
from data.readable import ListFlags, open_list
from tool.bar import counted
from tool.cli import run_stage
from tool.files import first_few, locked, spelled
from tool.flags import flag, parse_flags
from tool.formats.coco_masks import load_coco
from tool.formats.cvat import CvatMasks
from tool.formats.labelme import load_labelme
from tool.formats.mask import save_mask
from tool.formats.predictions import foreground_warning
from tool.infer.previous import PreviousOutputs
from tool.provenance import MADE_FROM, claim, fingerprint

Read = Callable[[str, tuple[int, int]], np.ndarray | None]  # image id, (H, W); None: no such image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        layout: Layout of the corrected masks: coco, labelme or cvat.
        source: JSON file, folder of labelme's files, or zip file of CVAT's.
        rest: Folder of mask PNGs for the images of the list that were not corrected. Without it
            such an image is an error.
        out: Folder that receives the mask PNGs.
    """

    layout: str = flag(positional=True, choices=lambda: tuple(READERS))
    source: Path = flag(positional=True)
    data: ListFlags
    rest: Path | None = flag(None, metavar="DIR")
    out: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Write the masks of a list.

    Raises:
        FileNotFoundError: The source is missing, or images of the list are neither in it nor in
            --rest.
        ValueError: A file is damaged, or a mask has another size than its image.
    """
    command = parse_flags(
        Command,
        argv,
        example="labelme to-correct --root my-photos --out corrected",
        defaults={"dataset": "folder"},
    )
    if not command.source.exists():
        raise FileNotFoundError(f"{command.source} does not exist")
    wanted = "a folder" if command.layout == "labelme" else "a file"
    if command.source.is_dir() != (command.layout == "labelme"):
        raise ValueError(f"{command.source}: the layout {command.layout} is {wanted}")
    if command.rest is not None and not command.rest.is_dir():
        raise FileNotFoundError(f"--rest {command.rest} is no folder")
    catalog, images = open_list(command.data)
    if not (command.out / MADE_FROM).is_file():
        catalog.refuse_own(command.out, images.ids)
    read = READERS[command.layout](command.source, catalog)
    rest = PreviousOutputs({"mask": command.rest}) if command.rest else None
    made_from = {"layout": command.layout, "source": str(command.source.resolve())}
    if command.rest:
        made_from["rest"] = fingerprint(command.rest)
    with locked(command.out):
        claim(command.out, made_from)
        missing, written = [], []
        for image_id in counted(images.ids, len(images.ids), "masks", unit="image"):
            width, height = catalog.image_size(image_id)
            mask = read(image_id, (height, width))
            if mask is None:
                missing.append(image_id)
                if rest is None:
                    continue
                size, highest = (height, width), catalog.num_classes
                mask = rest.read_mask("mask", image_id, size=size, num_classes=highest)
            elif mask.shape != (height, width):
                raise ValueError(
                    f"{command.source}: the mask of {image_id} has {mask.shape} pixels, its image "
                    f"{(height, width)}"
                )
            written.append(command.out / f"{image_id}.png")
            save_mask(written[-1], mask)
    if missing and rest is None:
        raise FileNotFoundError(
            f"{command.source} has no mask of {len(missing)} of {len(images.ids)} images "
            f"({first_few(missing)}): --rest FOLDER takes theirs from there; the others are written"
        )
    if warning := foreground_warning(written, "masks"):
        print(warning, file=sys.stderr)
    corrected = len(images.ids) - len(missing)
    print(f"{corrected} corrected masks and {len(missing)} of --rest in {command.out}")


def _coco(source: Path, catalog: Catalog) -> Read:
    found = load_coco(source, catalog.class_names)
    short = {name: sum(one.short_polygons) for name, one in found.items() if one.short_polygons}
    if short:
        print(
            f"{source}: left out polygons of fewer than three points: {sum(short.values())}, of "
            f"{first_few(list(short))}"
        )

    def read(image_id: str, size: tuple[int, int]) -> np.ndarray | None:
        return found[image_id].mask() if image_id in found else None

    return read


def _labelme(source: Path, catalog: Catalog) -> Read:
    def read(image_id: str, size: tuple[int, int]) -> np.ndarray | None:
        path = spelled(source, f"{image_id}.json")
        return load_labelme(path, catalog.class_names, size) if path.is_file() else None

    return read


def _cvat(source: Path, catalog: Catalog) -> Read:
    masks = CvatMasks(source, catalog.class_names)
    there = set(masks.ids)

    def read(image_id: str, size: tuple[int, int]) -> np.ndarray | None:
        return masks.mask(image_id) if image_id in there else None

    return read


READERS: dict[str, Callable[[Path, Catalog], Read]] = {
    "coco": _coco,
    "labelme": _labelme,
    "cvat": _cvat,
}


if __name__ == "__main__":
    run_stage(main)
