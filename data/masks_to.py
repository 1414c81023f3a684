"""Write masks for a program in which people correct them by hand: COCO, labelme or CVAT.

`data.masks_from` brings them back, exactly. `coco` is one JSON file of run lengths. `labelme` is a
folder of JSON files with polygons, one per image. `cvat` is the zip file that CVAT imports as
"Segmentation mask". Pixels with 255 are `unknown` there, and `__ignore__` in labelme.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.catalog import Catalog
from data.readable import ListFlags, open_list
from tool.bar import counted
from tool.cli import run_stage
from tool.files import atomic_path, locked
from tool.flags import flag, parse_flags
from tool.formats.coco_masks import save_coco
from tool.formats.cvat import save_cvat
from tool.formats.labelme import save_labelme
from tool.formats.predictions import require_files
from tool.infer.previous import PreviousOutputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        to: Program that is to read them: coco, labelme or cvat.
        pred_dir: Folder of mask PNGs of any stage, values 0..K and 255.
        out: Receives them: a .json file, a folder for labelme, or a .zip file for CVAT.
        overwrite: Replace files whose content is another, with what was corrected in them.
    """

    to: str = flag(positional=True, choices=lambda: tuple(WRITERS))
    data: ListFlags
    pred_dir: Path
    out: Path
    overwrite: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Write the masks of a list."""
    command = parse_flags(
        Command,
        argv,
        example="labelme --root my-photos --pred-dir out/folder-fbr-seed0/mask --out to-correct",
        defaults={"dataset": "folder"},
    )
    write, suffix = WRITERS[command.to]
    if command.out.suffix.lower() != suffix:
        kind = f"a {suffix} file" if suffix else "a folder"
        raise ValueError(f"--out {command.out}: {command.to} is {kind}")
    catalog, images = open_list(command.data)
    require_files(command.pred_dir, images.ids, ".png", what="masks", stage="crf_postprocess.py")
    masks = masks_of(catalog, command.pred_dir, images.ids)
    write(Output(command.out, command.overwrite), catalog, masks)
    print(f"{len(images.ids)} masks for {command.to} in {command.out}")


def masks_of(
    catalog: Catalog, folder: Path, ids: Sequence[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield image ids with their masks, (H, W) uint8 of 0..K and 255.

    Raises:
        ValueError: A mask is broken, of another size than its image, or has a class above K.
    """
    masks = PreviousOutputs({"mask": folder})
    for image_id in counted(ids, len(ids), "masks", unit="image"):
        width, height = catalog.image_size(image_id)
        size, highest = (height, width), catalog.num_classes
        yield image_id, masks.read_mask("mask", image_id, size=size, num_classes=highest)


@dataclasses.dataclass(frozen=True)
class Output:
    """Where masks go.

    Attributes:
        path: The file, or the folder.
        overwrite: Whether to replace files with other content.
    """

    path: Path
    overwrite: bool

    @contextlib.contextmanager
    def file(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path, and rename it to `path` at the end.

        Raises:
            ValueError: There is a file with other content, which somebody may have corrected.
        """
        with atomic_path(path) as temporary:
            yield temporary
            if self.overwrite or not path.exists():
                return
            if path.read_bytes() != temporary.read_bytes():
                raise ValueError(
                    f"{path} is there with other content, perhaps corrected by hand: choose "
                    "another --out, or --overwrite replaces it"
                )


def _write_coco(to: Output, catalog: Catalog, masks: Iterator[tuple[str, np.ndarray]]) -> None:
    named = ((f"{i}{catalog.image_path(i).suffix}", mask) for i, mask in masks)
    with to.file(to.path) as temporary:
        save_coco(temporary, named, catalog.class_names)


def _write_labelme(to: Output, catalog: Catalog, masks: Iterator[tuple[str, np.ndarray]]) -> None:
    with locked(to.path):
        for image_id, mask in masks:
            path = to.path / f"{image_id}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = os.path.relpath(catalog.image_path(image_id), path.parent)
            with to.file(path) as temporary:
                save_labelme(temporary, mask, catalog.class_names, image)


def _write_cvat(to: Output, catalog: Catalog, masks: Iterator[tuple[str, np.ndarray]]) -> None:
    with to.file(to.path) as temporary:
        save_cvat(temporary, masks, catalog.class_names)


Writer = Callable[[Output, Catalog, Iterator[tuple[str, np.ndarray]]], None]
WRITERS: dict[str, tuple[Writer, str]] = {  # with the suffix of --out
    "coco": (_write_coco, ".json"),
    "labelme": (_write_labelme, ""),
    "cvat": (_write_cvat, ".zip"),
}


if __name__ == "__main__":
    run_stage(main)
