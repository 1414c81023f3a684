"""How the CAM of an image becomes its mask or seed: the settings of stage 3, without its files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tool.crf.dense import Preset
from tool.crf.jobs import Task, mask_task, seed_task, solve, solve_batch, threshold_task
from tool.formats.cam import Cam


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskMaker:
    """A maker of the mask or seed of an image in memory; it can be sent to another process.

    Attributes:
        preset: Kernels and iterations of the CRF.
        alpha: Exponent of the background score (1 - max)^alpha of CAMs without a background row.
        seeds: (FG, BG), the thresholds of a confident seed; None for a mask.
        threshold: For a mask without a CRF: the best class must exceed it to be foreground. None
            for a mask from a CRF.
        max_side: The longer side, in pixels, to which a larger photograph is reduced for the CRF.
            Its CAM is reduced to the same size, unless it has it already. The mask is enlarged at
            the end. None for images as they are.
        backend: The library that computes the CRF, as `tool.crf.dense.pick_backend` returns it.
        device: The torch device that computes.

    Raises:
        ValueError: A setting is out of range, `seeds` and `threshold` are both given, or `seeds`
            is given with a preset that is not on labels.
    """

    preset: Preset
    alpha: float
    seeds: tuple[float, float] | None = None
    threshold: float | None = None
    max_side: int | None = None
    backend: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha {self.alpha:g} is not a number above 0")
        if self.seeds is not None and not 0 <= self.seeds[1] <= self.seeds[0] <= 1:
            raise ValueError(
                f"seed thresholds FG {self.seeds[0]:g} BG {self.seeds[1]:g}: give FG first, and BG "
                "not above it, both from 0 to 1"
            )
        if self.threshold is not None and (self.seeds or not 0 <= self.threshold <= 1):
            raise ValueError(f"--threshold {self.threshold:g}: give 0 to 1, and no --seeds with it")
        if self.seeds is not None and not self.preset.from_labels:
            raise ValueError("a seed needs a preset on labels: label50, label20 or aff80")

    def task(self, image: np.ndarray, cam: Cam) -> Task:
        """Return the task of an image (H, W, 3) uint8: its mask or its seed."""
        if self.threshold is not None:
            return threshold_task(image, cam, self.threshold)
        if self.seeds is None:
            return mask_task(image, cam, self.preset, alpha=self.alpha)
        labels = len(cam.foreground().class_index) + 1
        fg, bg = self.seeds
        return seed_task(image, cam, self.preset, fg=fg, bg=bg, n_labels=labels)

    def mask(self, image: np.ndarray, cam: Cam) -> np.ndarray:
        """Return the mask (h, w) uint8 of an image in memory.

        Args:
            image: (h, w, 3) uint8, reduced to `max_side` if the photograph is larger.
            cam: The CAM as a file stores it, of the image's size.

        Raises:
            ValueError: The sizes differ.
        """
        task = self.task(image, cam)
        if self.device == "cpu":
            return solve(image, task, self.preset.crf, backend=self.backend)
        return solve_batch([image], [task], self.preset.crf, device=self.device)[0]

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine a mask, in plain types.

        The backend is not among them, because all backends agree to float tolerance.
        """
        size = {} if self.max_side is None else {"max_side": self.max_side}
        if self.threshold is not None:
            return {"threshold": self.threshold} | size
        return size | {
            "preset": dataclasses.asdict(self.preset),
            "alpha": self.alpha,
            "seed": list(self.seeds) if self.seeds else None,
        }
