"""Samples for training and inference out of a catalog; here the batch is documented."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from data.catalog import Catalog
from data.transforms import RandomLongSide, RandomScale, TrainTransform
from tool.infer.previous import Earlier, takes_earlier
from tool.infer.scales import at_scale
from tool.progress import derive_seed

ALWAYS = ("image_id", "image", "label", "valid")
INFERABLE = ("image_id", "image", "label", "seed", "cam")
LOADABLE = (*ALWAYS, "saliency", "seed")


class TrainDataset(Dataset):
    """Augmented crops. An index is (epoch, position in `ids`); the draw is keyed by the image id.

    The batch, as `data.colour.Finish` makes it on the device; a method names in `inputs` what it
    needs of it:

    | key | shape | dtype, range | meaning |
    |---|---|---|---|
    | `image_id` | list of N | str | never an int |
    | `image` | (N, 3, H, W) | float32 | normalised with the backbone's mean and std |
    | `label` | (N, K) | float32 {0, 1} | image-level, no background |
    | `saliency` | (N, 1, H, W) | float32 [0, 1] | off-the-shelf saliency |
    | `valid` | (N, 1, H, W) | bool | False where the crop is padding |
    | `seed` | (N, H, W) | int64 0..K, 255 | pseudo label of an earlier stage, 255 = unknown |
    | `cam` | (N, K, h, w) | float32 [0, 1] | CAMs of an earlier stage, without background |

    As the loader collates it, `image`, `saliency` and (N, 1, H, W) `seed` are uint8, and (N, 3, 6)
    `jitter` is still to be applied. H = W = crop. `image_id`, `image`, `label` and `valid` are
    always there, `saliency` and `seed` on demand; `cam` there is in inference alone
    (`InferDataset`).
    """

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        inputs: tuple[str, ...],
        crop: int,
        resize: RandomLongSide | RandomScale,
        seed: int,
        jitter: bool = True,
        earlier: Earlier | None = None,
    ) -> None:
        """Look over the list before hours are spent; no image is decoded.

        Args:
            catalog: where the files are.
            ids: the images, at least one.
            inputs: batch keys that the method needs.
            crop: H = W of a sample.
            resize: before the crop.
            seed: of the run.
            jitter: change the colours too.
            earlier: where seeds are.

        Raises:
            FileNotFoundError: an image, saliency map or seed is missing; names the first few.
            ValueError: no ids, an id without a label, an input that cannot be loaded.
        """
        unknown = [name for name in inputs if name not in LOADABLE]
        if unknown:
            raise ValueError(
                f"no stage makes input {unknown[0]!r}: there are {', '.join(LOADABLE)}"
            )
        self.with_saliency = "saliency" in inputs
        if self.with_saliency and not catalog.has_saliency:
            where = catalog.saliency_root
            raise ValueError(f"method needs saliency: pass --saliency-root ({where} is no folder)")
        _check_files(catalog, ids, self.with_saliency)
        _check_labels(catalog, ids)
        self.earlier = earlier or Earlier()
        self.earlier.require(inputs, ids)
        self.with_seed = "seed" in inputs
        self.catalog, self.ids, self.seed = catalog, list(ids), seed
        self.largest = resize.high if isinstance(resize.high, int) else None
        self.transform = TrainTransform(crop=crop, resize=resize, jitter=jitter)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        """One sample as the loader collates it, without the N; `ValueError` names a broken file."""
        epoch, index = key
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id, long_side=self.largest)
        fields: dict[str, object] = {"image": image}
        if self.with_saliency:
            saliency = self.catalog.read_saliency(image_id)
            fields["saliency"] = saliency.resize(image.size, Image.Resampling.BILINEAR)
        if self.with_seed:
            fields["seed"] = self._seed(image_id, image.size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, epoch, image_id))
            sample = self.transform(fields)
        label = torch.from_numpy(self.catalog.label(image_id))
        return {"image_id": image_id, "label": label, **sample}

    def _seed(self, image_id: str, size: tuple[int, int]) -> tv_tensors.Mask:
        """(1, h, w) at the size (w, h) that the image was decoded at."""
        width, height = self.catalog.image_size(image_id)
        seed = self.earlier.read_seed(
            image_id, size=(height, width), num_classes=self.catalog.num_classes
        )
        resized = Image.fromarray(seed).resize(size, Image.Resampling.NEAREST)
        return tv_tensors.Mask(np.array(resized)[None])


class InferDataset(Dataset):
    """Whole images at several scales."""

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        scales: Sequence[float],
        inputs: tuple[str, ...] = ("image", "label"),
        earlier: Earlier | None = None,
    ) -> None:
        """Look over the list; no image is decoded.

        Args:
            catalog: where the files are.
            ids: the images, at least one.
            scales: factors on the image's size, in the order of "images".
            inputs: what the method needs; without "label" a sample has none and no labels are read.
            earlier: where seeds and CAMs are.

        Raises:
            FileNotFoundError: an image, seed or CAM is missing; names the first few.
            ValueError: no ids, an id without a label, a scale that is not positive, an input
                that cannot be loaded.
        """
        for name in inputs:
            if name not in INFERABLE:
                raise ValueError(
                    f"inference cannot load input {name!r}: there are {', '.join(INFERABLE)}"
                )
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales {list(scales)} are not positive numbers")
        _check_files(catalog, ids, False)
        self.with_label = "label" in inputs
        if self.with_label:
            _check_labels(catalog, ids)
        self.earlier, self.inputs = earlier or Earlier(), inputs
        self.earlier.require(inputs, ids)
        self.catalog, self.ids, self.scales = catalog, list(ids), tuple(scales)

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, indices: Sequence[int], batch_size: int) -> list[list[int]]:
        """`indices` in lists of at most `batch_size` images of one size.

        Raises:
            ValueError: a broken image file, named.
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
        """One image.

        Returns:
            "image_id" str; "size" (H, W) ints; where asked for "label" (K,) float32 {0, 1}, "seed"
            (H, W) int64 in 0..K, 255, "cam" (K, ceil(H / 4), ceil(W / 4)) float32 in [0, 1];
            "images" a (3, h, w) uint8 tensor a scale, h = round(H * scale), w = round(W * scale).

        Raises:
            ValueError: a broken file, named.
        """
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id)
        images = [at_scale(image, scale) for scale in self.scales]
        size, num_classes = (image.height, image.width), self.catalog.num_classes
        sample = {"image_id": image_id, "size": size, "images": images}
        if self.with_label:
            sample["label"] = torch.from_numpy(self.catalog.label(image_id))
        if takes_earlier(self.inputs):
            label = self.catalog.label(image_id)
            sample |= self.earlier.read(
                self.inputs, image_id, size=size, label=label, num_classes=num_classes
            )
        return sample


def _check_files(catalog: Catalog, ids: Sequence[str], with_saliency: bool) -> None:
    if not ids:
        raise ValueError("the image list is empty")
    _all_found(ids, catalog.image_path)
    if with_saliency:
        _all_found(ids, catalog.saliency_path)


def _all_found(ids: Sequence[str], find: Callable[[str], object]) -> None:
    missing: list[tuple[str, FileNotFoundError]] = []
    for image_id in ids:
        try:
            find(image_id)
        except FileNotFoundError as error:
            missing.append((image_id, error))
    if missing:
        others = ", ".join(repr(image_id) for image_id, _ in missing[1:3])
        more = f"; missing in all: {len(missing)}, also {others}" if others else ""
        raise FileNotFoundError(f"{missing[0][1]}{more}")


def _check_labels(catalog: Catalog, ids: Sequence[str]) -> None:
    missing = [repr(image_id) for image_id in ids if not catalog.has_label(image_id)]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(ids)} images have no label in {catalog.labels_path}"
            f" (--labels): {', '.join(missing[:3])}"
        )
