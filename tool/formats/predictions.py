"""The predictions in a directory for a list of images: mask PNGs or CAM files, one per image."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tool.files import first_few, spelled
from tool.formats.cam import Cam, Label, load_cam
from tool.formats.mask import UNKNOWN, load_mask, misplaced_colour


def require_files(
    directory: Path, image_ids: Sequence[str], suffix: str, *, what: str, stage: str
) -> None:
    """Check that `directory` has the file `ID` + `suffix` of every image.

    Args:
        directory: The folder of the files. Their names may be in another Unicode form (NFC or NFD)
            than the ids.
        image_ids: The ids of the images.
        suffix: The end of the file names, with its dot.
        what: The kind of file, in the plural, for the message.
        stage: The program that makes the files, for the message.

    Raises:
        FileNotFoundError: The folder does not exist, or files are missing; says how many, and names
            the ids of the first few.
        ValueError: Two files have the name of one image, in different Unicode forms.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"folder of {what} {directory} does not exist: run {stage} first")
    names = [(image_id, f"{image_id}{suffix}") for image_id in image_ids]
    missing = [image_id for image_id, name in names if not spelled(directory, name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(image_ids)} {what} are missing in {directory} "
            f"({first_few(missing)}): run {stage} first"
        )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a list of images.

    Attributes:
        directory: The folder of the files.
        kind: "mask" (ID.png) or "cam" (ID.npy).
    """

    directory: Path
    kind: str

    @classmethod
    def find(cls, directory: Path, image_ids: Sequence[str]) -> Predictions:
        """Return the predictions in `directory`, of the kind that it holds.

        Args:
            directory: The folder of the files.
            image_ids: The ids of the images; each must have a prediction.

        Raises:
            FileNotFoundError: The folder or predictions are missing; names the first few
                predictions, and how many.
            ValueError: The folder holds both kinds, or two files of one image.
        """
        has_cam, has_mask = (
            any(spelled(directory, f"{name}{suffix}").is_file() for name in image_ids)
            for suffix in (".npy", ".png")
        )
        if has_cam and has_mask:
            raise ValueError(f"{directory} holds both masks and CAMs: keep them in folders apart")
        if has_cam:
            require_files(directory, image_ids, ".npy", what="CAMs", stage="infer_cam.py")
        else:
            stage = "infer_cam.py or crf_postprocess.py"
            require_files(directory, image_ids, ".png", what="predictions", stage=stage)
        return cls(directory, "cam" if has_cam else "mask")

    def path(self, image_id: str) -> Path:
        """Return the path of the prediction of one image.

        Raises:
            ValueError: Two files have the name, in different Unicode forms.
        """
        return spelled(self.directory, f"{image_id}{'.npy' if self.kind == 'cam' else '.png'}")

    def read(self, image_id: str, *, num_classes: int, label: Label = None) -> np.ndarray | Cam:
        """Read the prediction of one image: a mask (H, W) uint8, or a `Cam`.

        Args:
            image_id: The id of the image.
            num_classes: K, the largest class that a prediction may have.
            label: As for `load_cam`.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is broken or has a class above `num_classes`; names the file.
        """
        path = self.path(image_id)
        if self.kind == "cam":
            cam = load_cam(path, label=label)
            check_classes(path, cam.class_index, num_classes)
            return cam
        return read_mask(path, num_classes)


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """Read a mask (H, W) uint8 and check its classes.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is broken or has a class above `num_classes` that is not 255.
    """
    mask = load_mask(path)
    check_classes(path, np.flatnonzero(np.bincount(mask.ravel(), minlength=256)), num_classes)
    return mask


def colour_warning(paths: Iterable[Path], *, first: int = 20) -> str | None:
    """Return a warning if a mask has the benchmarks' colours at other indices, else None.

    Args:
        paths: The masks. Files that cannot be read are skipped here; their reader reports them.
        first: The number of masks that are checked.
    """
    for path in itertools.islice(paths, first):
        try:
            found = misplaced_colour(path)
        except (ValueError, FileNotFoundError):
            continue
        if found is not None:
            value, index = found
            return (
                f"warning: {path} has the colour of class {index} at the value {value}: its values "
                "count, not its colours; was it saved with fewer colours?"
            )
    return None


def foreground_warning(paths: Iterable[Path], what: str, *, first: int = 200) -> str | None:
    """Return a warning if none of the first masks has a pixel of a class, else None.

    Args:
        paths: The masks. Files that cannot be read are skipped here; their reader reports them.
        what: The kind of file, in the plural.
        first: The number of masks that are looked at. One with a class ends the search.
    """
    seen = None
    for path in itertools.islice(paths, first):
        try:
            mask = load_mask(path)
        except (ValueError, FileNotFoundError):
            continue
        if ((mask > 0) & (mask != UNKNOWN)).any():
            return None
        seen = path
    if seen is None:
        return None
    return f"warning: the {what} in {seen.parent} have no pixel of a class, only 0 and {UNKNOWN}"


def check_classes(path: Path, values: np.ndarray, num_classes: int) -> None:
    """Check that no value is above `num_classes`, except 255.

    Raises:
        ValueError: A value is above it; names the file and the first such value.
    """
    wrong = [int(value) for value in values if num_classes < value != UNKNOWN]
    if wrong:
        raise ValueError(
            f"{path} has class {wrong[0]}: there are {num_classes} classes, and 255 is unknown"
        )
