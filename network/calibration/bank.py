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
from tool.progress import Progress
from tool.train.batch import Batch


@dataclasses.dataclass(frozen=True)
class Crops:
    """Training crops as the bank stores them.

    A crop smaller than a slot lies in its upper left corner.

    Attributes:
        image: (N, 3, S, S) uint8, not normalised.
        rows: (N, S) bool, False for the rows that are padding.
        columns: (N, S) bool, False for the columns that are padding.
        label: (N, K) bool, image-level.
    """

    image: Tensor
    rows: Tensor
    columns: Tensor
    label: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """Return the four tensors, in the order of the attributes."""
        return self.image, self.rows, self.columns, self.label

    def gathered(self) -> Crops:
        """Return the crops of all ranks, in image order."""
        image, *masks = self.fields()
        return Crops(gather(image), *(gather(mask.to(torch.uint8)).bool() for mask in masks))


def joined(crops: Sequence[Crops]) -> Crops:
    """Concatenate one or more sets of crops."""
    return Crops(*map(torch.cat, zip(*(one.fields() for one in crops), strict=True)))


def newest(label: Tensor) -> Tensor:
    """Return the index of the last crop of each class.

    Args:
        label: (N, K) bool.

    Returns:
        (K,) int64; -1 for a class that no crop has.
    """
    # Numbers from 1, so that the maximum over no crop is 0 and becomes -1.
    order = torch.arange(1, len(label) + 1, device=label.device)
    return (order[:, None] * label).amax(dim=0) - 1


