"""Note which ground truth was scored: the folders of its files, and one hash of all files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def no_foreground(where: object, num_classes: int) -> str:
    """Return what is wrong with ground truth of which no pixel is of a class.

    Args:
        where: Its folder.
        num_classes: K.
    """
    return (
        f"the ground truth in {where} is 0 (background) or 255 (not scored) everywhere: the pixels "
        f"of a class have its index, 1 to {num_classes}"
    )


@dataclasses.dataclass(eq=False)
class TruthFiles:
    """The ground-truth files of an image list, counted and hashed one by one, in any order.

    Attributes:
        root: The folder of the dataset.
        folders: The F folders that masks can lie in, relative to the root.
        counts: (F,) int64, the number of files per folder.
        digest: (8,) int64, the sum over files of the eight 32-bit words of a SHA-256. It hashes the
            image's id and the file. A sum does not depend on the order of the files, and ranks can
            add their parts.
    """

    root: Path
    folders: tuple[str, ...]
    counts: np.ndarray = dataclasses.field(init=False)
    digest: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.digest = np.zeros(len(self.folders), np.int64), np.zeros(8, np.int64)

    def add(self, image_id: str, path: Path) -> None:
        """Count and hash the file of an image.

        Args:
            image_id: The image.
            path: Its file, in one of `folders`.

        Raises:
            ValueError: The file is in none of them.
        """
        self.counts[
            [path.is_relative_to(self.root / name) for name in self.folders].index(True)
        ] += 1
        digest = hashlib.sha256(f"{image_id}\0".encode() + path.read_bytes()).digest()
        self.digest += np.frombuffer(digest, ">u4").astype(np.int64)

    def sum_up(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the counts and the digest by their sums over ranks, as `Evaluation.sum_up` does.

        Args:
            total: Maps int64 counts of any shape to their sum.
        """
        self.counts, self.digest = total(self.counts), total(self.digest)

    def note(self) -> dict[str, Any]:
        """Return two entries of the protocol: the folders with files, and one hash of all files."""
        used = [(n, c) for n, c in zip(self.folders, self.counts.tolist(), strict=True) if c]
        # A single folder needs no number of images.
        names = used[0][0] if len(used) == 1 else ", ".join(f"{n} ({c} images)" for n, c in used)
        digest = hashlib.sha256(self.digest.astype("<i8").tobytes()).hexdigest()
        return {"ground_truth": names, "ground_truth_sha256": digest}
