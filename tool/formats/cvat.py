"""Write masks in CVAT's layout "Segmentation mask" to be corrected by hand, and read them back.

CVAT imports and exports this layout as a zip file. `labelmap.txt` lists each label and its colour,
`ImageSets/Segmentation/*.txt` lists the images, and `SegmentationClass/ID.png` has a colour per
pixel.
"""

from __future__ import annotations

import io
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as shown

import numpy as np
from PIL import Image

from tool.files import ZIP_DATE, atomic_path, first_few, zip_errors
from tool.formats.image import BROKEN, opened, reason_of
from tool.formats.mask import named_values, palette

BACKGROUND, UNKNOWN_NAME = "background", "unknown"
_LIST, _MASKS = "ImageSets/Segmentation/default.txt", "SegmentationClass/"
_LARGEST = 1 << 28  # the largest number of bytes of a member
_NO_VALUE = 256  # of a colour that no label has
_AT_ONCE = 1 << 20  # pixels whose colours are looked up at once


def save_cvat(
    path: Path, masks: Iterable[tuple[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """Write masks as a zip file that CVAT imports, whole or not at all; equal masks, equal bytes.

    Args:
        path: The zip file.
        masks: The id and the mask (H, W) uint8, in 0..K and 255, of each image.
        class_names: The K foreground names.

    Raises:
        ValueError: A name has a character that `labelmap.txt` cannot hold, or a class is called
            "background" or "unknown".
    """
    names = named_values(class_names, background=BACKGROUND, unknown=UNKNOWN_NAME)
    wrong = [name for name in names if ":" in name or not name.isprintable()]
    if wrong:
        raise ValueError(f"CVAT's labelmap.txt cannot hold the class {wrong[0]!r}")
    colours = palette()
    lines = ["# label:color_rgb:parts:actions"]
    lines += [f"{name}:{','.join(map(str, colours[value]))}::" for name, value in names.items()]
    ids = []
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _add(archive, "labelmap.txt", "\n".join(lines) + "\n")
        for image_id, mask in masks:
            ids.append(image_id)
            file = io.BytesIO()
            Image.fromarray(colours[mask]).save(file, format="PNG")
            _add(archive, f"{_MASKS}{image_id}.png", file.getvalue())
        _add(archive, _LIST, "\n".join(ids) + "\n")


def _add(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    """Add a member that everyone may read to an archive, with a fixed date."""
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


class CvatMasks:
    """The masks in a zip file of CVAT, which are read one by one.

    Attributes:
        ids: Ids of the images that have a mask.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        """Open a zip file.

        Args:
            path: The zip file.
            class_names: The K foreground names. A label has one of them, or is the background or
                "unknown".

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is no zip file of CVAT, has a label of another name, or a member
                twice, so that which of them counts is a guess; names the file.
        """
        self._path = path
        known = named_values(class_names, background=BACKGROUND, unknown=UNKNOWN_NAME)
        try:
            with zip_errors():
                self._archive = zipfile.ZipFile(path)
            content = self._read("labelmap.txt").decode()
        except ValueError as error:
            raise self._error(f"no zip file of CVAT's: {error}") from error
        try:
            values = _label_values(content, known)
        except ValueError as error:
            raise self._error(str(error)) from error
        self._values = np.full(1 << 24, _NO_VALUE, np.uint16)  # by colour, as 0xRRGGBB
        self._values[list(values)] = list(values.values())
        members = self._archive.namelist()
        # Names may be in decomposed Unicode, as macOS writes them.
        names = [unicodedata.normalize("NFC", name) for name in members]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise self._error(f"{first_few(twice)} is in it twice")
        self._members = {
            name[len(_MASKS) : -4]: member
            for name, member in zip(names, members, strict=True)
            if name.startswith(_MASKS) and name.endswith(".png")
        }
        self.ids = list(self._members)

    def mask(self, image_id: str) -> np.ndarray:
        """Return the mask of an image, (H, W) uint8 in 0..K and 255.

        Raises:
            ValueError: The mask is missing or damaged, or has a colour that `labelmap.txt` does not
                list; names the file and the image.
        """
        try:
            content = self._read(self._members.get(image_id, f"{_MASKS}{image_id}.png"))
            with opened(io.BytesIO(content), formats=["PNG"]) as image:
                rgb = np.asarray(image.convert("RGB"))
        except BROKEN as error:
            raise self._error(
                f"{image_id}: no mask that can be read: {reason_of(error)}"
            ) from error
        pixels, mask = rgb.reshape(-1, 3), np.empty(rgb.shape[0] * rgb.shape[1], np.uint8)
        # In parts, because a small file can hold many pixels.
        for first in range(0, len(pixels), _AT_ONCE):
            part = pixels[first : first + _AT_ONCE]
            values = self._values[part.astype(np.int32) @ (1 << 16, 1 << 8, 1)]
            if (unnamed := values == _NO_VALUE).any():
                colour = tuple(part[unnamed.argmax()].tolist())
                raise self._error(f"{image_id}: labelmap.txt does not name the colour {colour}")
            mask[first : first + _AT_ONCE] = values
        return mask.reshape(rgb.shape[:2])

    def _read(self, name: str) -> bytes:
        """Return the bytes of a member; raise `ValueError` if it has none, or damaged ones."""
        try:
            if self._archive.getinfo(name).file_size > _LARGEST:
                raise ValueError(f"{name} has over {_LARGEST} bytes")
        except KeyError:
            raise ValueError(f"it holds no {name}") from None
        with zip_errors():
            return self._archive.read(name)

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"{self._path}: {reason}")


def _label_values(text: str, known: dict[str, int]) -> dict[int, int]:
    """Return colour, as 0xRRGGBB, -> mask value of a `labelmap.txt`.

    Args:
        text: The content of the file.
        known: Label -> mask value.

    Raises:
        ValueError: A line has no colour or an unknown label, or two labels have one colour.
    """
    values: dict[int, int] = {}
    # A line is LABEL:RED,GREEN,BLUE:PARTS:ACTIONS.
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, *rest = line.split(":")
        parts = rest[0].split(",") if rest else []
        if len(parts) != 3 or not all(x.strip().isdecimal() and int(x) < 256 for x in parts):
            raise ValueError(f"labelmap.txt: {shown(line)} has no colour")
        if name not in known:
            raise ValueError(f"labelmap.txt: the label {shown(name)} is none of {', '.join(known)}")
        red, green, blue = map(int, parts)
        code = red << 16 | green << 8 | blue
        if values.setdefault(code, known[name]) != known[name]:
            raise ValueError(f"labelmap.txt: two labels have the colour of {shown(line)}")
    return values
