"""Confusion counts and the scores from them: IoU, precision, recall, threshold sweep, leak score.

Everything is counted in int64 in one pass over the images, so the counts of parts of a dataset add
up to those of the whole. For each best foreground class, the sweep keeps a histogram of its score
over the thresholds. The histogram determines the prediction at every threshold. So the sweep gives
the same counts as a separate evaluation per threshold.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tool.formats.image import check_size
from tool.formats.mask import UNKNOWN

# The thresholds 0.00, 0.01, ... 0.99 as i / 100. Scores are float32 and `score > t` is compared in
# float32, so `_LIMITS` has the thresholds in float32. Its ends are NaN, because every comparison
# with NaN is false.
THRESHOLDS = np.arange(100) / 100
_LIMITS = np.concatenate([[np.nan], THRESHOLDS, [np.nan]]).astype(np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Shares in [0, 1] for each of K + 1 classes, background first.

    Attributes:
        iou: (K+1,) float64, NaN if a class is in neither truth nor prediction.
        precision: (K+1,), NaN if a class is never predicted.
        recall: (K+1,), NaN if a class is not in the truth.
        miou: Mean of `iou` over the classes in truth or prediction, NaN if there are none.
    """

    iou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    miou: float


def count_confusion(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels of each true class (row) that are predicted as each class (column).

    Args:
        truth: (H, W) uint8 in 0..K; pixels of 255 are not counted.
        prediction: (H, W) uint8 in 0..K; pixels of 255 are not counted either.
        num_classes: K, without background.

    Returns:
        (K+1, K+1) int64.

    Raises:
        ValueError: The sizes differ.
    """
    check_size("the prediction", prediction.shape, "its ground truth", truth.shape)
    side = num_classes + 1
    # Count in a table of all 256 values, in which 255 has its own row and column. Then leave them
    # out. Each pixel becomes the number of its cell in that table.
    pairs = truth.astype(np.int32) * 256 + prediction  # (H, W)
    return np.bincount(pairs.ravel(), minlength=256 * 256).reshape(256, 256)[:side, :side]


def scores_of(confusion: np.ndarray) -> Scores:
    """Compute the scores of a confusion matrix (K+1, K+1), truth in rows."""
    return scores_of_counts(np.diagonal(confusion), confusion.sum(0), confusion.sum(1))


def scores_of_counts(hit: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> Scores:
    """Compute the scores of three counts per class.

    IoU = hit / (predicted + true - hit), precision = hit / predicted, recall = hit / true.

    Args:
        hit: (K+1,) int64, true positives.
        predicted: (K+1,) int64, pixels predicted as the class.
        true: (K+1,) int64, pixels of the true class.
    """
    iou = _share(hit, predicted + true - hit)
    there = ~np.isnan(iou)
    miou = float(iou[there].mean()) if there.any() else float("nan")
    return Scores(iou, _share(hit, predicted), _share(hit, true), miou)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def sweep_bin(score: np.ndarray) -> np.ndarray:
    """Return how many of the 100 thresholds lie below each score.

    Args:
        score: float32 of any shape; infinite values are allowed.

    Returns:
        int64 of the same shape, in 0..100.
    """
    # ceil(100 score) is the number, up to one because of rounding.
    guess = np.clip(score, 0, 1)
    guess *= np.float32(100)
    guess = np.ceil(guess, out=guess).astype(np.int64)
    # Correct it by comparing with the thresholds themselves; `_LIMITS[n]` is the n-th of them.
    guess -= _LIMITS[guess] >= score
    guess += _LIMITS[guess + 1] < score
    return guess


@dataclasses.dataclass(eq=False)
class Sweep:
    """The counts for 100 thresholds from one pass.

    Attributes:
        histogram: (5, K+1, 101) int64, the number of pixels by kind of truth, by best foreground
            class, and by the number of thresholds below the score. The kinds of truth are: 0
            another class, 1 the best foreground class itself, 2 background, 3 background at a pixel
            without a foreground class, 4 not scored.
        true: (K+1,) int64, pixels of each true class.
    """

    histogram: np.ndarray
    true: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> Sweep:
        """Return the counts of no image."""
        side = num_classes + 1
        return cls(np.zeros((5, side, 101), np.int64), np.zeros(side, np.int64))

    def add(self, truth: np.ndarray, score: np.ndarray, best: np.ndarray) -> None:
        """Count one image.

        Args:
            truth: (H, W) uint8 in 0..K; pixels of 255 are not counted.
            score: (H, W) float32, the score of the best foreground class, -inf if there is none. A
                score of +inf is foreground at every threshold.
            best: (H, W) uint8, that class in 1..K, 0 if there is none.

        Raises:
            ValueError: The sizes differ.
        """
        check_size("the prediction", best.shape, "its ground truth", truth.shape)
        side = len(self.true)
        # The kinds of truth as one number in 0..4; background and `best` = 0 together give 3.
        kind = (truth == best) + 2 * (truth == 0).view(np.uint8) + 4 * (truth == UNKNOWN)
        # Each pixel becomes the number of its cell in the histogram.
        cell = (kind.astype(np.int32) * side + best) * 101 + sweep_bin(score)  # (H, W)
        counts = np.bincount(cell.ravel(), minlength=5 * side * 101)
        self.histogram += counts.reshape(5, side, 101)
        self.true += np.bincount(truth.ravel(), minlength=256)[:side]

    def scores(self) -> list[Scores]:
        """Compute the scores at each of the 100 thresholds, equal to separate evaluations.

        Returns:
            The scores in the order of `THRESHOLDS`.
        """
        # At threshold i a pixel is foreground if its bin is above i, so sum from the right.
        scored = self.histogram[:4]  # (4, K+1, 101)
        above = scored[:, :, ::-1].cumsum(2)[:, :, ::-1][:, :, 1:]  # (4, K+1, 100)
        # For the foreground classes: a hit is a pixel whose truth is the best class (kind 1).
        hit, predicted = above[1].copy(), above.sum(0)  # (K+1, 100)
        # All other pixels are predicted as background. They are hits if their truth is background
        # (kinds 2 and 3).
        hit[0] = scored[2:].sum() - above[2:].sum((0, 1))
        predicted[0] = scored.sum() - predicted.sum(0)
        columns = zip(hit.T, predicted.T, strict=True)
        return [scores_of_counts(h, p, self.true) for h, p in columns]

    def __iadd__(self, other: Sweep) -> Sweep:
        """Add the counts of another sweep."""
        self.histogram += other.histogram
        self.true += other.true
        return self


def count_leak(context: np.ndarray, prediction: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Count the context pixels of each class, and those predicted as that class.

    Args:
        context: (H, W) uint8. A value c > 0 marks context of class c, such as its rails or its
            water, which belongs to no object.
        prediction: (H, W) uint8, the predicted mask.
        present: (K,) {0, 1}, the image's label. The context of a class counts only if the image has
            the class.

    Returns:
        (2, K) int64, all context pixels per class, then the leaked ones.

    Raises:
        ValueError: The sizes differ.
    """
    check_size("the prediction", prediction.shape, "its context", context.shape)
    classes = len(present)
    # A context pixel leaks if it is predicted as the class whose context it is.
    leaked = context[(context == prediction) & (context > 0)]
    counts = [np.bincount(part.ravel(), minlength=classes + 1) for part in (context, leaked)]
    return np.stack(counts)[:, 1 : classes + 1] * (present > 0)
