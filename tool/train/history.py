"""What the training loop measures between two rows of the log: the terms, and its pace.

The log itself is in `tool.train.log`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from tool.parallel import dist


class History:
    """The values of the terms since the last fetch, kept on the device.

    Only `fetch` waits for the device.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, Tensor, list[str]]] = []
        self._names: list[str] = []

    def add(self, step: int, values: dict[str, Tensor], image_ids: list[str]) -> None:
        """Remember the scalars of one step, or of one micro-batch of it, without gradient.

        Args:
            step: The optimizer step.
            values: The scalars by name, with the same names in each call.
            image_ids: The images of the batch, for an error message.
        """
        self._names = list(values)
        row = torch.stack([value.detach().float() for value in values.values()])
        self._rows.append((step, row, image_ids))

    def fetch(self) -> dict[str, float]:
        """Return the mean of each scalar since the last call, over all ranks.

        Raises:
            FloatingPointError: A scalar of any rank is not finite. On a rank that has such a
                scalar, the message names the step, every term and the images.
        """
        if not self._rows:
            return {}
        rows = torch.stack([row for _, row, _ in self._rows])
        ranks = dist.gather(rows[None]).cpu()
        images = [image_ids for _, _, image_ids in self._rows]
        bad = (~ranks[dist.rank()].isfinite()).any(dim=1).nonzero()
        anywhere = (~ranks.isfinite()).flatten(0, 1).any()
        if len(bad):
            index = int(bad[0])
            terms = zip(self._names, ranks[dist.rank(), index].tolist(), strict=True)
            raise FloatingPointError(
                f"step {self._rows[index][0]}: the loss is not finite: "
                + ", ".join(f"{name} {value:.4g}" for name, value in terms)
                + f"; images {', '.join(images[index])}"
            )
        if anywhere:
            raise FloatingPointError("the loss is not finite on another rank")
        self._rows = []
        return dict(zip(self._names, ranks.mean(dim=(0, 1)).tolist(), strict=True))


def grouped(means: dict[str, float], terms: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the values of the log by group: the loss and its terms, then what else is measured."""
    names = {"loss", *terms}
    loss = {name: value for name, value in means.items() if name in names}
    return {"loss": loss, "contrast": {n: v for n, v in means.items() if n not in names}}


class Clock:
    """A clock that measures images per second.

    Args:
        batch_size: Images per step.
        step: Number of steps done at the start.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self._time, self._step = time.perf_counter(), step

    def rate(self, step: int) -> float:
        """Return the images per second since the last call, or since the start.

        Args:
            step: Number of steps done now.
        """
        now = time.perf_counter()
        rate = (step - self._step) * self.batch_size / (now - self._time)
        self._time, self._step = now, step
        return rate
