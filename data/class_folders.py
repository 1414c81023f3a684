"""Photographs in one folder per class: `R/cat/1.jpg` is the image "cat/1" and shows a cat.

A photograph that lies in several folders shows all of their classes. Copies are recognised by their
content, so a copy may have another name. Different photographs of one name have different ids,
because the folder is part of the id.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.files import IMAGE_SUFFIXES
from data.layouts import LAYOUTS
from tool.files import file_hash, first_few
from tool.provenance import MADE_FROM, SETTINGS

_LAYOUT = LAYOUTS["folder"]
IMAGES = _LAYOUT.images[0]
_OWN = {IMAGES, *_LAYOUT.masks, _LAYOUT.saliency, _LAYOUT.lists}  # folders that are no class


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """The photographs in the class folders of a root.

    Attributes:
        rows: Image id -> its classes, sorted; copies of one photograph are one image.
        copies: Groups of files with the same bytes, relative to the root.
        ignored: Files in the folders that are not photographs.
    """

    rows: dict[str, list[str]]
    copies: list[list[str]]
    ignored: list[str]

    def lines(self) -> list[str]:
        """Return lines for the user about copies, and about files that are not photographs."""
        lines = []
        if self.copies:
            shown = first_few([" and ".join(paths) for paths in self.copies])
            lines.append(f"one photograph each, with the classes of all its folders: {shown}")
        if self.ignored:
            suffixes = ", ".join(end[1:] for end in IMAGE_SUFFIXES if end.islower())
            lines.append(
                f"left out, as only photographs in {suffixes} are read: {first_few(self.ignored)}"
            )
        return lines


def class_folders(root: Path) -> list[Path]:
    """Return the class folders of a root, sorted: each holds the photographs of one class.

    The list is empty if the root has a folder of images. Hidden folders, folders of results and
    folders without a photograph are left out.
    """
    if (root / IMAGES).is_dir():
        return []
    there = (path for path in sorted(root.iterdir()) if path.is_dir())
    return [
        path
        for path in there
        if path.name not in _OWN
        and not path.name.startswith(".")
        and not any((path / note).exists() for note in (MADE_FROM, SETTINGS))
        and any(file.name.endswith(IMAGE_SUFFIXES) for file in path.iterdir())
    ]


def read_folders(root: Path, folders: Sequence[Path], known: Iterable[str]) -> ClassFolders:
    """Return the images in the folders of a root, with their classes.

    Args:
        root: The root.
        folders: Those of `class_folders`.
        known: Ids that have labels already. Of several copies the one with such an id is the image.

    Raises:
        ValueError: A name begins or ends with a space, which no list of images can hold.
    """
    ids, ignored, known = {}, [], set(known)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not path.is_file():
                continue
            if not path.name.endswith(IMAGE_SUFFIXES):
                ignored.append(f"{folder.name}/{path.name}")
                continue
            if path.stem != path.stem.strip() or folder.name != folder.name.strip():
                raise ValueError(f"{path}: rename it, because a name begins or ends with a space")
            ids[path] = unicodedata.normalize("NFC", f"{folder.name}/{path.stem}")
    rows, copies = {}, []
    for paths in same_bytes(list(ids)):
        first = min(paths, key=lambda path: (ids[path] not in known, ids[path]))
        rows[ids[first]] = sorted({ids[path].partition("/")[0] for path in paths})
        if len(paths) > 1:
            copies.append([path.relative_to(root).as_posix() for path in paths])
    return ClassFolders(dict(sorted(rows.items())), copies, ignored)


def same_bytes(paths: Sequence[Path]) -> list[list[Path]]:
    """Return the paths in groups of equal content. Only files of equal size are read."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        sizes[path.stat().st_size].append(path)
    groups: dict[tuple[int, str], list[Path]] = defaultdict(list)
    for size, same in sizes.items():
        for path in same:
            groups[size, file_hash(path) if len(same) > 1 else ""].append(path)
    return list(groups.values())


def with_rows(
    rows: Sequence[tuple[str, list[str]]], found: Mapping[str, list[str]]
) -> list[tuple[str, list[str]]]:
    """Return rows of a `labels.csv` with the images of the folders.

    Rows keep their order and their classes, to which those of the folders are added. New images
    come last.

    Args:
        rows: Image ids and their classes.
        found: Image id -> the classes of its folders.
    """
    own = dict(rows)
    merged = {
        one: names + [name for name in found.get(one, ()) if name not in names]
        for one, names in own.items()
    }
    return list({**merged, **{one: n for one, n in found.items() if one not in own}}.items())
