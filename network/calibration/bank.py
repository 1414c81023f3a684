"""A bank of images with one slot per class, from which SFC draws classes uniformly.

Source: SFC (X. Zhao et al., AAAI 2024), image bank re-sampling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool.parallel.dist import gather


@dataclasses.dataclass(frozen=True)
class Crops:
    """Training crops as the bank stores them.

    A crop smaller than a slot lies in its upper left corner.

    Attributes:
        image: (N, 3, S, S) uint8, not normalised.
        rows: (N, S) bool, the rows that are not padding.
        columns: (N, S) bool, the columns that are not padding.
        label: (N, K) bool.
    """

    image: Tensor
    rows: Tensor
    columns: Tensor
    label: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """Return the four tensors in order."""
        return self.image, self.rows, self.columns, self.label

    def gathered(self) -> Crops:
        """Return the crops of all ranks, in image order."""
        image, *masks = self.fields()
        return Crops(gather(image), *(gather(mask.to(torch.uint8)).bool() for mask in masks))


def joined(crops: Sequence[Crops]) -> Crops:
    """Return several sets of crops as one."""
    return Crops(*map(torch.cat, zip(*(one.fields() for one in crops), strict=True)))


def newest(label: Tensor) -> Tensor:
    """Return for each class the index of the last crop that has it, (K,) int64; -1 for none.

    Args:
        label: (N, K) bool.
    """
    order = torch.arange(1, len(label) + 1, device=label.device)
    return (order[:, None] * label).amax(dim=0) - 1


class ImageBank(nn.Module):
    """The newest crop of each class, as it was augmented, saved and moved with the model.

    Args:
        num_classes: K, the number of slots.
        side: S, the largest side of a crop.
        mean: Of each channel of the normalised images, in [0, 1].
        std: Standard deviation of the same.

    Raises:
        ValueError: `side` is below 1.
    """

    is_state = True  # state of a run, not weights: exports and `--init` leave it out
    image: Tensor
    rows: Tensor
    columns: Tensor
    label: Tensor
    written: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, num_classes: int, side: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        if side < 1:
            raise ValueError(f"a bank of images of {side} pixels: at least 1 is needed")
        self.side = side
        self.register_buffer("image", torch.zeros(num_classes, 3, side, side, dtype=torch.uint8))
        for name, width in (("rows", side), ("columns", side), ("label", num_classes)):
            self.register_buffer(name, torch.zeros(num_classes, width, dtype=torch.bool))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.long))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def store(self, image: Tensor, valid: Tensor, label: Tensor) -> Crops:
        """Return training images as crops.

        Args:
            image: (N, 3, H, W), normalised.
            valid: (N, 1, H, W) bool, False on padding, which surrounds a rectangle.
            label: (N, K).

        Raises:
            ValueError: The images are larger than a slot.
        """
        height, width = image.shape[-2:]
        if max(height, width) > self.side:
            raise ValueError(
                f"a crop of {width}x{height} does not fit in the image bank: "
                f"give --bank-side {max(height, width)}"
            )
        right, below = self.side - width, self.side - height
        eight_bit = ((image * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Crops(
            F.pad(eight_bit, (0, right, 0, below)),
            F.pad(valid[:, 0].any(dim=2), (0, below)),
            F.pad(valid[:, 0].any(dim=1), (0, right)),
            label > 0,
        )

    def restore(self, crops: Crops, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return crops as a batch has them: `image`, `valid` and `label` of `store`.

        Args:
            crops: The crops.
            size: (H, W) of the images.
        """
        height, width = size
        valid = (crops.rows[:, :height, None] & crops.columns[:, None, :width])[:, None]
        image = (crops.image[..., :height, :width].float() / 255 - self.mean) / self.std
        return image * valid, valid, crops.label.float()

    def draw(self, crops: Crops, uniform: Tensor) -> Crops:
        """Draw from the bank as it will be after `write(crops)`.

        Every slot that is filled is equally likely. While none is, because no image had a class
        yet, the crops themselves are drawn.

        Args:
            crops: Those of this step, of all ranks.
            uniform: (M,) in [0, 1).

        Returns:
            M crops.
        """
        fresh = newest(crops.label)  # (K,)
        filled = (self.written > 0) | (fresh >= 0)
        count = filled.sum()
        # The slot is the first one up to which more slots are filled than the number drawn.
        drawn = (uniform * count).long()
        slot = (filled.cumsum(dim=0) <= drawn[:, None]).sum(dim=1).clamp(max=len(fresh) - 1)
        crop = (uniform * len(crops.image)).long()
        return self._taken(crops, torch.where(count > 0, fresh[slot], crop), slot)

    @torch.no_grad()
    def write(self, crops: Crops) -> None:
        """Put each crop into the slots of all its classes; of several, the last one stays.

        Args:
            crops: Those of a step, of all ranks in image order.
        """
        fresh = newest(crops.label)
        taken = self._taken(crops, fresh, torch.arange(len(fresh), device=fresh.device))
        for buffer, values in zip(self._slots().fields(), taken.fields(), strict=True):
            buffer.copy_(values)
        self.written += fresh >= 0

    def _slots(self) -> Crops:
        return Crops(self.image, self.rows, self.columns, self.label)

    def _taken(self, crops: Crops, crop: Tensor, slot: Tensor) -> Crops:
        """Return M crops: number `crop` (M,) of `crops`, or where it is -1, that in `slot` (M,)."""
        from_slots = [
            torch.where(
                (crop >= 0).view(-1, *[1] * (new.dim() - 1)), new[crop.clamp(min=0)], old[slot]
            )
            for new, old in zip(crops.fields(), self._slots().fields(), strict=True)
        ]
        return Crops(*from_slots)


def interleaved(images: int, draws: int, device: torch.device) -> Tensor:
    """Return an order of images and draws that does not depend on the number of ranks.

    The draws lie at equal distances among the images. So the images of all ranks, one rank after
    another, are in the order that they have in one process, which keys the dropout of each.

    Args:
        images: Of this rank, numbered first.
        draws: Of this rank, numbered after them.
        device: Of the result.

    Returns:
        (images + draws,) int64.
    """
    place = torch.arange(images, device=device) * 2 + 1
    after = torch.arange(1, draws + 1, device=device) * images // max(draws, 1) * 2
    return torch.cat([place, after]).argsort(stable=True)
