"""Dropout whose mask is keyed by (seed, step, name) and drawn for the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tool.progress import Progress


class KeyedDropout(nn.Module):
    """Dropout that does not depend on the ambient generator, on workers or on the number of ranks.

    Args:
        probability: of zeroing, in [0, 1).
        channels: zero whole channels (Dropout2d) instead of single elements.
    """

    def __init__(self, probability: float, *, channels: bool) -> None:
        super().__init__()
        self.probability = probability
        self.channels = channels
        self.begin(Progress(), "dropout")

    def begin(self, progress: Progress, name: str) -> None:
        """Say which step the next calls belong to; each call of a step gets a mask of its own."""
        self._progress, self._name, self._calls = progress, name, 0

    @torch.compiler.disable  # its key changes in every step: torch.compile would start anew
    def forward(self, feature: Tensor) -> Tensor:
        """(N, D, h, w) -> the same shape; the identity in `eval()`."""
        if not self.training or self.probability == 0:
            return feature
        num_images, *shape = feature.shape
        shape = (shape[0], 1, 1) if self.channels else tuple(shape)
        name = f"{self._name}.{self._calls}"
        self._calls += 1
        draw = self._progress.uniform_per_image(name, num_images, shape, feature.device)
        keep = (draw >= self.probability).to(feature.dtype)
        return feature * (keep / (1 - self.probability))


def begin_step(module: nn.Module, progress: Progress) -> None:
    """Tell every `KeyedDropout` inside `module` which step begins."""
    for name, child in module.named_modules():
        if isinstance(child, KeyedDropout):
            child.begin(progress, name)
