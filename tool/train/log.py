"""What a run tells: `log.jsonl`, TensorBoard scalars, and every N steps a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from tool.files import atomic_path


class RunLog:
    """Writes into a run directory; rows after `start_step`, left by a killed run, are dropped.

    Args:
        directory: of the run.
        start_step: steps that the checkpoint in it has done.
        mean, std: of the network's input, to show images as they were.
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

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One row for `step` steps done."""
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, batch: dict[str, Any], method: nn.Module) -> None:
        """`pictures/STEP.png`: the first image, the method's maps of it, their pseudo label."""
        method.eval()
        with torch.no_grad():
            maps = method.pictures(batch)
        method.train()
        image = (batch["image"][0].float().cpu() * self.std + self.mean).clamp(0, 1)
        picture = training_picture(image, {name: m.float().cpu() for name, m in maps.items()})
        path = self.directory / "pictures" / f"{step:06d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        self._board.add_image("training", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        self._rows.close()
        self._board.close()


def training_picture(image: Tensor, maps: dict[str, Tensor], *, bg_threshold: float = 0.22) -> Any:
    """(H, W', 3) uint8: the image, each map's best class as heat, the pseudo label.

    Args:
        image: (3, H, W) in [0, 1].
        maps: name -> (K, h, w) in [0, 1].
        bg_threshold: where `cam` is below it, the pseudo label is background.
    """
    from tool.report.picture import (  # OpenCV: a run without pictures needs none
        heat,
        label_colours,
        strip,
    )

    base = (image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    panels = [("image", base)]
    sized = {
        name: torch.nn.functional.interpolate(
            values[None], size=base.shape[:2], mode="bilinear", align_corners=False
        )[0]
        for name, values in maps.items()
    }
    panels += [(name, heat(base, values.amax(dim=0).numpy())) for name, values in sized.items()]
    if "cam" in sized:
        best, index = sized["cam"].max(dim=0)
        label = torch.where(best > bg_threshold, index + 1, 0).numpy().astype(np.uint8)
        panels.append(("pseudo label", label_colours(base, label)))
    return strip(panels)


def _keep_rows(path: Path, start_step: int) -> None:
    """Drop the rows of steps that the checkpoint does not hold, and a row cut off by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            step = json.loads(line)["step"]
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
        if step <= start_step:
            kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
