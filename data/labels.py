"""Image-level labels in `labels.csv`, the field's `cls_labels.npy` or VOC's annotations."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data.class_names import read_text
from data.files import check_id, find_file
from tool.files import meant, spelled

HEADER = ["image_id", "classes"]


def number_as_id(number: int) -> tuple[str, ...]:
    """Return the image ids that a number stands for, in a dataset without a rule of its own."""
    return (str(number),)


def read_labels(
    path: Path,
    class_names: tuple[str, ...],
    ids_of_int: Callable[[int], tuple[str, ...]] = number_as_id,
) -> Mapping[str, np.ndarray]:
    """Return the labels of a `.npy` or a `.csv` file, or of a folder of VOC's `.xml` files.

    Args:
        path: The file, `.npy` or `.csv`, or the folder.
        class_names: The K foreground classes.
        ids_of_int: Returns the image ids that an integer key of a `.npy` file can stand for.

    Returns:
        Image id -> (K,) float32 {0, 1}.

    Raises:
        FileNotFoundError: The file does not exist, or the folder has no `.xml` file.
        ValueError: The file is not a labels file, or its classes are not those of `class_names`.
    """
    if path.is_dir():
        if next(path.glob("*.xml"), None) is None:
            raise FileNotFoundError(f"labels {path} is a folder without .xml files (--labels)")
        return AnnotationLabels(path, class_names)
    if not path.is_file():
        raise FileNotFoundError(f"labels {path} do not exist: pass --labels")
    if path.suffix == ".npy":
        return _read_npy(path, len(class_names), ids_of_int)
    if path.suffix == ".csv":
        rows = csv_rows(path)
        return {one: _one_label(names, class_names, f"{path}: {one!r}") for one, names in rows}
    raise ValueError(f"labels {path} are neither .csv nor .npy nor a folder of .xml (--labels)")


def read_agreeing_labels(
    path: Path,
    others: Iterable[Path],
    class_names: tuple[str, ...],
    ids_of_int: Callable[[int], tuple[str, ...]] = number_as_id,
) -> Mapping[str, np.ndarray]:
    """Return the labels of a file, and check that no other file gives an image another label.

    Args:
        path: The file or folder, as for `read_labels`.
        others: Other files of labels; those that do not exist are left out.
        class_names: The K foreground classes.
        ids_of_int: As for `read_labels`.

    Returns:
        Image id -> (K,) float32 {0, 1}, of `path`.

    Raises:
        FileNotFoundError: As `read_labels`.
        ValueError: As `read_labels`, or another file gives an image of `path` another label; names
            both files and the image.
    """
    labels = read_labels(path, class_names, ids_of_int)
    for other in filter(Path.is_file, others):
        compared = read_labels(other, class_names, ids_of_int)
        for image_id, label in labels.items():
            if image_id in compared and not np.array_equal(compared[image_id], label):
                raise ValueError(
                    f"{path} and {other} give {image_id!r} different labels: remove one of them, "
                    "or pass --labels"
                )
    return labels


class AnnotationLabels(Mapping[str, np.ndarray]):
    """The labels in VOC's `Annotations/ID.xml`, as {image id: label}.

    A file is read when its image is looked up.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...]) -> None:
        self.folder, self.class_names = folder, class_names

    def __getitem__(self, image_id: str) -> np.ndarray:
        """Return the label (K,) float32 {0, 1}.

        Raises:
            KeyError: The image has no file.
            ValueError: The file is broken or names another class.
        """
        if image_id not in self:
            raise KeyError(image_id)
        path = self.path(image_id)
        return _one_label(_object_names(path), self.class_names, str(path))

    def path(self, image_id: str) -> Path:
        """Return the file of an image; `FileNotFoundError` names the id, the path and the flag."""
        return find_file([self.folder], image_id, (".xml",), what="annotation", flag="--root")

    def __contains__(self, image_id: object) -> bool:
        return spelled(self.folder, f"{check_id(str(image_id))}.xml").is_file()

    def __iter__(self) -> Iterator[str]:
        files = sorted(self.folder.glob("*.xml"))
        return (path.stem for path in files if not path.name.startswith("."))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _object_names(path: Path) -> list[str]:
    """Return the class name of every object of a VOC annotation, at least one.

    Raises:
        ValueError: The file is no such annotation; names it.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: encodings
        raise ValueError(f"{path} is not an XML file: {error}") from error
    if root.tag != "annotation":
        raise ValueError(f"{path} is not a VOC annotation: its root is <{root.tag[:60]}>")
    objects = root.findall("object")
    if not objects:
        raise ValueError(f"{path} is not a VOC annotation: it has no object")
    names = [[(name.text or "").strip() for name in one.findall("name")] for one in objects]
    if not all(len(each) == 1 and each[0] for each in names):
        raise ValueError(f"{path} is not a VOC annotation: an object without one name")
    return [name for (name,) in names]


def csv_rows(path: Path) -> list[tuple[str, list[str]]]:
    """Return the rows of a `labels.csv`: the image id, and the names of its classes.

    Raises:
        ValueError: The file is not CSV, or it has another header, an invalid row or an id twice.
    """
    lines = read_text(path).splitlines(keepends=True)
    # Where the comma is decimal, spreadsheets separate columns by semicolons.
    comma = ";" if lines and lines[0].strip().replace('"', "") == ";".join(HEADER) else ","
    try:
        rows = list(csv.reader(lines, strict=True, delimiter=comma))
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    first = [cell.strip() for cell in rows[0]] if rows else []
    if first != HEADER:
        raise ValueError(
            f"{path} must begin with the header {','.join(HEADER)!r}, not with "
            f"{','.join(first)[:60]!r}"
        )
    found: dict[str, list[str]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if comma == ";" and len(row) > 2:  # without quotes, each class is a column
            row = [row[0], ";".join(row[1:])]
        if len(row) != 2 or not row[0].strip():
            raise ValueError(
                f"{path} row {number} is not 'image_id{comma}class;class': {comma.join(row)!r}"
            )
        image_id = row[0].strip()
        if image_id in found:
            raise ValueError(
                f"{path} row {number} labels {image_id!r} a second time: remove one of the rows"
            )
        found[image_id] = [name for name in map(str.strip, row[1].split(";")) if name]
    return list(found.items())


def csv_bytes(rows: Iterable[tuple[str, Sequence[str]]]) -> bytes:
    """Return a `labels.csv` with these rows: image ids, and the names of their classes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([image_id, ";".join(names)] for image_id, names in rows)
    return text.getvalue().encode()


