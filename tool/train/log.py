"""The log of a run: `log.jsonl`, TensorBoard scalars, and a picture every N steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from tool.documents import read_rows
from tool.files import atomic_path
from tool.train.batch import Batch, Trainable


class RunLog:
    """A writer of the logs of a run directory.

    Rows after `start_step`, which a killed run left, are dropped.

    Args:
        directory: The run directory.
        start_step: Number of steps that the checkpoint in it has done.
        mean: Mean of the network's input, to show images as they were.
        std: Standard deviation of the network's input.
    """

    def __init__(
        self, directory: Path, *, start_step: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.directory = Path(directory)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (mean, std))
        path = self.directory / "log.jsonl"
        _keep_rows(path, start_step)
        self._rows = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._board = SummaryWriter(self.directory, purge_step=start_step + 1)

    def scalars(self, step: int, values: dict[str, dict[str, float]]) -> None:
        """Write one row of values after `step` steps.

        Args:
            step: Number of steps done.
            values: {group: {name: value}}. A tag in TensorBoard is GROUP/NAME; the row of
                `log.jsonl` has the names alone, which differ.
        """
        row = {name: value for group in values.values() for name, value in group.items()}
        self._rows.write(json.dumps({"step": step, **row}) + "\n")
        self._rows.flush()
        for group, some in values.items():
            for name, value in some.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def picture(self, step: int, batch: Batch, method: Trainable) -> None:
        """Write `pictures/STEP.png`: the first image, the method's maps of it, their pseudo label.

        Args:
            step: Number of steps done.
            batch: Its "image" is (N, 3, H, W), normalised.
            method: Makes the maps in evaluation mode; left in training mode.
        """
        method.eval()
        with torch.no_grad():
            maps = method.pictures(batch)
        method.train()
        image = (batch["image"][0].float().cpu() * self.std + self.mean).clamp(0, 1)
        maps = {name: values.float().cpu() for name, values in maps.items()}
        threshold = None if method.has_background else method.recipe.post.threshold
        picture = training_picture(image, maps, bg_threshold=threshold)
        path = self.directory / "pictures" / f"{step:06d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        self._board.add_image("training", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        self._rows.close()
        self._board.close()


def training_picture(image: Tensor, maps: dict[str, Tensor], *, bg_threshold: float | None) -> Any:
    """Return a picture: the image, the best class of each map as heat, the pseudo label.

    Args:
        image: (3, H, W) in [0, 1].
        maps: name -> (K, h, w) in [0, 1], or (K+1, h, w) with the background first.
        bg_threshold: Where the CAM is not above it, the pseudo label is background. None if the
            maps have a background row, which comes first.

    Returns:
        (H + caption, n W, 3) uint8. The pseudo label is that of the map `gated CAM`, else of `cam`.
        If there is `prob` instead, a segmentation network's, it is called a mask. Without any of
        them there is none.
    """
    from tool.report.picture import (  # imports OpenCV, which a run without pictures does not need
        heat,
        label_colours,
        strip,
    )

    base = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)  # (H, W, 3)
    panels = [("image", base)]
    # Enlarge all maps to the size of the image: (K, H, W).
    sized = {
        name: torch.nn.functional.interpolate(
            values[None], size=base.shape[:2], mode="bilinear", align_corners=False
        )[0]
        for name, values in maps.items()
    }
    # The heat of a pixel is the largest value over the classes.
    for name, values in sized.items():
        skipped = bg_threshold is None and len(values) > 1  # the background row
        panels.append((name, heat(base, values[skipped:].amax(dim=0).numpy())))
    shown = next((name for name in ("gated CAM", "cam", "prob") if name in sized), None)
    if shown is not None:
        best, index = sized[shown].max(dim=0)
        if bg_threshold is not None:
            index = torch.where(best > bg_threshold, index + 1, 0)
        label = index.numpy().astype(np.uint8)
        panels.append(("mask" if shown == "prob" else "pseudo label", label_colours(base, label)))
    return strip(panels)


def _keep_rows(path: Path, start_step: int) -> None:
    """Drop the rows of steps that the checkpoint does not hold, and a row cut off by a kill."""
    if not path.exists():
        return
    rows = read_rows(path, {"step": int})
    kept = "".join(f"{line}\n" for line, row in rows if row["step"] <= start_step)
    with atomic_path(path) as temporary:
        temporary.write_text(kept, encoding="utf-8")
