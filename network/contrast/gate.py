"""The NROI gate: each cell of a CAM is compared with background regions and with other classes.

A cell of a class's CAM is kept as far as its feature is nearer to the class than to the background
regions of other images, and than to the other classes of its image. Nothing is trained, and no
ground truth is used.

Source: both kinds of negatives are FBR's (TCSVT 2024), which uses them in training only. Their use
here is this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.nroi import kmeans
from network.losses import add_up, over_maximum, resize
from tool.formats.regions import Regions
from tool.progress import derive_seed

LARGEST = 512  # images whose NROIs are kept, so that the similarities stay cheap


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """The constants of the gate.

    Attributes:
        foreground: A cell supports its class if the class's CAM is above this there.
        of_maximum: If no cell does, the cells above this share of the CAM's maximum do.
        background: Cells whose best class is below this are background.
        fewest: If fewer cells are background, the lowest `lowest` of all cells are.
        lowest: Share of the cells.
        clusters: NROIs per image.
        iterations: Of k-means.
        nearest: The background similarity of a cell is its mean over this many nearest NROIs.
        rivals: The other classes of the image count like the background.
        temperature: Divides the difference of the two similarities.
    """

    foreground: float = 0.5
    of_maximum: float = 0.9
    background: float = 0.1
    fewest: int = 4
    lowest: float = 0.2
    clusters: int = 8
    iterations: int = 10
    nearest: int = 8
    rivals: bool = True
    temperature: float = 0.1


def sum_features(features: Sequence[Tensor]) -> Tensor:
    """Combine the features of an image at several scales.

    Args:
        features: One (D, h, w) per scale.

    Returns:
        (D, h, w) on the largest grid: the sum of the normalised features, normalised.
    """
    grid = max((feature.shape[-2:] for feature in features), key=lambda size: size[0] * size[1])
    sized = (resize(F.normalize(feature.float(), dim=0)[None], grid)[0] for feature in features)
    return F.normalize(add_up(sized), dim=0)


def class_prototypes(z: Tensor, cam: Tensor, settings: GateSettings) -> Tensor:
    """Compute the prototype of each class in an image: the mean feature of its confident cells.

    Args:
        z: (D, h, w), normalised.
        cam: (P, h, w) in [0, 1], the present classes; P may be 0.

    Returns:
        (P, D), normalised; zeros for a class whose CAM is 0 everywhere.
    """
    cells, flat = z.flatten(1), cam.flatten(1)  # (D, T), (P, T)
    if not len(flat):
        return z.new_zeros(0, len(cells))
    # The cells that a class owns: it is the best there, and above the threshold.
    best = flat.argmax(dim=0) == torch.arange(len(flat), device=flat.device)[:, None]
    owned = best & (flat > settings.foreground)
    highest = flat.amax(dim=1, keepdim=True)
    fallback = (flat >= settings.of_maximum * highest) & (highest > 0)
    owned = torch.where(owned.any(dim=1, keepdim=True), owned, fallback)
    return F.normalize((flat * owned) @ cells.T, dim=1)


def background_regions(z: Tensor, cam: Tensor, key: int, settings: GateSettings) -> Tensor:
    """Find the NROIs of an image: the clusters of its background cells.

    Args:
        z: (D, h, w), normalised.
        cam: (P, h, w) in [0, 1], the present classes; P may be 0.
        key: Seed of the first centroids.

    Returns:
        (R, D), normalised, with R at most `settings.clusters`.
    """
    cells = z.flatten(1).T  # (T, D)
    best = cam.flatten(1).amax(dim=0) if len(cam) else z.new_zeros(len(cells))  # (T,)
    member = best < settings.background
    if int(member.sum()) < settings.fewest:
        count = max(1, round(settings.lowest * len(cells)))
        member = torch.zeros_like(member)
        member[best.topk(count, largest=False).indices] = True
    generator = torch.Generator().manual_seed(key)
    priority = torch.rand(len(cells), generator=generator).to(z.device)
    centroid, valid = kmeans(
        cells[None],
        member[None],
        priority[None],
        clusters=settings.clusters,
        iterations=settings.iterations,
    )
    return F.normalize(centroid[0][valid[0]], dim=1)


def gate_of(
    z: Tensor,
    prototype: Tensor,
    region: Tensor,
    settings: GateSettings,
    *,
    own: Tensor | None = None,
) -> Tensor:
    """Compute how far each cell is nearer to each class than to what is not the class.

    That is the background, or another class of the image if the cell is nearer to it.

    Args:
        z: (D, h, w), normalised.
        prototype: (P, D), normalised; a row of zeros leaves its class as it is.
        region: (R, D), normalised, at least one.
        settings: The constants.
        own: (R,) bool, the regions to leave out, not all of them; None to leave out none.

    Returns:
        (P, h, w) in [0, 1].
    """
    cells = z.flatten(1)  # (D, T)
    # A row per cell: the largest of values side by side are found three times as fast.
    similarity = cells.T @ region.T  # (T, R)
    count = len(region)
    if own is not None:
        similarity.masked_fill_(own, -torch.inf)
        count -= int(own.sum())
    nearest = similarity.topk(min(settings.nearest, count), dim=1, sorted=False).values
    ground = nearest.mean(dim=1)  # (T,)
    known = prototype.any(dim=1)[:, None]  # (P, 1)
    near = prototype @ cells  # (P, T)
    other = ground.expand_as(near)
    if settings.rivals and len(near) > 1:
        other = torch.maximum(ground, best_of_others(near.masked_fill(~known, -torch.inf)))
    gate = torch.sigmoid((near - other) / settings.temperature)
    return torch.where(known, gate, torch.ones_like(gate)).unflatten(1, z.shape[1:])


def best_of_others(values: Tensor) -> Tensor:
    """Return for each row of (P, T), P at least 2, the largest value of the other rows, (P, T)."""
    first, second = values.topk(2, dim=0).values  # (T,) each; equal if two rows share the maximum
    return torch.where(values == first, second, first)


class _Refinement:
    """What the two passes share: the features and the CAM of an image on one grid.

    Args:
        has_background: The maps have a background row, first.
        seed: Keys the k-means of each image.
        settings: The constants.
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

        Maps with a background row are scores that compare with it, and stay as they are. Others are
        divided by their maximum.

        Args:
            features: One (D, h, w) per scale.
            cam: (C, H, W).
            label: (K,), 1 for the classes of the image.

        Returns:
            z (D, h, w), the CAM of the P present classes (P, h, w), and their indices (P,).
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
    """The first pass: collects NROIs and class prototypes of a sample of images."""

    def __init__(self, num_classes: int, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.num_classes = num_classes
        self.found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def __call__(
        self, image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Collect from an image; return its maps, unchanged."""
        z, cam, present = self.cells(features, next(iter(maps.values())), label)
        region = background_regions(z, cam, self.key(image_id), self.settings)
        prototype = class_prototypes(z, cam, self.settings)
        values = (region, prototype, present)
        self.found[image_id] = tuple(value.cpu().numpy() for value in values)  # type: ignore[assignment]
        return maps

    def regions(self, order: Sequence[str]) -> Regions:
        """Return what was found: NROIs, and the mean prototype of each class over images.

        Args:
            order: The images in the order of the sample. The NROIs of the first `LARGEST` count.
        """
        ids = sorted(self.found)
        kept = set([image_id for image_id in order if image_id in self.found][:LARGEST])
        rows = [self.found[i][0] if i in kept else self.found[i][0][:0] for i in ids]
        width = rows[0].shape[1]
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
        regions: Of a sample of images; those of the image itself are left out.
        device: The device of the features.
        settings: As for both passes.
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
        """Compute the gate of the present classes of a map.

        Returns:
            The gate (P, h, w), and the indices of the P classes.

        Raises:
            ValueError: The regions have another number of channels or classes.
        """
        if (len(features[0]), len(label)) != (self.region.shape[1], len(self.prototype)):
            raise ValueError(
                f"the regions of the gate have {self.region.shape[1]} channels and "
                f"{len(self.prototype)} classes, the method {len(features[0])} and {len(label)}"
            )
        z, small, present = self.cells(features, cam, label)
        own_prototype = class_prototypes(z, small, self.settings)
        known = own_prototype.any(dim=1, keepdim=True)  # a class without a cell has no gate
        prototype = F.normalize(own_prototype + self.prototype[present] * known, dim=1)
        region, own = self.region, None
        if image_id in self.index:
            own = self.owner == self.index[image_id]
            if own.all():  # the only image: its own regions have to do
                region, own = background_regions(z, small, self.key(image_id), self.settings), None
        return gate_of(z, prototype, region, self.settings, own=own), present

    def __call__(
        self, image_id: str, features: Sequence[Tensor], maps: dict[str, Tensor], label: Tensor
    ) -> dict[str, Tensor]:
        """Gate the foreground rows of all maps of an image; a background row stays as it is.

        Args:
            image_id: The image.
            features: Its features, one (D, h, w) per scale.
            maps: {name: (C, H, W)}, of which the first decides where classes are.
            label: (K,), 1 for the classes of the image.

        Returns:
            Maps of the same shapes. Without a background row each class keeps its maximum.
        """
        gate, present = self.gate(image_id, features, next(iter(maps.values())), label)
        if not len(present):
            return maps
        gated = {}
        for name, values in maps.items():
            rows, whole = present + self.first, values.clone()
            before = values[rows]
            after = before * resize(gate[None], values.shape[-2:])[0].to(values.dtype)
            if not self.first:
                after = over_maximum(after) * before.amax(dim=(-2, -1), keepdim=True)
            whole[rows] = after
            gated[name] = whole
        return gated


@torch.no_grad()
def gate_of_first(features: Tensor, cams: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Compute the gate of the first image of a batch, by the regions of the other images.

    Args:
        features: (N, D, h, w).
        cams: One (K, h, w) in [0, 1] per image.
        labels: (N, K).

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
