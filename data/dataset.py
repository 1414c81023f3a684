"""Samples for training and inference from a catalog. This module documents the training batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from data.catalog import Catalog
from data.fields import FIELDS, Sources, all_found
from data.transforms import Resize, TrainTransform
from tool.infer.previous import INFERABLE, PreviousOutputs, takes_previous_outputs
from tool.infer.scales import Views
from tool.progress import derive_seed

ALWAYS = ("image_id", "image", "label", "valid")


class TrainDataset(Dataset):
    """A dataset of augmented crops.

    An index is (epoch, position in `ids`). The random draw is keyed by the seed, the epoch and the
    image id. `data.colour.Finish` makes this batch from the samples, on the device:

    | key | shape | dtype, range | meaning |
    |---|---|---|---|
    | `image_id` | list of N | str | never an int |
    | `image` | (N, 3, H, W) | float32 | normalised with the backbone's mean and std |
    | `label` | (N, K) | float32 {0, 1} | image-level, no background |
    | `saliency` | (N, 1, H, W) | float32 [0, 1] | off-the-shelf saliency |
    | `valid` | (N, 1, H, W) | bool | False where the crop is padding |
    | `seed` | (N, H, W) | int64 0..K, 255 | confident seed of a previous stage, 255 = unknown |
    | `mask` | (N, H, W) | int64 0..K, 255 | pseudo mask to train a segmentation network on |
    | `boundary` | (N, H, W) | uint8 | synthesised boundary label; 255 on padding |
    | `cam` | (N, K, h, w) | float32 [0, 1] | CAMs of a previous stage, cells of 4 pixels |

    H = W = crop. A method names the keys that it needs in `inputs`. `image_id`, `image` and `valid`
    are always in the batch. The other keys are in it if `inputs` names them. Without `label` no
    labels are read. The keys `saliency`, `seed`, `mask`, `boundary` and `cam` are the rows of
    `data.fields`.
    """

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        inputs: tuple[str, ...],
        crop: int,
        resize: Resize,
        seed: int,
        jitter: bool = True,
        previous: PreviousOutputs | None = None,
    ) -> None:
        """Check the whole list before a long run starts; no image is decoded.

        Args:
            catalog: The files of the dataset.
            ids: The images, at least one.
            inputs: Batch keys that the method needs.
            crop: H = W of a sample.
            resize: The resize before the crop.
            seed: Seed of the run.
            jitter: Change the colours too.
            previous: The folders of files of previous stages.

        Raises:
            FileNotFoundError: An image or a file of a field is missing; names the first few.
            ValueError: There are no ids, an id has no label, or an input cannot be loaded.
        """
        loadable = (*ALWAYS, *FIELDS)
        unknown = [name for name in inputs if name not in loadable]
        if unknown:
            raise ValueError(
                f"no stage makes input {unknown[0]!r}: there are {', '.join(loadable)}"
            )
        self.fields = tuple(key for key in FIELDS if key in inputs)
        self.sources = Sources(catalog, previous or PreviousOutputs())
        _check_images(catalog, ids)
        self.with_label = "label" in inputs
        if self.with_label:
            _check_labels(catalog, ids)
        for key in self.fields:
            FIELDS[key].require(self.sources, ids)
        self.catalog, self.ids, self.seed = catalog, list(ids), seed
        self.largest = resize.longest_side
        self.transform = TrainTransform(crop=crop, resize=resize, jitter=jitter)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        """Return one sample, as the loader stacks it into a batch.

        Raises:
            ValueError: A file is broken; names it.
        """
        epoch, index = key
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id, long_side=self.largest)
        read = {key: FIELDS[key].read(self.sources, image_id, image.size) for key in self.fields}
        fields = {"image": image} | {key: value for key, (value, _) in read.items()}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, image_id))
            sample = self.transform(fields, pad={key: FIELDS[key].pad for key in self.fields})
        packed = {key: FIELDS[key].pack(sample[key], note) for key, (_, note) in read.items()}
        label = {}
        if self.with_label:
            label["label"] = torch.from_numpy(self.catalog.label(image_id))
        return {"image_id": image_id, **label, **sample, **packed}


class InferDataset(Dataset):
    """A dataset of whole images at several scales, or resized to squares of several sides."""

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        views: Views,
        inputs: tuple[str, ...] = ("image", "label"),
        previous: PreviousOutputs | None = None,
    ) -> None:
        """Check the whole list; no image is decoded.

        Args:
            catalog: The files of the dataset.
            ids: The images, at least one.
            views: The sizes of "images" in a sample, in their order.
            inputs: Keys that the method needs. Without "label" no labels are read.
            previous: The folders of seeds and CAMs.

        Raises:
            FileNotFoundError: An image, seed or CAM is missing; names the first few.
            ValueError: There are no ids, an id has no label, or an input cannot be loaded.
        """
        for name in inputs:
            if name not in ("image_id", "image", "label", *INFERABLE):
                there = ", ".join(("image_id", "image", "label", *INFERABLE))
                raise ValueError(f"inference cannot load input {name!r}: there are {there}")
        _check_images(catalog, ids)
        self.with_label = "label" in inputs
        if self.with_label:
            _check_labels(catalog, ids)
        self.previous, self.inputs = previous or PreviousOutputs(), inputs
        self.previous.require(inputs, ids)
        self.catalog, self.ids, self.views = catalog, list(ids), views

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, indices: Sequence[int], batch_size: int) -> list[list[int]]:
        """Split `indices` into lists of at most `batch_size` images of one size.

        Raises:
            ValueError: An image file is broken; names it.
        """
        if batch_size == 1:
            return [[index] for index in indices]
        of_size: dict[tuple[int, int], list[int]] = {}
        for index in indices:
            of_size.setdefault(self.catalog.image_size(self.ids[index]), []).append(index)
        return [
            same[first : first + batch_size]
            for same in of_size.values()
            for first in range(0, len(same), batch_size)
        ]

    def __getitem__(self, index: int) -> dict[str, object]:
        """Return the sample of one image.

        Returns:
            "image_id" str; "size" (H, W) ints; "images", one (3, h, w) uint8 tensor per view. If
            `inputs` names them, also "label" (K,) float32 {0, 1}, "seed" (H, W) int64 in 0..K or
            255, and "cam" (K, ceil(H / 4), ceil(W / 4)) float32 in [0, 1].

        Raises:
            ValueError: A file is broken; names it.
        """
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id)
        images = self.views.of(image)
        size, num_classes = (image.height, image.width), self.catalog.num_classes
        sample = {"image_id": image_id, "size": size, "images": images}
        if self.with_label:
            sample["label"] = torch.from_numpy(self.catalog.label(image_id))
        if takes_previous_outputs(self.inputs):
            sample |= self.previous.read(
                self.inputs,
                image_id,
                size=size,
                label=lambda: self.catalog.label(image_id),
                num_classes=num_classes,
            )
        return sample


def _check_images(catalog: Catalog, ids: Sequence[str]) -> None:
    """Check that there are images, and that each has a file."""
    if not ids:
        raise ValueError("the image list is empty")
    all_found(ids, catalog.image_path)


def _check_labels(catalog: Catalog, ids: Sequence[str]) -> None:
    """Check that each image has a label."""
    missing = [repr(image_id) for image_id in ids if not catalog.has_label(image_id)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} images have no label in {catalog.labels_path}"
            f" (--labels): {', '.join(missing[:3])}"
        )