def label_files(
    root: Path, labels: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[Path, bytes]:
    """Return the contents of `labels.csv` and `cls_labels.npy`, by path.

    The second is the pickled dictionary that the field's code expects.

    Args:
        root: The folder of the files.
        labels: Image id -> (K,) float32 {0, 1}.
        class_names: The K foreground classes.
    """
    pickled = io.BytesIO()
    rows = (
        (image_id, [class_names[index] for index in np.flatnonzero(label)])
        for image_id, label in labels.items()
    )
    np.save(pickled, np.array(dict(labels), dtype=object), allow_pickle=True)
    return {
        root / "labels.csv": csv_bytes(rows),
        root / "cls_labels.npy": pickled.getvalue(),
    }


def _one_label(names: list[str], class_names: tuple[str, ...], where: str) -> np.ndarray:
    """Return the label (K,) of an image with these classes."""
    for name in names:
        if name not in class_names:
            several = " (separate classes by ;)" if "," in name else meant(name[:60], class_names)
            raise ValueError(
                f"{where}: unknown class {name[:60]!r}{several}; there are {', '.join(class_names)}"
            )
    return np.array([name in names for name in class_names], np.float32)


def _read_npy(
    path: Path, num_classes: int, ids_of_int: Callable[[int], tuple[str, ...]]
) -> dict[str, np.ndarray]:
    from tool.formats.npy import load_npy

    content = load_npy(path)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no dictionary of image id -> label")
    labels: dict[str, np.ndarray] = {}
    for key, value in content.items():
        if isinstance(key, bool) or not isinstance(key, (str, int, np.integer)):
            raise ValueError(f"{path}: key {key!r} is neither a string nor an integer")
        if isinstance(key, str):
            # COCO's numbers may be text, too, filled up with zeros.
            is_number = key.isdecimal() and len(key) <= 12 and ids_of_int is not number_as_id
            name = unicodedata.normalize("NFC", key)
            ids = ids_of_int(int(key)) if is_number else (name,)
        else:
            ids = ids_of_int(int(key))
        for image_id in ids:
            if image_id in labels:
                raise ValueError(f"{path} labels {image_id!r} a second time")
            labels[image_id] = _binary(value, num_classes, f"{path}: label of {image_id!r}")
    return labels


def _binary(value: object, num_classes: int, where: str) -> np.ndarray:
    try:
        label = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is not an array of numbers") from error
    if label.shape != (num_classes,):
        raise ValueError(f"{where} has shape {label.shape}: there are {num_classes} classes")
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"{where} has values other than 0 and 1")
    return label
