"""Find and read the images, labels, masks and saliency maps of a dataset, without torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import voc12
from data.class_names import class_names_of, read_text
from data.files import IMAGE_SUFFIXES, check_id, find_file
from data.labels import read_agreeing_labels
from data.layouts import LAYOUTS, Layout
from data.lists import find_list, id_of_line
from tool.formats.image import check_size, decode, size_of
from tool.formats.predictions import read_mask

MASK_SUFFIXES = (".png", ".PNG")
SALIENCY_SUFFIXES = tuple(dict.fromkeys(MASK_SUFFIXES + IMAGE_SUFFIXES))


@dataclasses.dataclass(frozen=True)
class Catalog:
    """A dataset on disk. Make one with `open_catalog`, which checks the root.

    Every method that takes an image id raises `ValueError` if the id leaves the root, as "../x"
    does.

    Attributes:
        name: The dataset's name, a key of `LAYOUTS`.
        root: The folder of the dataset.
        class_names: The K foreground classes. The mask value of a class is its index + 1.
        layout: Where the files are, relative to the root.
        labels_file: The image-level labels; None for the first of the layout's that exists.
        saliency_folder: The folder of the saliency maps; None for the layout's.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    layout: Layout
    labels_file: Path | None = None
    saliency_folder: Path | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes K, without the background."""
        return len(self.class_names)

    @property
    def saliency_root(self) -> Path:
        """The folder of the saliency maps; it need not exist."""
        return self.saliency_folder or self.root / self.layout.saliency

    @property
    def has_saliency(self) -> bool:
        """Whether the folder of the saliency maps exists."""
        return self.saliency_root.is_dir()

    def ids(self, list_name: str) -> list[str]:
        """Return the image ids of a list, in its order.

        Args:
            list_name: Name of a file in the layout's folder of lists, or a path that ends in
                `.txt`. `data.lists` documents the permitted forms of a line.

        Raises:
            FileNotFoundError: The list does not exist; names the lists that do.
            ValueError: The list is empty, or has an id twice or one that leaves the root. Or the
                path exists both in the working directory and, as another file, in the folder of
                lists.
        """
        path = find_list(self.root / self.layout.lists, list_name, made_by=self._made_by("it"))
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
        """Return the catalog with the masks that a list is scored on.

        For an official list of a benchmark, such as VOC's `val`, the last folder of masks in the
        layout comes first. For any other list the catalog stays as it is.
        """
        if Path(list_name).stem not in self.layout.official:
            return self
        layout = dataclasses.replace(self.layout, masks=self.layout.masks[::-1])
        return dataclasses.replace(self, layout=layout)

    def first_list(self, names: Sequence[str]) -> str:
        """Return the first of these names that is a list of the dataset; if none is, the last."""
        folder = self.root / self.layout.lists
        there = (name for name in names if (folder / f"{name}.txt").is_file())
        return next(there, names[-1])

    def _made_by(self, what: str) -> str:
        """Return what a message says of a file that a command can make, such as "it"."""
        command = self.layout.prepare
        return f"; {command} --root {self.root} makes {what}" if command else ""

    def _id_of_line(self, line: str) -> str:
        folders = (*self.layout.images, voc12.IMAGE_FOLDER)
        return id_of_line(line, folders, exists=self.has_image, ids_of_int=self.layout.ids_of_int)

    def has_image(self, image_id: str) -> bool:
        """Return whether an image id has exactly one image file."""
        try:
            return bool(self.image_path(image_id))
        except (FileNotFoundError, ValueError):
            return False

    def image_path(self, image_id: str) -> Path:
        """Return the path of an image.

        Raises:
            FileNotFoundError: There is no file; names the id, the path and the flag.
            ValueError: Two files have the id.
        """
        folders = [self.root / name for name in self.layout.images]
        return find_file(folders, image_id, IMAGE_SUFFIXES, what="image", flag="--root", alone=True)

    def mask_path(self, image_id: str) -> Path:
        """Return the path of a ground-truth mask; raise as `image_path`."""
        folders = [self.root / name for name in self.layout.masks]
        return find_file(folders, image_id, MASK_SUFFIXES, what="mask", flag="--root")

    def saliency_path(self, image_id: str) -> Path:
        """Return the path of a saliency map; raise as `image_path`."""
        folders, what = [self.saliency_root], "saliency map"
        return find_file(folders, image_id, SALIENCY_SUFFIXES, what=what, flag="--saliency-root")

    @property
    def labels_path(self) -> Path:
        """The file or folder of the labels; `FileNotFoundError` if there is none."""
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
        files = [self.root / name for name in self.layout.labels if Path(name).suffix]
        others = [other for other in files if self.labels_file is None and other != path]
        return read_agreeing_labels(path, others, self.class_names, self.layout.ids_of_int)

    def has_label(self, image_id: str) -> bool:
        """Return whether an image has a label."""
        return image_id in self._labels

    def label(self, image_id: str) -> np.ndarray:
        """Return a copy of an image's label, (K,) float32 in {0, 1}.

        Raises:
            ValueError: The image has no label, or the labels are broken.
        """
        if image_id not in self._labels:
            raise ValueError(f"image {image_id!r} has {self.no_label(image_id)}")
        return self._labels[image_id].copy()

    def no_label(self, image_id: str) -> str:
        """Return the part of an error message that tells why an image has no label.

        It names the labels file. If the file has the id with the suffix of an image, it names that
        too.

        Args:
            image_id: The image, which has no label.

        Returns:
            A phrase that begins with "no label in".
        """
        forms = (image_id + end for end in IMAGE_SUFFIXES)
        suffixed = next((form for form in forms if form in self._labels), None)
        hint = f", which has {suffixed!r}: drop the suffix there" if suffixed else ""
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
        """Read an image as RGB, fully decoded.

        Args:
            image_id: The image.
            long_side: Length in pixels that suffices for the longer side. A far larger JPEG is
                then decoded at 1/2, 1/4 or 1/8 of its size. None for the full size.

        Raises:
            FileNotFoundError: As `image_path`.
            ValueError: As `image_path`, or the file is broken or truncated; names it.
        """
        path, upright = self.image_path(image_id), self.layout.upright
        return decode(path, "RGB", long_side=long_side, upright=upright)

    def image_size(self, image_id: str) -> tuple[int, int]:
        """Return the size (W, H) of an image in pixels, from the header of its file."""
        return size_of(self.image_path(image_id), upright=self.layout.upright)

    def read_saliency(self, image_id: str) -> Image.Image:
        """Read a saliency map: mode "L", 0 to 255, and 255 is salient.

        Raises:
            FileNotFoundError: The map or the image does not exist.
            ValueError: The map is broken, or its size is not that of the image.
        """
        path = self.saliency_path(image_id)
        saliency = decode(path, "L", upright=self.layout.upright)
        check_size(
            path, saliency.size[::-1], f"image {image_id!r}", self.image_size(image_id)[::-1]
        )
        return saliency

    def read_mask(self, image_id: str) -> np.ndarray:
        """Read a ground-truth mask.

        Returns:
            (H, W) uint8: 0 for background, 1 to K for the classes, 255 for ignored.

        Raises:
            FileNotFoundError: The mask or the image does not exist.
            ValueError: The mask is broken, its size is not that of the image, or a value is above K
                and not 255.
        """
        path = self.mask_path(image_id)
        mask = read_mask(path, self.num_classes)
        check_size(path, mask.shape, f"image {image_id!r}", self.image_size(image_id)[::-1])
        return mask

    def mask_if_there(self, image_id: str) -> np.ndarray | None:
        """Read a ground-truth mask as `read_mask` does; return None if it does not exist."""
        try:
            return self.read_mask(image_id)
        except FileNotFoundError:
            return None

    def saliency_if_there(self, image_id: str) -> np.ndarray | None:
        """Read a saliency map (H, W) uint8; return None if it does not exist."""
        try:
            return np.asarray(self.read_saliency(image_id)) if self.has_saliency else None
        except FileNotFoundError:
            return None


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
    names = layout.class_names or class_names_of(root, made_by=layout.prepare)
    return Catalog(
        name, root, names, layout, labels and Path(labels), saliency_root and Path(saliency_root)
    )


def _make_toy(root: Path) -> None:
    from data.toy import is_complete, write_toy

    if not is_complete(root):
        write_toy(root)
