"""Dropout whose mask is keyed by seed, step and name, and drawn for the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tool.progress import Progress


class SeededDropout(nn.Module):
    """Dropout whose mask does not depend on the number of ranks and workers.

    It does not use torch's global generator.

    Args:
        probability: Probability of zeroing, in [0, 1).
        channels: Whether to zero whole channels, as `nn.Dropout2d` does, instead of single
            elements.
    """

    def __init__(self, probability: float, *, channels: bool) -> None:
        super().__init__()
        self.probability = probability
        self.channels = channels
        self.begin(Progress(), "dropout")

    def begin(self, progress: Progress, name: str) -> None:
        """Set the step of the next calls. Each call within a step gets a mask of its own.

        Args:
            progress: The step, which keys the masks.
            name: Name of this module in the method, which keys them too.
        """
        self._progress, self._name, self._calls = progress, name, 0

    @torch.compiler.disable  # the key changes in every step, so it would compile in every step
    def forward(self, feature: Tensor) -> Tensor:
        """Apply dropout to a map (N, D, h, w); return it unchanged after `eval()`."""
        if not self.training or self.probability == 0:
            return feature
        num_images, shape = len(feature), self.mask_shape(feature)
        name = f"{self._name}.{self._calls}"
        self._calls += 1
        draw = self._progress.uniform_per_image(name, num_images, shape, feature.device)
        keep = (draw >= self.probability).to(feature.dtype)
        return feature * (keep / (1 - self.probability))  # the expected value stays the same

    def mask_shape(self, feature: Tensor) -> tuple[int, ...]:
        """Return the shape of the mask of one image."""
        return (feature.shape[1], 1, 1) if self.channels else tuple(feature.shape[1:])


class SeededDropPath(SeededDropout):
    """Stochastic depth: `SeededDropout` of whole images, in front of a residual sum.

    Args:
        probability: Of zeroing, in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__(probability, channels=False)

    def mask_shape(self, feature: Tensor) -> tuple[int, ...]:
        """Return the shape of the mask of one image: a single value."""
        return (1,) * (feature.ndim - 1)


def begin_step(module: nn.Module, progress: Progress) -> None:
    """Set the step of every `SeededDropout` inside `module`."""
    for name, child in module.named_modules():
        if isinstance(child, SeededDropout):
            child.begin(progress, name)
