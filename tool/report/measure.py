"""How good the mask of one image is: against its truth, its saliency and its CAM."""

from __future__ import annotations

import dataclasses

import numpy as np

from tool.formats.image import check_size
from tool.formats.mask import UNKNOWN

SALIENT = 128  # of 255


@dataclasses.dataclass(frozen=True)
class Measures:
    """What one mask of an image is like. A share is in [0, 1], and None if it is not known.

    Attributes:
        iou: Per foreground class that is in the truth or in the mask, its IoU in this image; None
            without a truth.
        wrong: Share of the scored pixels whose class is wrong.
        saliency: 1 - the IoU of the mask's foreground with what is salient.
        crf: Share of the pixels that differ from the CAM's own mask.
        found: Foreground classes of the mask.
    """

    iou: dict[int, float] | None
    wrong: float | None
    saliency: float | None
    crf: float | None
    found: tuple[int, ...]

    @property
    def score(self) -> float | None:
        """The mean IoU over the classes; 1 if neither has any, None without a truth."""
        if self.iou is None:
            return None
        return sum(self.iou.values()) / len(self.iou) if self.iou else 1.0


def measure(
    mask: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    saliency: np.ndarray | None = None,
    cam_mask: np.ndarray | None = None,
) -> Measures:
    """Measure the mask of an image. What is predicted as unknown counts as background.

    Args:
        mask: (H, W) uint8 in 0..K or 255.
        truth: The same of the ground truth, whose 255 is not scored.
        saliency: (H, W) uint8.
        cam_mask: The mask of the CAM at its threshold, without a CRF.

    Raises:
        ValueError: The sizes differ.
    """
    for what, other in (("truth", truth), ("saliency map", saliency), ("CAM", cam_mask)):
        if other is not None:
            check_size("the mask", mask.shape, f"its {what}", other.shape)
    said = np.where(mask == UNKNOWN, np.uint8(0), mask)
    iou, wrong = (None, None) if truth is None else _against(said, truth)
    return Measures(
        iou=iou,
        wrong=wrong,
        saliency=None if saliency is None else 1 - _overlap(said > 0, saliency >= SALIENT),
        crf=None if cam_mask is None else float((said != cam_mask).mean()),
        found=classes_in(mask),
    )


def classes_in(mask: np.ndarray) -> tuple[int, ...]:
    """Return the foreground classes of a mask (H, W) uint8, ascending."""
    there = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist()
    return tuple(value for value in there if value not in (0, UNKNOWN))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels in which two masks of an image differ.

    Raises:
        ValueError: The sizes differ.
    """
    check_size("a mask", one.shape, "that of the other run", other.shape)
    return float((one != other).mean())


def _against(said: np.ndarray, truth: np.ndarray) -> tuple[dict[int, float], float]:
    """Return the IoU of each class, and the share of wrong pixels, among those that are scored."""
    scored = truth != UNKNOWN
    said, truth = said[scored], truth[scored]
    hit = np.bincount(truth[said == truth], minlength=256)
    union = np.bincount(truth, minlength=256) + np.bincount(said, minlength=256) - hit
    iou = {int(c): float(hit[c] / union[c]) for c in np.flatnonzero(union) if c}
    return iou, float((said != truth).mean()) if said.size else 0.0


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two sets of pixels, 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0
