"""Samples for training and inference from a catalog. This module documents the training batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from data.catalog import Catalog
from data.fields import FIELDS, Sources
from data.files import all_found
from data.transforms import RandomLongSide, Resize, TrainTransform
from tool.files import first_few
from tool.formats.image import batches_of_one_size
from tool.infer.kinds import INFERABLE, takes_previous_outputs
from tool.infer.previous import PreviousOutputs
from tool.infer.scales import Views
from tool.progress import derive_seed

ALWAYS = ("image_id", "image", "label", "valid")


class TrainDataset(Dataset):
    """A dataset of augmented crops.

    An index is (epoch, position in `ids`). The random draw is keyed by the seed, the epoch and the
    image id. `data.colour.DeviceTransform` makes this batch from the samples, on the device:

    | key | shape | dtype, range | meaning |
    |---|---|---|---|
    | `image_id` | list of N | str | never an int |
    | `image` | (N, 3, H, W) | float32 | normalised with the backbone's mean and std |
    | `label` | (N, K) | float32 {0, 1} | image-level, no background |
    | `saliency` | (N, 1, H, W) | float32 [0, 1] | off-the-shelf saliency |
    | `valid` | (N, 1, H, W) | bool | False where the crop is padding |
    | `seed` | (N, H, W) | int64 0..K, 255 | confident seed of a previous stage, 255 = unknown |
    | `mask` | (N, H, W) | int64 0..K, 255 | pseudo mask to train a segmentation network on |
    | `boundary` | (N, H, W) | uint8 | a value of `tool.formats.boundary`; 255 on padding |
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
        _check_inputs("training", inputs, (*ALWAYS, *FIELDS))
        self.fields = tuple(key for key in FIELDS if key in inputs)
        self.sources = Sources(catalog, previous or PreviousOutputs())
        self.with_label = "label" in inputs
        _check_list(catalog, ids, with_label=self.with_label)
        for key in self.fields:
            FIELDS[key].require(self.sources, ids)
        self.catalog, self.ids, self.seed = catalog, list(ids), seed
        self.largest = resize.longest_side
        self.transform = TrainTransform(crop=crop, resize=resize, jitter=jitter)

    def __len__(self) -> int:
        return len(self.ids)

    def whole(self, ids: Sequence[str]) -> TrainDataset:
        """Return a dataset of some of the images without augmentation: whole, and padded."""
        plain, crop = copy.copy(self), self.transform.crop.size[0]
        plain.ids, plain.largest = list(ids), crop
        resize = RandomLongSide(crop, crop)
        plain.transform = TrainTransform(crop=crop, resize=resize, jitter=False, flip=False)
        return plain

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
        _check_inputs("inference", inputs, ("image_id", "image", "label", *INFERABLE))
        self.with_label = "label" in inputs
        _check_list(catalog, ids, with_label=self.with_label)
        self.previous, self.inputs = previous or PreviousOutputs(), inputs
        self.previous.require(inputs, ids)
        self.catalog, self.ids, self.views = catalog, list(ids), views

    def __len__(self) -> int:
        return len(self.ids)

    def batches(
        self, indices: Sequence[int], batch_size: int, *, stride: int = 1
    ) -> list[list[int]]:
        """Split `indices` into lists of at most `batch_size` images whose maps have one size.

        Args:
            indices: Of the images.
            batch_size: The most images of a list.
            stride: Pixels per value of the maps.

        Raises:
            ValueError: An image file is broken; names it.
        """
        if batch_size == 1:
            return [[index] for index in indices]
        return batches_of_one_size(
            indices,
            lambda index: self._sizes(self.catalog.image_size(self.ids[index])[::-1], stride),
            batch_size,
        )

    def _sizes(self, whole: tuple[int, int], stride: int) -> tuple[tuple[int, int], ...]:
        """Return what images of one batch share: the size of the copies, and of the maps."""
        return self.views.seen_size(whole), self.views.map_size(whole, stride)

    def __getitem__(self, index: int) -> dict[str, object]:
        """Return the sample of one image.

        Returns:
            "image_id" str; "whole", the size of the image, and "size" (H, W), that to which the
            views reduce it, as pairs of ints; "images", one (3, h, w) uint8 tensor per view. If
            `inputs` names them, also "label" (K,) float32 {0, 1}, "seed" (H, W) int64 in 0..K or
            255, and "cam" (K, ceil(H / 4), ceil(W / 4)) float32 in [0, 1].

        Raises:
            ValueError: A file is broken; names it.
        """
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id)
        images = self.views.of(image)
        whole = (image.height, image.width)
        size = self.views.seen_size(whole)
        num_classes = self.catalog.num_classes
        sample = {"image_id": image_id, "whole": whole, "size": size, "images": images}
        if self.with_label:
            sample["label"] = torch.from_numpy(self.catalog.label(image_id))
        if takes_previous_outputs(self.inputs):
            sample |= self.previous.read(
                self.inputs,
                image_id,
                whole=whole,
                size=size,
                label=lambda: self.catalog.label(image_id),
                num_classes=num_classes,
            )
        return sample


def _check_inputs(stage: str, inputs: Sequence[str], loadable: Sequence[str]) -> None:
    """Check that the keys that a method needs can be loaded."""
    for name in inputs:
        if name not in loadable:
            raise ValueError(f"{stage} cannot load input {name!r}: there are {', '.join(loadable)}")


def _check_list(catalog: Catalog, ids: Sequence[str], *, with_label: bool) -> None:
    """Check that there are images, and that each has a file and, if wanted, a label."""
    if not ids:
        raise ValueError("the image list is empty")
    all_found(ids, catalog.image_path)
    missing = [one for one in ids if with_label and not catalog.has_label(one)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} images have {catalog.no_label(missing[0])}: "
            f"{first_few([repr(one) for one in missing])}"
        )
