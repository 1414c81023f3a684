"""Samples for training and inference out of a catalog; here the batch is documented."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch.utils.data import Dataset

from data.catalog import Catalog
from data.transforms import TrainTransform, at_scale
from tool.keyed import seed_of

ALWAYS = ("image_id", "image", "label", "valid")
LOADABLE = (*ALWAYS, "saliency")


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
    | `cam` | (N, K+1, h, w) | float32 [0, 1] | CAMs of an earlier stage |

    As the loader collates it, `image` and `saliency` are uint8, and (N, 3, 6) `jitter` is still to
    be applied. H = W = crop. `image_id`, `image`, `label` and `valid` are always there, `saliency`
    on demand; no stage makes `seed` and `cam` for training yet.
    """

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        inputs: tuple[str, ...],
        crop: int,
        long_side: tuple[int, int],
        seed: int,
    ) -> None:
        """Look over the list before hours are spent; no image is decoded.

        Args:
            catalog: where the files are.
            ids: the images, at least one.
            inputs: batch keys that the method needs.
            crop: H = W of a sample.
            long_side: (low, high) of the longer side before the crop.
            seed: of the run.

        Raises:
            FileNotFoundError: an image or saliency map is missing; names the first few.
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
        self.catalog, self.ids, self.seed = catalog, list(ids), seed
        self.largest = long_side[1]
        self.transform = TrainTransform(crop=crop, long_side=long_side)

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
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, epoch, image_id))
            sample = self.transform(fields)
        label = torch.from_numpy(self.catalog.label(image_id))
        return {"image_id": image_id, "label": label, **sample}


class InferDataset(Dataset):
    """Whole images at several scales."""

    def __init__(
        self,
        catalog: Catalog,
        ids: Sequence[str],
        *,
        scales: Sequence[float],
        inputs: tuple[str, ...] = ("image", "label"),
    ) -> None:
        """Look over the list; no image is decoded.

        Args:
            catalog: where the files are.
            ids: the images, at least one.
            scales: factors on the image's size, in the order of "images".
            inputs: what the method needs; without "label" a sample has none and no labels are read.

        Raises:
            FileNotFoundError: an image is missing; names the first few.
            ValueError: no ids, an id without a label, a scale that is not positive, an input
                that cannot be loaded.
        """
        for name in inputs:
            if name not in ("image_id", "image", "label"):
                raise ValueError(f"inference cannot load input {name!r}: there are image, label")
        if not scales or not all(0 < scale < float("inf") for scale in scales):
            raise ValueError(f"scales {list(scales)} are not positive numbers")
        _check_files(catalog, ids, False)
        self.with_label = "label" in inputs
        if self.with_label:
            _check_labels(catalog, ids)
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
            "image_id" str; "size" (H, W) ints; "label" (K,) float32 {0, 1}, where asked for;
            "images" a (3, h, w) uint8 tensor a scale, h = round(H * scale), w = round(W * scale).

        Raises:
            ValueError: a broken file, named.
        """
        image_id = self.ids[index]
        image = self.catalog.read_image(image_id)
        images = [at_scale(image, scale) for scale in self.scales]
        sample = {"image_id": image_id, "size": (image.height, image.width), "images": images}
        if self.with_label:
            sample["label"] = torch.from_numpy(self.catalog.label(image_id))
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
