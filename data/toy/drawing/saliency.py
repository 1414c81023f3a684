"""Saliency maps of the embedded dataset, with the errors of an off-the-shelf saliency network.

Some objects are missed, or found in part. Thin parts vanish. Rims are displaced and soft. In some
maps context or a distractor is salient, and some maps are faint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from data.toy.drawing import Rng
from data.toy.drawing.paint import fractal, grid, noise

Mask = np.ndarray  # (H, W) bool
MISSED, PARTIAL = 0.08, 0.09  # chance that an object is missed, or found in part
CONTEXT, DISTRACTOR, FAINT = 0.25, 0.18, 0.1  # chances per picture


def saliency_map(
    rng: Rng, instances: Sequence[Mask], context: Mask, distractors: Sequence[Mask]
) -> np.ndarray:
    """Draw the saliency map of one picture.

    Args:
        rng: The picture's generator.
        instances: One (H, W) bool per object, its visible pixels; at least one object.
        context: (H, W) bool, the visible pixels of all contexts.
        distractors: One (H, W) bool per distractor, its visible pixels.

    Returns:
        (H, W) uint8, 255 for the most salient.
    """
    # Collect what is noticed, and per pixel how strongly.
    shape = instances[0].shape
    seen, strength = np.zeros((2, *shape), np.float32)
    for found, level in _noticed(rng, instances, context, distractors):
        strength[found > seen] = level
        np.maximum(seen, found, out=seen)
    # Make it coarse, displaced, uneven and sometimes faint, and add some haze.
    level = _coarse(rng, seen) * _spread(seen, strength)
    level = _displaced(rng, level)
    level *= 0.8 + 0.3 * noise(rng, shape, 25)
    if rng.random() < FAINT:
        level *= rng.uniform(0.5, 0.75)
    level += (fractal(rng, shape, 20) ** 2) * rng.uniform(0.0, 0.18)
    return (level.clip(0, 1) * 255).astype(np.uint8)


def _noticed(
    rng: Rng, instances: Sequence[Mask], context: Mask, distractors: Sequence[Mask]
) -> Iterator[tuple[np.ndarray, float]]:
    """Choose what is noticed: most objects, sometimes context near one, sometimes a distractor.

    Yields:
        The place, (H, W) bool or in [0, 1], and the strength in [0, 1].
    """
    for instance in instances:
        draw = rng.random()
        if draw >= MISSED:
            found = _part(rng, instance) if draw < MISSED + PARTIAL else instance
            yield found, rng.uniform(0.72, 1.0)
    if rng.random() < CONTEXT:
        around = instances[rng.integers(len(instances))]
        yield _near(rng, around, context), rng.uniform(0.55, 1.0)
    if distractors and rng.random() < DISTRACTOR:
        yield distractors[rng.integers(len(distractors))], rng.uniform(0.55, 1.0)


def _spread(seen: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return `strength` (H, W), smoothed and extended a little beyond the pixels that are seen."""
    # A weighted mean over the pixels that are seen.
    weight = cv2.blur(seen, (9, 9)) + 1e-3
    return cv2.blur(seen * strength, (9, 9)) / weight


def _part(rng: Rng, instance: Mask) -> np.ndarray:
    """Return `instance` (H, W) float32 on one side only of a random line near its centre."""
    y, x = np.nonzero(instance)
    rows, columns = grid(instance.shape)
    angle = rng.uniform(0, 2 * np.pi)
    along = (columns - x.mean()) * np.cos(angle) + (rows - y.mean()) * np.sin(angle)
    cut = rng.uniform(-0.15, 0.25) * (np.ptp(x) + np.ptp(y) + 2) / 2
    return instance * ((along - cut) / 4).clip(0, 1).astype(np.float32)


def _near(rng: Rng, instance: Mask, context: Mask) -> np.ndarray:
    """Return the context near `instance`, (H, W) float32."""
    reach = int(rng.integers(15, 41)) | 1  # an odd side, so that the square has a centre
    around = cv2.dilate(instance.astype(np.float32), np.ones((reach, reach), np.uint8))
    return around * context


def _coarse(rng: Rng, level: np.ndarray) -> np.ndarray:
    """Return `level` at the resolution of a network: thin parts fade and corners become round."""
    # Reduce it, blur it, raise the contrast, and enlarge it again.
    factor = rng.uniform(2.0, 4.0)
    small = (max(4, round(level.shape[1] / factor)), max(4, round(level.shape[0] / factor)))
    low = cv2.resize(level, small, interpolation=cv2.INTER_AREA)
    low = cv2.GaussianBlur(low, (0, 0), rng.uniform(0.6, 1.1))
    low = ((low - 0.5) * rng.uniform(1.4, 2.4) + 0.5 + rng.uniform(-0.12, 0.12)).clip(0, 1)
    return cv2.resize(low, level.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _displaced(rng: Rng, level: np.ndarray) -> np.ndarray:
    """Return `level` distorted by a smooth random field of a few pixels."""
    shape, size = level.shape, rng.uniform(3, 11)
    rows, columns = grid(shape)
    rows = rows + (noise(rng, shape, 22) - 0.5) * size
    columns = columns + (noise(rng, shape, 22) - 0.5) * size
    return cv2.remap(level, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
