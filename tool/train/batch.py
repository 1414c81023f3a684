"""The types of the training loop: `Batch`, the dictionary of a batch, and `Trainable`, a method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypedDict, cast

from torch import Tensor, nn

from tool.progress import Progress


class Batch(TypedDict, total=False):
    """The keys of a batch; a method's `inputs` say which of them it gets.

    Attributes:
        image_id: N ids.
        image: (N, 3, H, W) float32, normalised with the backbone's mean and std.
        label: (N, K) float32 {0, 1}, image-level, without background.
        saliency: (N, 1, H, W) float32 in [0, 1], from an off-the-shelf network.
        valid: (N, 1, H, W) bool, False where the crop is padding.
        seed: (N, H, W) int64 in 0..K or 255, confident seeds of a previous stage.
        mask: (N, H, W) int64 in 0..K or 255, pseudo masks.
        boundary: (N, H, W) uint8, boundary labels.
        cam: (N, K, h, w) float32 in [0, 1], CAMs of a previous stage, without background.
        size: (H, W) of the maps of an image, in inference.
        sizes: (h, w) of each scaled copy of an image, in inference.
    """

    image_id: list[str]
    image: Tensor
    label: Tensor
    saliency: Tensor
    valid: Tensor
    seed: Tensor
    mask: Tensor
    boundary: Tensor
    cam: Tensor
    size: tuple[int, int]
    sizes: list[tuple[int, int]]


def part(batch: Batch, images: slice, keys: Iterable[str] | None = None) -> Batch:
    """Return a batch of some of the images.

    Args:
        batch: The batch.
        images: Which of its N images.
        keys: The keys of the result; None for all keys of the batch.
    """
    values: dict[str, Any] = dict(batch)
    return cast(Batch, {key: values[key][images] for key in keys or values})


class Trainable(Protocol):
    """The part of a method that the training loop uses; `network.methods.Method` implements it."""

    has_background: bool
    recipe: Any

    def __call__(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the named, unweighted terms."""
        ...

    def before_losses(self, batch: Batch, progress: Progress) -> Batch:
        """Return the batch of which the terms are computed."""
        ...

    def weights(self) -> dict[str, float]:
        """Return the weight of each term."""
        ...

    def metrics(self) -> dict[str, Tensor]:
        """Return scalars for the log beside the terms, {name: scalar}; those of the last step."""
        ...

    def after_step(self, progress: Progress) -> None:
        """Update state that is not weights, such as a bank, after the step of the optimizer."""
        ...

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Return maps of the first image for the training picture, as {name: (C, h, w)}."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights."""
        ...

    def train(self) -> Any:
        """Go into training mode."""
        ...

    def eval(self) -> Any:
        """Go into evaluation mode."""
        ...
