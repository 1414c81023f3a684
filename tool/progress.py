"""The training step, and the random draws that are keyed by it.

Every draw has a name, so that workers, ranks and restarts do not change it.
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) from `parts`, numbers and strings: equal parts, equal seed."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclasses.dataclass(frozen=True)
class Progress:
    """The step for which a loss is computed.

    Attributes:
        step: 0-based index of the optimizer step.
        steps: Number of steps of the whole run.
        steps_per_epoch: Number of steps in which every image is seen once, at least 1.
        seed: The run's seed.
        micro: Index of the micro-batch inside a step, if gradients are accumulated; else 0.
        accumulate: Number of micro-batches inside a step.
        rank: Which slice of the global batch is this process's.
        world_size: Number of slices.
    """

    step: int = 0
    steps: int = 1
    steps_per_epoch: int = 1
    seed: int = 0
    micro: int = 0
    accumulate: int = 1
    rank: int = 0
    world_size: int = 1

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """Return the generator of the draw called `name` in this step, the same on every rank."""
        seed = derive_seed(self.seed, self.step, self.micro, name)
        return torch.Generator(device=device).manual_seed(seed)

    def uniform(self, name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draw uniform numbers in [0, 1) of `shape`, the same on every rank."""
        return torch.rand(shape, generator=self.generator(name, device), device=device)

    def uniform_per_image(
        self, name: str, num_images: int, shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """Draw uniform numbers in [0, 1) for this rank's images.

        They are drawn for the global batch and sliced, so that an image's numbers do not depend on
        the number of ranks.

        Args:
            name: Name of the draw.
            num_images: N, the number of images on each rank.
            shape: Shape of the numbers of one image.
            device: The device of the result.

        Returns:
            (N, *shape).
        """
        everyone = self.uniform(name, (num_images * self.world_size, *shape), device)
        return everyone[self.rank * num_images : (self.rank + 1) * num_images]
