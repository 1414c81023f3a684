"""Find the threshold at which CAMs have as much foreground as given masks, without ground truth.

A random walk spreads CAMs, and how far it spreads them depends on the CAMs that it starts from. So
a constant threshold fits one chain and not another. The masks of the previous stage supply the
amount of foreground instead.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from tool.crf.stage import Images
from tool.files import spelled
from tool.formats.cam import at_size, best_foreground, load_cam
from tool.formats.image import check_size
from tool.formats.predictions import check_classes, read_mask

BINS = 1000  # thresholds 0, 0.001, ..., 0.999


@dataclasses.dataclass(frozen=True)
class Areas:
    """Counter of an image's pixels, by the value of their best class and by its mask.

    Attributes:
        images: The dataset.
        cam_dir: Folder of the CAMs.
        mask_dir: Folder of the masks.
    """

    images: Images
    cam_dir: Path
    mask_dir: Path

    def __call__(self, image_id: str) -> np.ndarray:
        """Count the pixels of one image.

        Args:
            image_id: The image; both folders have a file of it.

        Returns:
            (BINS + 2,) int64: the pixels per bin of the best class's value, then the foreground
            pixels of the mask, then the pixels of the mask that are not 255.

        Raises:
            ValueError: The CAM has a background row, or a file is broken or of another size; names
                the file.
        """
        source = spelled(self.cam_dir, f"{image_id}.npy")
        cam = load_cam(source, label=lambda: self.images.label(image_id))
        check_classes(source, cam.class_index, self.images.num_classes)
        if cam.has_background:
            raise ValueError(f"{source}: a CAM with a background row takes no threshold")
        path = spelled(self.mask_dir, f"{image_id}.png")
        mask = read_mask(path, self.images.num_classes)
        size = self.images.image_size(image_id)[::-1]
        check_size(path, mask.shape, "its image", size)
        counts = np.zeros(BINS + 2, np.int64)
        if cam.class_index.size:
            score, _ = best_foreground(at_size(cam, size))  # (H, W)
            bins = (score.clip(0, 1) * BINS).astype(np.int64).clip(max=BINS - 1)
            counts[:BINS] = np.bincount(bins.ravel(), minlength=BINS)
        else:
            # Without a class every pixel has the value 0.
            counts[0] = mask.size
        counts[BINS:] = ((mask > 0) & (mask < 255)).sum(), (mask < 255).sum()
        return counts


def threshold_of(counts: np.ndarray) -> float:
    """Return the threshold at which the CAMs' share of foreground is closest to the masks'.

    Args:
        counts: (BINS + 2,) int64, the sum of what `Areas` returns over images.

    Returns:
        In [0, 1), a multiple of 1 / BINS; the lowest one if several are equally close.

    Raises:
        ValueError: The masks are all background, or all 255.
    """
    histogram, (foreground, known) = counts[:BINS], counts[BINS:]
    if not foreground:
        raise ValueError("--threshold-from: the masks have no foreground")
    above = histogram[::-1].cumsum()[::-1]  # (BINS,), pixels in a bin or a higher one
    # The masks' share is one of known pixels, because 255 says nothing about foreground.
    wanted = foreground / known * histogram.sum()
    return int(np.abs(above - wanted).argmin()) / BINS
