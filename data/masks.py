"""A look at the masks of a training list before the first step: what they hold, and how good."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.fields import Sources, read_labels
from tool.files import write_json
from tool.formats.mask import UNKNOWN
from tool.parallel import dist
from tool.parallel.processes import default_workers, map_processes
from tool.score.metrics import count_confusion, scores_of
from tool.score.truth import no_foreground

NAME = "masks.json"  # in the run directory


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What one mask holds.

    Attributes:
        values: (K+2,) int64, pixels of background, of each class and of 255.
        confusion: (K+1, K+1) int64, ground truth in rows, 255 in the mask as background; None
            without ground truth.
        is_truth: The mask equals the ground truth wherever that is known.
    """

    values: np.ndarray
    confusion: np.ndarray | None
    is_truth: bool


@dataclasses.dataclass(frozen=True)
class _Count:
    """A function of an image id that counts its mask, which can be sent to another process."""

    sources: Sources

    def __call__(self, image_id: str) -> _Counts:
        catalog = self.sources.catalog
        mask = read_labels(self.sources, image_id, key="mask", are_classes=True)
        values = np.bincount(mask.ravel(), minlength=256)
        values = np.append(values[: catalog.num_classes + 1], values[UNKNOWN])
        try:
            catalog.mask_path(image_id)
        except FileNotFoundError:
            return _Counts(values, None, is_truth=False)
        truth = catalog.read_mask(image_id)
        known = truth != UNKNOWN
        guess = np.where(mask == UNKNOWN, np.uint8(0), mask)
        confusion = count_confusion(truth, guess, catalog.num_classes)
        return _Counts(values, confusion, is_truth=bool((mask == truth)[known].all()))


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the masks of a list hold.

    Attributes:
        class_names: The K foreground names.
        values: (K+2,) int64, pixels of background, of each class and of 255.
        images: Number of masks.
        empty: Number of masks without any foreground pixel.
        scored: Number of masks of which there is ground truth.
        miou: Of those masks against it, in [0, 1]; None without any, or if it has no foreground.
        is_truth: All of these masks equal the ground truth, which has foreground.
        truth: The folders of the ground truth, for a message.
    """

    class_names: tuple[str, ...]
    values: np.ndarray
    images: int
    empty: int
    scored: int
    miou: float | None
    is_truth: bool
    truth: str

    def lines(self) -> list[str]:
        """Return what is printed."""
        names = ("background", *self.class_names, "unknown")
        shares = 100 * self.values / self.values.sum()
        found = [
            f"{name} {share:.1f}" for name, share in zip(names, shares, strict=True) if share > 0
        ]
        lines = [f"masks of {self.images} images, % of the pixels: {', '.join(found)}"]
        if self.empty:
            lines.append(f"masks: {self.empty} of {self.images} have no foreground")
        if self.is_truth:
            lines.append("masks: they equal the ground truth: full supervision, an upper bound")
        elif self.miou is not None:
            lines.append(
                f"masks: mIoU {100 * self.miou:.1f} against the ground truth of {self.scored} "
                "images, which training does not see"
            )
        elif self.scored:
            lines.append(f"masks: no score: {no_foreground(self.truth, len(self.class_names))}")
        return lines

    def document(self) -> dict[str, Any]:
        """Return what is written into the run directory."""
        pixels = dict(
            zip(("background", *self.class_names, "unknown"), self.values.tolist(), strict=True)
        )
        return {
            "images": self.images,
            "without_foreground": self.empty,
            "pixels": pixels,
            "scored_images": self.scored,
            "miou": self.miou,
            "is_ground_truth": self.is_truth,
        }


def survey(sources: Sources, ids: Sequence[str], *, workers: int | None = None) -> Survey:
    """Count what the masks of a list hold, and score them where there is ground truth.

    Args:
        sources: Where the masks are.
        ids: The images, at least one.
        workers: Number of processes; None for one per core, and a single one for a short list.

    Raises:
        ValueError: A mask is broken, or none has a foreground pixel.
    """
    catalog, empty, scored, same = sources.catalog, 0, 0, 0
    values = np.zeros(catalog.num_classes + 2, np.int64)
    confusion = np.zeros((catalog.num_classes + 1,) * 2, np.int64)
    workers = workers or (default_workers() if len(ids) > 1000 else 1)
    for counts in map_processes(_Count(sources), ids, workers=workers):
        values += counts.values
        empty += not counts.values[1:-1].any()
        if counts.confusion is not None:
            confusion += counts.confusion
            scored += 1
            same += counts.is_truth
    if empty == len(ids):
        where = sources.previous.folders.get("mask")
        raise ValueError(
            f"none of the {len(ids)} masks in {where} has a foreground pixel: a network trained on "
            "them would predict background only (--mask-dir)"
        )
    # Ground truth without foreground would give empty masks a score of 100.
    has_truth = bool(confusion[1:].any())
    return Survey(
        class_names=catalog.class_names,
        values=values,
        images=len(ids),
        empty=empty,
        scored=scored,
        miou=scores_of(confusion).miou if has_truth else None,
        is_truth=has_truth and scored == same,
        truth=", ".join(catalog.layout.masks),
    )


def write_survey(found: Survey, directory: Path) -> None:
    """Write a survey into a run directory."""
    write_json(directory / NAME, found.document())


def look_at_masks(sources: Sources, ids: Sequence[str], out: Path) -> None:
    """Print the share of each class in the masks of the list, and note it in the run directory.

    Args:
        sources: Where the masks are.
        ids: The images.
        out: The run directory.

    Raises:
        ValueError: A mask is broken, or none has a foreground pixel.
    """
    with dist.all_or_none():
        if dist.is_main():
            found = survey(sources, ids)
            for line in found.lines():
                print(line, flush=True)
            write_survey(found, out)
