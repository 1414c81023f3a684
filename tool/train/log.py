"""The log of a run: `log.jsonl`, TensorBoard scalars, and a picture every N steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tool.documents import read_rows
from tool.files import atomic_path
from tool.train.batch import Trainable
from tool.train.pictures import Shown

METRICS = ("score/miou", "score/miou_cam", "loss/loss")
NO_SETTINGS = ("method_config", "class_names", "num_classes")


class RunLog:
    """A writer of the logs of a run directory.

    Rows after `start_step`, which a killed run left, are dropped.

    Args:
        directory: The run directory.
        start_step: Number of steps that the checkpoint in it has done.
        mean: Mean of the network's input, to show images as they were.
        std: Standard deviation of the network's input.
        shown: The images of the pictures; None for no pictures.
    """

    def __init__(
        self,
        directory: Path,
        *,
        start_step: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        shown: Shown | None = None,
    ) -> None:
        self.directory, self.shown = Path(directory), shown
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

    def settings(self, config: Mapping[str, Any]) -> None:
        """Write the hyper-parameters of the run, for TensorBoard's table of runs.

        Args:
            config: What identifies the run. Hashes and names of classes are left out.
        """
        some = {**config, **(config.get("method_config") or {})}
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in some.items()
            if not (value is None or name in NO_SETTINGS or name.endswith("_sha256"))
        }
        # The columns of the table: the tags of the losses, and of eval_miou.py for masks and CAMs.
        for summary in hparams(plain, dict.fromkeys(METRICS)):
            self._board._get_file_writer().add_summary(summary)

    def picture(self, step: int, method: Trainable) -> None:
        """Write `pictures/STEP.png`, which shows what the method makes of the images of the run.

        Args:
            step: Number of steps done.
            method: Makes the maps in evaluation mode; left in training mode.
        """
        if self.shown is None:
            return
        picture = self.shown.draw(method, mean=self.mean, std=self.std)
        path = self.directory / "pictures" / f"{step:06d}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(picture).save(temporary)
        self._board.add_image("training", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both files."""
        self._rows.close()
        self._board.close()


def _keep_rows(path: Path, start_step: int) -> None:
    """Drop the rows of steps that the checkpoint does not hold, and a row cut off by a kill."""
    if not path.exists():
        return
    rows = read_rows(path, {"step": int})
    kept = "".join(f"{line}\n" for line, row in rows if row["step"] <= start_step)
    with atomic_path(path) as temporary:
        temporary.write_text(kept, encoding="utf-8")
