"""The NROI gate: a factor in [0, 1] per cell and class by which a CAM is multiplied.

For a cell with the normalised feature z and a class with the prototype p, the gate is

    sigmoid((z . p - other) / temperature),

where `other` is the larger of two cosines: the mean of z with its nearest background regions
(NROIs) of other images, and that of z with the most similar other class of the image. So a cell is
kept to the degree that it is nearer to the class than to both. Nothing is trained, and no ground
truth is used.

Source: both kinds of negatives are FBR's (TCSVT 2024), which uses them in training only. Their use
in inference is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.gate_steps import (
    GateSettings,
    background_regions,
    class_prototypes,
    gate_of,
    sum_features,
)
from network.maps import over_maximum, resize
from tool.formats.regions import Regions
from tool.progress import derive_seed

LARGEST = 512  # NROIs are kept of this many images at most, so that the similarities stay cheap


class _Refinement:
    """What the two passes of the gate share: an image's features and CAM on one grid.

    Args:
        has_background: Whether the first row of the maps is the background.
        seed: Keys the k-means of each image.
        settings: The constants of the gate; None for the defaults.
    """

    def __init__(
        self, *, has_background: bool, seed: int, settings: GateSettings | None = None
    ) -> None:
        self.first = int(has_background)
        self.seed, self.settings = seed, settings or GateSettings()

    def cells(
        self, features: Sequence[Tensor], cam: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the features and the CAM of an image on one grid.

        Maps without a background row are divided by their maximum. Maps with one are not, because
        their scores must stay comparable with the background's.

        Args:
            features: One (D, h, w) per scale.
            cam: (C, H, W); C is K, or K + 1 with a background row.
            label: (K,), 1 for the classes of the image.

        Returns:
            The features (D, h, w), normalised per cell; the CAMs of the P present classes
            (P, h, w); and the 0-based indices of these classes (P,).
        """
        z = sum_features(features)
        present = label.to(cam.device).nonzero()[:, 0]
        maps = cam[self.first :][present].float()
        if not self.first:
            maps = over_maximum(maps)
        return z, F.adaptive_avg_pool2d(maps, z.shape[-2:]), present

    def key(self, image_id: str) -> int:
        """Return the seed of an image's k-means."""
        return derive_seed(self.seed, "gate", image_id)