class ImageBank(nn.Module):
    """The newest training crop of each class, augmented as it was in training.

    The bank has one slot per class. It is saved and moved with the model.

    Args:
        num_classes: K, the number of slots.
        side: S, the largest side of a crop in pixels.
        mean: Mean by which each channel of the images is normalised, in [0, 1].
        std: Standard deviation by which it is normalised.

    Attributes:
        image, rows, columns, label: The fields of `Crops`, with one crop per class.
        written: (K,) int64, how often each slot was written; 0 for an empty slot.

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
        self._pending: list[Crops] = []  # the crops of this step

    @torch.no_grad()
    def with_draws(self, batch: Batch, progress: Progress, total: int) -> Batch:
        """Add images of the bank to a batch.

        The draws are made as if the images of the batch were in the bank already.

        Args:
            batch: `image_id`, `image` (N, 3, H, W), `valid` (N, 1, H, W) and `label` (N, K).
            progress: The step, which keys the draws.
            total: Number of images to add, over all ranks and micro-batches of a step.

        Returns:
            A batch of the same keys, with this rank's and micro-batch's share of the images.

        Raises:
            ValueError: The number of ranks times micro-batches does not divide `total`, or the
                crops are larger than a slot.
        """
        # The number of draws of this rank and micro-batch.
        parts = progress.world_size * progress.accumulate
        draws, rest = divmod(total, parts)
        if rest:
            raise ValueError(
                f"--bank-draws {total} must divide by the ranks times --accumulate, {parts}"
            )
        if progress.micro == 0:
            self._pending = []
        if not draws:
            return batch
        # Keep the crops of this step, of all ranks, for `keep`.
        image, valid, label = (batch[key] for key in ("image", "valid", "label"))
        self._pending.append(self.store(image, valid, label).gathered())
        # Draw from the bank and these crops. All ranks have the same bank; each makes its own part
        # of the draws.
        uniform = progress.uniform_per_image("bank", draws, (), image.device)
        drawn = self.draw(joined(self._pending), uniform)
        # Put the drawn images among those of the batch.
        order = interleaved(len(image), draws, image.device)
        more = self.restore(drawn, image.shape[-2:])
        image, valid, label = (
            torch.cat(pair)[order] for pair in zip((image, valid, label), more, strict=True)
        )
        names = [*batch["image_id"], *(f"draw {k + 1} of the image bank" for k in range(draws))]
        return {"image_id": names, "image": image, "valid": valid, "label": label}

    def keep(self) -> None:
        """Put the images of the step, of all ranks, into the bank."""
        if self._pending:
            self.write(joined(self._pending))
            self._pending = []

    def store(self, image: Tensor, valid: Tensor, label: Tensor) -> Crops:
        """Convert training images to crops; the bank itself does not change.

        Args:
            image: (N, 3, H, W), normalised.
            valid: (N, 1, H, W) bool, False on padding; the rest must be a rectangle.
            label: (N, K), image-level {0, 1}.

        Raises:
            ValueError: The images are larger than a slot.
        """
        height, width = image.shape[-2:]
        if max(height, width) > self.side:
            raise ValueError(
                f"a crop of {width}x{height} does not fit in the image bank: "
                f"give --bank-side {max(height, width)}"
            )
        # Undo the normalisation, and round to 8 bits. A rectangle is stored as its rows and
        # columns. Everything is padded to the side of a slot.
        right, below = self.side - width, self.side - height
        eight_bit = ((image * self.std + self.mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Crops(
            F.pad(eight_bit, (0, right, 0, below)),
            F.pad(valid[:, 0].any(dim=2), (0, below)),
            F.pad(valid[:, 0].any(dim=1), (0, right)),
            label > 0,
        )

    def restore(self, crops: Crops, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Convert crops back to fields of a batch, the reverse of `store`.

        Args:
            crops: The N crops.
            size: (H, W), height and width of the images, at most the side of a slot.

        Returns:
            `image` (N, 3, H, W), normalised and 0 on padding; `valid` (N, 1, H, W) bool; and
            `label` (N, K) in {0, 1}.
        """
        height, width = size
        valid = (crops.rows[:, :height, None] & crops.columns[:, None, :width])[:, None]
        image = (crops.image[..., :height, :width].float() / 255 - self.mean) / self.std
        return image * valid, valid, crops.label.float()

    def draw(self, crops: Crops, uniform: Tensor) -> Crops:
        """Draw crops from the bank as it will be after `write(crops)`.

        Every filled slot is equally likely, so that every class is. If none is filled, because no
        image had a class yet, the crops of this step are drawn instead.

        Args:
            crops: The crops of this step, of all ranks.
            uniform: (M,) in [0, 1), one random number per draw.

        Returns:
            M crops.
        """
        # 1. Which slots will be filled: those that were, and those of the classes of this step.
        fresh = newest(crops.label)  # (K,)
        filled = (self.written > 0) | (fresh >= 0)  # (K,)
        count = filled.sum()
        # 2. Each number in [0, 1) becomes the rank i of a filled slot. That slot is the first one
        # with more than i filled slots up to and including it.
        drawn = (uniform * count).long()  # (M,)
        slot = (filled.cumsum(dim=0) <= drawn[:, None]).sum(dim=1).clamp(max=len(fresh) - 1)  # (M,)
        # 3. Take the newest crop of the slot's class: one of this step, or that in the slot.
        crop = (uniform * len(crops.image)).long()  # (M,), for an empty bank
        return self._taken(crops, torch.where(count > 0, fresh[slot], crop), slot)

    @torch.no_grad()
    def write(self, crops: Crops) -> None:
        """Put each crop into the slots of all its classes.

        Of several crops of a class the last one stays.

        Args:
            crops: The crops of a step, of all ranks in image order.
        """
        fresh = newest(crops.label)
        taken = self._taken(crops, fresh, torch.arange(len(fresh), device=fresh.device))
        for buffer, values in zip(self._slots().fields(), taken.fields(), strict=True):
            buffer.copy_(values)
        self.written += fresh >= 0

    def _slots(self) -> Crops:
        return Crops(self.image, self.rows, self.columns, self.label)

    def _taken(self, crops: Crops, crop: Tensor, slot: Tensor) -> Crops:
        """Return M crops, each a new one or one of the bank.

        Args:
            crops: The new crops.
            crop: (M,) int64, the index of a new crop, or -1 to take the one in the slot.
            slot: (M,) int64, the slots.
        """
        from_slots = [
            torch.where(
                (crop >= 0).view(-1, *[1] * (new.dim() - 1)), new[crop.clamp(min=0)], old[slot]
            )
            for new, old in zip(crops.fields(), self._slots().fields(), strict=True)
        ]
        return Crops(*from_slots)


def interleaved(images: int, draws: int, device: torch.device) -> Tensor:
    """Return an order of a batch's images and draws that does not depend on the number of ranks.

    The draws are distributed evenly among the images. So the batches of all ranks, one after
    another, are in the same order as the one batch of a single process. Dropout depends on it,
    because its masks are drawn per position in the global batch.

    Args:
        images: Number of this rank's images, which have the numbers 0..images - 1.
        draws: Number of this rank's draws, which have the numbers after them.
        device: Device of the result.

    Returns:
        (images + draws,) int64, the number at each position.
    """
    # Image i has the odd place 2 i + 1, and draw j the even place behind the image that it follows.
    place = torch.arange(images, device=device) * 2 + 1
    after = torch.arange(1, draws + 1, device=device) * images // max(draws, 1) * 2
    return torch.cat([place, after]).argsort(stable=True)
