"""What images, labels, masks and saliency maps a dataset has, and where: no torch in here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

import voc12
from data.files import IMAGE_SUFFIXES, all_found, check_id, find_file
from data.labels import read_class_names, read_labels, read_text
from data.layouts import LAYOUTS, Layout
from data.lists import id_of_line
from tool.files import check_same
from tool.flags import flag
from tool.formats.image import MAX_PIXELS, allow_pixels, check_size, decode, size_of
from tool.formats.predictions import read_mask
from tool.ranges import POSITIVE

MASK_SUFFIXES = (".png", ".PNG")
SALIENCY_SUFFIXES = tuple(dict.fromkeys(MASK_SUFFIXES + IMAGE_SUFFIXES))
HALF, DARK_MAPS = 127, 200  # what a saliency map must exceed somewhere; how many may not
TOY_ROOT = Path("out/toy-data")
AUTO_LISTS = ("train_aug", "train")  # what is trained on and gets pseudo masks: the first there is


@dataclasses.dataclass(frozen=True)
class Catalog:
    """One dataset on disk. `open_catalog` and `catalog_from` make it and check the root.

    Every method that takes an image id raises `ValueError` for an id that leaves the root.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]  # the K foreground names; the mask value is the index + 1
    layout: Layout
    labels_file: Path | None = None  # None: the first of the layout's
    saliency_folder: Path | None = None  # None: the layout's

    @property
    def num_classes(self) -> int:
        """K, without the background."""
        return len(self.class_names)

    @property
    def saliency_root(self) -> Path:
        """The folder of the saliency maps; it need not exist."""
        return self.saliency_folder or self.root / self.layout.saliency

    @property
    def has_saliency(self) -> bool:
        """Whether there is a folder of saliency maps."""
        return self.saliency_root.is_dir()

    def ids(self, list_name: str) -> list[str]:
        """The image ids of a list, in its order.

        Args:
            list_name: a name in the layout's list folder, or a path that ends in `.txt`. The
                forms of a line are those of `data.lists`.

        Raises:
            FileNotFoundError: no such list; names the lists there are.
            ValueError: an empty list, an id twice, or one that leaves the root; or the path is that
                of a file here and of another one in the list folder.
        """
        path = self._list_path(list_name)
        lines = (line.strip() for line in read_text(path).split("\n"))
        ids = [self._id_of_line(line) for line in lines if line]
        if not ids:
            raise ValueError(f"list {path} is empty: it needs an image id per line")
        seen: set[str] = set()
        for image_id in ids:
            check_id(image_id, f"list {path}")
            if image_id in seen:
                raise ValueError(
                    f"list {path} has image {image_id!r} twice: remove one of the two lines"
                )
            seen.add(image_id)
        return ids

    def for_list(self, list_name: str) -> Catalog:
        """Return the catalog as it serves a list: the benchmark's own lists have its own masks."""
        if Path(list_name).stem not in self.layout.official:
            return self
        layout = dataclasses.replace(self.layout, masks=self.layout.masks[::-1])
        return dataclasses.replace(self, layout=layout)

    def first_list(self, names: Sequence[str]) -> str:
        """The first of these lists that there is, else the last."""
        folder = self.root / self.layout.lists
        there = (name for name in names if (folder / f"{name}.txt").is_file())
        return next(there, names[-1])

    def _list_path(self, list_name: str) -> Path:
        folder = self.root / self.layout.lists
        named = folder / (list_name if list_name.endswith(".txt") else f"{list_name}.txt")
        path = Path(list_name) if list_name.endswith(".txt") else named
        found = [candidate for candidate in (path, named) if candidate.is_file()]
        if found:
            check_same(found, f"list {list_name!r}")
            return found[0]
        if Path(list_name).is_dir():
            raise FileNotFoundError(f"list {list_name} is a folder: give a .txt file (--list)")
        there = ", ".join(sorted(file.stem for file in folder.glob("*.txt")))
        hint = "" if there and list_name not in AUTO_LISTS else self._made_by("it")
        raise FileNotFoundError(
            f"list {path} does not exist (--list): {folder} has {there or 'none'}{hint}"
        )

    def _made_by(self, what: str) -> str:
        """Return what a message says of a file that a command can make, such as "it"."""
        command = self.layout.prepare
        return f"; {command} --root {self.root} makes {what}" if command else ""

    def _id_of_line(self, line: str) -> str:
        folders = (*self.layout.images, voc12.IMAGE_FOLDER)
        return id_of_line(line, folders, exists=self.has_image, ids_of_int=self.layout.ids_of_int)

    def has_image(self, image_id: str) -> bool:
        """Whether there is exactly one image file of the id."""
        try:
            return bool(self.image_path(image_id))
        except (FileNotFoundError, ValueError):
            return False

    def image_path(self, image_id: str) -> Path:
        """The image file; `FileNotFoundError` names the id, the path and the flag."""
        folders = [self.root / name for name in self.layout.images]
        return find_file(folders, image_id, IMAGE_SUFFIXES, what="image", flag="--root")

    def mask_path(self, image_id: str) -> Path:
        """The ground-truth mask file; `FileNotFoundError` names the id, the path and the flag."""
        folders = [self.root / name for name in self.layout.masks]
        return find_file(folders, image_id, MASK_SUFFIXES, what="mask", flag="--root")

    def saliency_path(self, image_id: str) -> Path:
        """The saliency map; `FileNotFoundError` names the id, the path and the flag."""
        folders, what = [self.saliency_root], "saliency map"
        return find_file(folders, image_id, SALIENCY_SUFFIXES, what=what, flag="--saliency-root")

    @property
    def labels_path(self) -> Path:
        """The labels; `FileNotFoundError` when the root has none and none were given."""
        if self.labels_file is not None:
            return self.labels_file
        for name in self.layout.labels:
            if (self.root / name).exists():
                return self.root / name
        names = ", ".join(self.layout.labels)
        raise FileNotFoundError(
            f"{self.root} has no labels ({names}): pass --labels FILE{self._made_by('them')}"
        )

    @functools.cached_property
    def _labels(self) -> Mapping[str, np.ndarray]:
        path = self.labels_path
        labels = read_labels(path, self.class_names, self.layout.ids_of_int)
        files = [self.root / name for name in self.layout.labels if Path(name).suffix]
        for other in files if self.labels_file is None else ():
            if other != path and other.is_file():
                self._check_agree(labels, path, other)
        return labels

    def _check_agree(self, labels: Mapping[str, np.ndarray], path: Path, other: Path) -> None:
        """Raise `ValueError` if a file of labels that is not used says another thing."""
        others = read_labels(other, self.class_names, self.layout.ids_of_int)
        for image_id, label in labels.items():
            if image_id in others and not np.array_equal(others[image_id], label):
                raise ValueError(
                    f"{path} and {other} give {image_id!r} different labels: remove one of them, "
                    "or pass --labels"
                )

    def has_label(self, image_id: str) -> bool:
        """Whether the labels know the image."""
        return image_id in self._labels

    def label(self, image_id: str) -> np.ndarray:
        """(K,) float32 {0, 1}, a copy; `ValueError` names an id without a label."""
        if image_id not in self._labels:
            raise ValueError(f"image {image_id!r} has {self.no_label(image_id)}")
        return self._labels[image_id].copy()

    def no_label(self, image_id: str) -> str:
        """Return what a message says of an id without a label: where there is none, and why."""
        forms = (image_id + end for end in IMAGE_SUFFIXES)
        suffixed = next((form for form in forms if form in self._labels), None)
        hint = f", which has {suffixed!r}: drop the suffix" if suffixed else ""
        return f"no label in {self.labels_path} (--labels){hint}"

    def refuse_own(self, out: Path, ids: Sequence[str]) -> None:
        """Check that the results `ID.png` of a folder replace no files of the dataset.

        Args:
            out: The folder. It may be one of the dataset that has none of these files yet.
            ids: The images.

        Raises:
            ValueError: It is a folder of images, masks or saliency maps that has such files.
        """
        folders = (*self.layout.images, *self.layout.masks)
        own = [self.saliency_root, *(self.root / name for name in folders)]
        if out.resolve() not in [folder.resolve() for folder in own]:
            return
        if any((out / f"{image_id}.png").exists() for image_id in ids):
            raise ValueError(f"--out {out} has files of the dataset: choose another folder")

    def read_image(self, image_id: str, *, long_side: int | None = None) -> Image.Image:
        """The RGB image, fully decoded.

        Args:
            image_id: which.
            long_side: the longer side that is enough: a far larger JPEG is then decoded at 1/2,
                1/4 or 1/8 of its size. None: the full size.

        Raises:
            ValueError: a broken or truncated file, named.
        """
        path, upright = self.image_path(image_id), self.layout.upright
        return decode(path, "RGB", long_side=long_side, upright=upright)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """(W, H) of the image, from its header."""
        return size_of(self.image_path(image_id), upright=self.layout.upright)

    def read_saliency(self, image_id: str) -> Image.Image:
        """Return the saliency map, mode "L", 255 is salient.

        Raises:
            ValueError: The file is broken, or has another size than the image.
        """
        path = self.saliency_path(image_id)
        saliency = decode(path, "L")
        check_size(
            path, saliency.size[::-1], f"image {image_id!r}", self.image_size(image_id)[::-1]
        )
        return saliency

    def no_saliency(self, who: str) -> str:
        """Return what a message says where maps are needed and there is no folder of them.

        Args:
            who: What needs them, such as "method 'fbr'".
        """
        return (
            f"{who} needs saliency, and {self.saliency_root} is no folder: python -m data.saliency "
            "makes it, --saliency-root says where it is, METHOD=cam needs none"
        )

    def require_saliency(self, ids: Sequence[str]) -> None:
        """Check that there is a map for every image, and that some of the first 200 is bright.

        Raises:
            FileNotFoundError: Maps are missing; names the first few.
            ValueError: There is no folder of maps, a map is broken, or none is above one half.
        """
        if not self.has_saliency:
            raise ValueError(self.no_saliency("this method"))
        all_found(ids, self.saliency_path)
        brightest = 0
        for image_id in ids[:DARK_MAPS]:
            brightest = max(brightest, self.read_saliency(image_id).getextrema()[1])  # type: ignore
            if brightest > HALF:
                return
        raise ValueError(self.dark_saliency(brightest))

    def dark_saliency(self, brightest: int) -> str:
        """Return what is wrong if the largest value of the first 200 maps is at most one half."""
        return (
            f"saliency maps in {self.saliency_root} are not scaled to 0..255: the largest value is "
            f"{brightest}, and only what is above {HALF} counts as salient"
        )

    def read_mask(self, image_id: str) -> np.ndarray:
        """Return the ground-truth mask.

        Returns:
            (H, W) uint8: 0 background, 1..K, 255 ignored.

        Raises:
            ValueError: The file is broken, has another size than the image, or a value above K.
        """
        path = self.mask_path(image_id)
        mask = read_mask(path, self.num_classes)
        check_size(path, mask.shape, f"image {image_id!r}", self.image_size(image_id)[::-1])
        return mask

    def mask_if_there(self, image_id: str) -> np.ndarray | None:
        """Return the ground-truth mask as `read_mask` does; None if there is no file."""
        try:
            return self.read_mask(image_id)
        except FileNotFoundError:
            return None

    def saliency_if_there(self, image_id: str) -> np.ndarray | None:
        """Return the saliency map (H, W) uint8; None if there is no folder or no file."""
        try:
            return np.asarray(self.read_saliency(image_id)) if self.has_saliency else None
        except FileNotFoundError:
            return None


def open_catalog(
    name: str, root: Path | str, *, labels: Path | None = None, saliency_root: Path | None = None
) -> Catalog:
    """The catalog of a dataset; the toy dataset is written first where it is missing.

    Raises:
        FileNotFoundError: the root, its classes.txt, or a given labels file or folder is missing.
        ValueError: an unknown dataset, or a bad classes.txt.
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

    auto: ClassVar[tuple[str, ...]] = AUTO_LISTS  # what `--list auto` is: the first that exists
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
        ValueError: As `open_catalog`, or the root is missing.
    """
    allow_pixels(flags.max_pixels)
    if flags.root is None and flags.dataset != "toy":
        raise ValueError(f"dataset {flags.dataset!r} needs its folder: pass --root")
    root, labels, saliency = flags.root or TOY_ROOT, flags.labels, flags.saliency_root
    catalog = open_catalog(flags.dataset, root, labels=labels, saliency_root=saliency)
    name = catalog.first_list(flags.auto) if flags.list == "auto" else flags.list
    return catalog.for_list(name), name