class RegionCollector(_Refinement):
    """The first pass: collects the NROIs and class prototypes of a sample of images.

    Args:
        num_classes: K.
        settings: The keyword arguments of both passes: `has_background`, `seed`, `settings`.

    Attributes:
        found: Per image id: NROIs (R, D), class prototypes (P, D) and 0-based classes (P,).
    """

    def __init__(self, num_classes: int, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.num_classes = num_classes
        self.found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __call__(
        self, image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Collect the NROIs and prototypes of an image.

        Args:
            image_id: The image.
            features: Its features, one (D, h, w) per scale.
            maps: {name: (C, H, W)}, of which the first one shows where classes are.
            label: (K,), 1 for the classes of the image.

        Returns:
            The maps, unchanged.
        """
        z, cam, present = self.cells(features, next(iter(maps.values())), label)
        region = background_regions(z, cam, self.key(image_id), self.settings)
        prototype = class_prototypes(z, cam, self.settings)
        values = (region, prototype, present)
        self.found[image_id] = tuple(value.cpu().numpy() for value in values)  # type: ignore[assignment]
        return maps

    def regions(self, order: Sequence[str]) -> Regions:
        """Return the collected NROIs, and the mean prototype of each class over the images.

        At least one image must have been collected.

        Args:
            order: The image ids in the order of the sample. Only the NROIs of the first `LARGEST`
                collected images are kept; all images count for the prototypes.

        Returns:
            The regions, with images in the order of their ids. Prototypes are normalised, and 0 for
            a class that no image has.
        """
        ids = sorted(self.found)
        # The NROIs of the kept images, and none of the others.
        kept = set([image_id for image_id in order if image_id in self.found][:LARGEST])
        rows = [self.found[i][0] if i in kept else self.found[i][0][:0] for i in ids]
        width = rows[0].shape[1]
        # The sum of each class's prototypes has the direction of their mean.
        total = np.zeros((self.num_classes, width), np.float64)
        for image_id in ids:
            _, prototype, present = self.found[image_id]
            total[present] += prototype
        length = np.linalg.norm(total, axis=1, keepdims=True)
        owner = np.repeat(np.arange(len(ids)), [len(one) for one in rows])
        prototypes = (total / np.maximum(length, 1e-12)).astype(np.float32)
        return Regions(ids, owner, np.concatenate(rows), prototypes)


class NroiGate(_Refinement):
    """The second pass: multiplies the CAMs of an image by its gate.

    Args:
        regions: The result of the first pass. The NROIs of an image are not used for its own gate.
        device: The device of the features.
        settings: The keyword arguments of both passes: `has_background`, `seed`, `settings`.
    """

    def __init__(self, regions: Regions, device: torch.device, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.index = {image_id: number for number, image_id in enumerate(regions.image_ids)}
        self.owner = torch.from_numpy(regions.owner).to(device)
        self.region = torch.from_numpy(regions.region).to(device)
        self.prototype = torch.from_numpy(regions.prototype).to(device)

    def gate(
        self, image_id: str, features: Sequence[Tensor], cam: Tensor, label: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the gate of an image for its present classes.

        Args:
            image_id: The image.
            features: Its features, one (D, h, w) per scale.
            cam: (C, H, W), which shows where classes are; C is K, or K + 1 with a background row.
            label: (K,), 1 for the classes of the image.

        Returns:
            The gate (P, h, w) in [0, 1] on the largest grid of the features, and the 0-based
            indices of the P present classes.

        Raises:
            ValueError: The regions have another number of channels or classes than the image.
        """
        if (len(features[0]), len(label)) != (self.region.shape[1], len(self.prototype)):
            raise ValueError(
                f"the regions of the gate (nroi.npz) have {self.region.shape[1]} channels and "
                f"{len(self.prototype)} classes, the method {len(features[0])} and {len(label)}: "
                "remove the file, and infer_cam.py makes it anew"
            )
        z, small, present = self.cells(features, cam, label)
        # The prototype of a class: the sum of that in this image and that of the sample. It stays 0
        # if the class has no cell in this image, and the class is not gated.
        own_prototype = class_prototypes(z, small, self.settings)  # (P, D)
        known = own_prototype.any(dim=1, keepdim=True)  # (P, 1)
        prototype = F.normalize(own_prototype + self.prototype[present] * known, dim=1)
        # The NROIs of all other images. If the sample has this image only, use its own.
        region, own = self.region, None
        if image_id in self.index:
            own = self.owner == self.index[image_id]  # (R,)
            if own.all():
                region, own = background_regions(z, small, self.key(image_id), self.settings), None
        return gate_of(z, prototype, region, self.settings, own=own), present

    def __call__(
        self, image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Gate the rows of the present classes in all maps of an image.

        A background row is not changed.

        Args:
            image_id: The image.
            features: Its features, one (D, h, w) per scale.
            maps: {name: (C, H, W)}, of which the first one shows where classes are.
            label: (K,), 1 for the classes of the image.

        Returns:
            New maps of the same names and shapes; the given ones if no class is present. If there
            is no background row, each class is scaled to the maximum that it had before.

        Raises:
            ValueError: The regions have another number of channels or classes than the image.
        """
        gate, present = self.gate(image_id, features, next(iter(maps.values())), label)
        if not len(present):
            return maps
        gated = {}
        for name, values in maps.items():
            rows, whole = present + self.first, values.clone()
            before = values[rows]  # (P, H, W)
            after = before * resize(gate[None], values.shape[-2:])[0].to(values.dtype)
            # A gate below 1 lowers the whole map. Restore its maximum, unless the scores must stay
            # comparable with the background's.
            if not self.first:
                after = over_maximum(after) * before.amax(dim=(-2, -1), keepdim=True)
            whole[rows] = after
            gated[name] = whole
        return gated


@torch.no_grad()
def gate_of_first(features: Tensor, cams: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the gate of the first image of a batch with the NROIs of the other images.

    Args:
        features: (N, D, h, w).
        cams: One (K, h', w') in [0, 1] per image.
        labels: (N, K), image-level {0, 1}.

    Returns:
        (K, h, w) in [0, 1], 0 for absent classes.
    """
    names = [str(number) for number in range(len(features))]
    collector = RegionCollector(labels.shape[1], seed=0, has_background=False)
    for name, feature, cam, label in zip(names, features, cams, labels, strict=True):
        collector(name, [feature], {"cam": cam}, label)
    regions = collector.regions(names)
    gate = NroiGate(regions, features.device, seed=0, has_background=False)
    found, present = gate.gate(names[0], [features[0]], cams[0], labels[0])
    return cams[0].new_zeros(len(cams[0]), *found.shape[1:]).index_copy(0, present, found)
