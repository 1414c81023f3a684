"""Open the dataset that flags, or a name and a folder, stand for: its root is checked first.

What the dataset then has to give is in `data.catalog`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data.catalog import Catalog
from data.labels import read_class_names
from data.layouts import LAYOUTS, Layout
from data.lists import AUTO_LISTS
from tool.flags import flag
from tool.formats.image import MAX_PIXELS, allow_pixels
from tool.ranges import POSITIVE

TOY_ROOT = Path("out/toy-data")


def open_catalog(
    name: str, root: Path | str, *, labels: Path | None = None, saliency_root: Path | None = None
) -> Catalog:
    """Return the catalog of a dataset. If `name` is "toy" and it does not exist, draw it first.

    Args:
        name: A key of `LAYOUTS`.
        root: The folder of the dataset.
        labels: The image-level labels; None for those in the root.
        saliency_root: The folder of the saliency maps; None for the layout's.

    Raises:
        FileNotFoundError: The root, its `classes.txt`, `labels` or `saliency_root` does not exist.
        ValueError: The name is unknown, or `classes.txt` is invalid.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown dataset {name!r}: there are {', '.join(LAYOUTS)}")
    root, layout = Path(root), LAYOUTS[name]
    if name == "toy":
        _make_toy(root)
    if not root.is_dir():
        wrong = "is a file, not a folder" if root.is_file() else "does not exist"
        raise FileNotFoundError(f"dataset root {root} {wrong} (--root)")
    inner = next((one for one in layout.inside if (root / one / layout.lists).is_dir()), None)
    if inner and not (root / layout.lists).is_dir():
        raise FileNotFoundError(
            f"dataset root {root} has no {layout.lists}: pass --root {root / inner}"
        )
    if saliency_root is not None and not Path(saliency_root).is_dir():
        raise FileNotFoundError(f"saliency folder {saliency_root} does not exist (--saliency-root)")
    if labels is not None and not Path(labels).exists():
        raise FileNotFoundError(f"labels {labels} do not exist (--labels)")
    names = layout.class_names or _class_names(root, layout)
    return Catalog(
        name, root, names, layout, labels and Path(labels), saliency_root and Path(saliency_root)
    )


def _class_names(root: Path, layout: Layout) -> tuple[str, ...]:
    """Return the names in the root's `classes.txt`; raise as `read_class_names`."""
    path = root / "classes.txt"
    if not path.is_file() and layout.prepare:
        raise FileNotFoundError(
            f"{path} does not exist: it lists the foreground classes, one per line; "
            f"{layout.prepare} --root {root} makes it"
        )
    return read_class_names(path)


def _make_toy(root: Path) -> None:
    from data.toy import is_complete, write_toy

    if not is_complete(root):
        write_toy(root)


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
