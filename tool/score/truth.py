"""Which ground truth was scored: the folders of its files, and a hash of them all."""

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
        f"no ground truth in {where} has a pixel of a class: a mask has class indices, 0 for "
        f"background, 1..{num_classes}, and 255 for not scored"
    )


@dataclasses.dataclass(eq=False)
class TruthFiles:
    """The ground-truth files of a list, counted and hashed one by one, in whatever order.

    Attributes:
        root: The dataset.
        folders: Those that masks can lie in, relative to the root.
        counts: (F,) int64, files of each folder.
        digest: (8,) int64, the sum of the words of each file's SHA-256 with its id. So ranks can
            add what each has read.
    """

    root: Path
    folders: tuple[str, ...]
    counts: np.ndarray = dataclasses.field(init=False)
    digest: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.digest = np.zeros(len(self.folders), np.int64), np.zeros(8, np.int64)

    def add(self, image_id: str, path: Path) -> None:
        """Count the file of an image."""
        self.counts[
            [path.is_relative_to(self.root / name) for name in self.folders].index(True)
        ] += 1
        digest = hashlib.sha256(f"{image_id}\0".encode() + path.read_bytes()).digest()
        self.digest += np.frombuffer(digest, ">u4").astype(np.int64)

    def sum_up(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace the counts by their sums over several of these; as `Evaluation.sum_up`."""
        self.counts, self.digest = total(self.counts), total(self.digest)

    def note(self) -> dict[str, Any]:
        """Return what the protocol says: the folders with files, and the hash."""
        used = [(n, c) for n, c in zip(self.folders, self.counts.tolist(), strict=True) if c]
        names = used[0][0] if len(used) == 1 else ", ".join(f"{n} ({c} images)" for n, c in used)
        digest = hashlib.sha256(self.digest.astype("<i8").tobytes()).hexdigest()
        return {"ground_truth": names, "ground_truth_sha256": digest}
