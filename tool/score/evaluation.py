"""The counts of eval_miou.py in one pass over predictions and truth, and its treatment of 255."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tool.formats.cam import Cam, at_size, background_limit, best_foreground
from tool.formats.image import check_size
from tool.formats.mask import UNKNOWN
from tool.score.metrics import Scores, Sweep, count_confusion, count_leak, scores_of

PRED_255 = ("background", "error", "ignore")


@dataclasses.dataclass(eq=False)
class Evaluation:
    """The counts of a directory of predictions.

    Attributes:
        num_classes: K, without background.
        bg_threshold: Background threshold of CAMs without a background row, in [0, 1].
        pred_255: How a predicted 255 counts: as "background", as an "error", or not at all
            ("ignore").
        confusion: (K+1, K+1) int64, truth in rows and predictions in columns.
        sweep: The counts at 100 thresholds; None for no sweep.
        leak: (2, K) int64, the context pixels, and those of them predicted as their class.
        unknown_pixels: Number of scored pixels that were predicted 255.
        background_rows: Number of CAMs with a background row, on which no threshold acts.
        thresholded: Number of CAMs on which the threshold acts: they have a class and no background
            row.

    Raises:
        ValueError: `bg_threshold` or `pred_255` is not possible.
    """

    num_classes: int
    bg_threshold: float
    pred_255: str
    sweep: Sweep | None = None
    confusion: np.ndarray = dataclasses.field(init=False)
    leak: np.ndarray = dataclasses.field(init=False)
    unknown_pixels: int = 0
    background_rows: int = 0
    thresholded: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.bg_threshold <= 1:
            raise ValueError(f"background threshold {self.bg_threshold} is not in 0..1")
        if self.pred_255 not in PRED_255:
            raise ValueError(f"a predicted 255 is one of {PRED_255}, not {self.pred_255!r}")
        self.confusion = np.zeros((self.num_classes + 1, self.num_classes + 1), np.int64)
        self.leak = np.zeros((2, self.num_classes), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray | Cam) -> np.ndarray:
        """Count one image.

        Args:
            truth: (H, W) uint8 in 0..K; pixels of 255 are not counted.
            prediction: A mask (H, W) uint8, or a `Cam` that `at_size` can enlarge to (H, W).

        Returns:
            The predicted mask (H, W) uint8 as it was counted.

        Raises:
            ValueError: The sizes differ, or a 255 was predicted and `pred_255` is "error".
        """
        if isinstance(prediction, Cam):
            mask = self._add_cam(truth, prediction)
        else:
            mask = self._resolve(truth, prediction)
        self.confusion += count_confusion(truth, mask, self.num_classes)
        return mask

    def add_context(self, context: np.ndarray, mask: np.ndarray, label: np.ndarray) -> None:
        """Count the leak of one image; the arguments are those of `count_leak`."""
        self.leak += count_leak(context, mask, label)

    def sum_up(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace each count by its sum over several evaluations.

        Args:
            total: Maps int64 counts of any shape to their sum, as
                `tool.parallel.dist.sum_over_ranks` does.
        """
        self.confusion, self.leak = total(self.confusion), total(self.leak)
        counts = [self.unknown_pixels, self.background_rows, self.thresholded]
        pixels, rows, others = total(np.array(counts, np.int64)).tolist()
        self.unknown_pixels, self.background_rows, self.thresholded = pixels, rows, others
        if self.sweep is not None:
            self.sweep = Sweep(total(self.sweep.histogram), total(self.sweep.true))

    def scores(self) -> Scores:
        """Compute the scores of CAMs at the threshold, or of masks.

        Raises:
            ValueError: No pixel was scored.
        """
        scores = scores_of(self.confusion)
        if np.isnan(scores.miou):
            raise ValueError("there is no pixel to score: the ground truth is 255 everywhere")
        return scores

    def _add_cam(self, truth: np.ndarray, cam: Cam) -> np.ndarray:
        """Count a CAM in the sweep, if there is one, and return its mask at the threshold."""
        self.thresholded += bool(cam.class_index.size) and not cam.has_background
        # A CAM without classes may lack a size, so it gets that of the truth.
        if not cam.class_index.size:
            cam = Cam(cam.class_index, np.zeros((0, *truth.shape), np.float32))
        cam = at_size(cam, truth.shape)
        score, best = best_foreground(cam)  # (H, W) each
        foreground = score > background_limit(cam, self.bg_threshold)
        # If a background row decides, the decision must be the same at every threshold of the
        # sweep. Infinite scores ensure that.
        if cam.has_background:
            self.background_rows += 1
            score = np.where(foreground, np.float32(np.inf), np.float32(-np.inf))
        if self.sweep is not None:
            self.sweep.add(truth, score, best)
        return best * foreground

    def _resolve(self, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Count the predicted 255 of a mask, and return the mask with 255 resolved by `pred_255`.

        Raises:
            ValueError: The sizes differ, or there is a 255 and `pred_255` is "error".
        """
        check_size("the prediction", mask.shape, "its ground truth", truth.shape)
        # A predicted 255 matters only where the truth is scored.
        unknown = (mask == UNKNOWN) & (truth != UNKNOWN)
        count = int(unknown.sum())
        self.unknown_pixels += count
        if count and self.pred_255 == "error":
            raise ValueError(
                f"{count} pixels are predicted 255 (unknown): a seed is not a mask "
                "(--pred-255 background|ignore)"
            )
        return np.where(unknown, np.uint8(0), mask) if self.pred_255 == "background" else mask
