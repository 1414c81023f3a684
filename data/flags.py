"""The flags that name a dataset and one of its lists, and the catalog that they stand for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data.catalog import Catalog, open_catalog
from data.layouts import LAYOUTS
from data.lists import AUTO_LISTS
from tool.flags import flag
from tool.formats.image import MAX_PIXELS, allow_pixels
from tool.ranges import POSITIVE

TOY_ROOT = Path("out/toy-data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """The flags that name a dataset and one of its lists.

    Attributes:
        dataset: Layout of the folders. Choose folder for your own photographs, and toy for a
            dataset that is drawn on first use.
        root: Folder of the dataset. Only toy does without; it is then drawn in out/toy-data.
        list: Image list: a name in the dataset's folder of lists, or a .txt file. With auto it is
            train_aug, or train if there is no such list; eval_miou.py takes train, voc12.submit
            test.
        labels: Image-level labels, if they are not in the root: a .csv or .npy file, or a folder of
            VOC's .xml files.
        saliency_root: Folder of the saliency maps, if they are not in the root's own folder.
        max_pixels: Refuse an image or a mask of more pixels, which would take much memory.
    """

    auto: ClassVar[tuple[str, ...]] = AUTO_LISTS  # `--list auto` is the first that exists
    dataset: str = flag("toy", choices=tuple(LAYOUTS))
    root: Path | None = None
    list: str = "auto"
    labels: Path | None = None
    saliency_root: Path | None = None
    max_pixels: int = flag(MAX_PIXELS, type=POSITIVE, metavar="PIXELS")


def catalog_from(flags: DatasetFlags) -> tuple[Catalog, str]:
    """Return the catalog that the flags name, and the name of the list.

    Raises:
        FileNotFoundError: As `open_catalog`.
        ValueError: As `open_catalog`, or `--root` is not given and the dataset is not toy.
    """
    allow_pixels(flags.max_pixels)
    if flags.root is None and flags.dataset != "toy":
        raise ValueError(f"dataset {flags.dataset!r} needs its folder: pass --root")
    root, labels, saliency = flags.root or TOY_ROOT, flags.labels, flags.saliency_root
    catalog = open_catalog(flags.dataset, root, labels=labels, saliency_root=saliency)
    name = catalog.first_list(flags.auto) if flags.list == "auto" else flags.list
    return catalog.for_list(name), name
