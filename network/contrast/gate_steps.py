"""The steps of the NROI gate: sum features, make prototypes, find NROIs, compare (see `gate`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from network.contrast.nroi import kmeans
from network.losses import add_up
from network.maps import resize


@dataclasses.dataclass(frozen=True)
class GateSettings:
    """The constants of the gate.

    Attributes:
        foreground: A cell supports a class if the class is the best there, and above this.
        of_maximum: If no cell supports a class, those with at least this share of its maximum do.
        background: Cells whose best class is below this are background.
        fewest: If fewer cells than this are background, those with the lowest CAM are taken
            instead.
        lowest: Share of all cells that are taken then, in (0, 1].
        clusters: Largest number of NROIs per image.
        iterations: Iterations of k-means.
        nearest: Number of nearest NROIs; the mean of their cosines is the background similarity.
        rivals: Whether the other classes of the image count like the background.
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
    """Combine the features of an image at several scales into one map.

    Args:
        features: One (D, h, w) per scale.

    Returns:
        (D, h, w) on the largest of the grids: the sum over scales of the features, each normalised
        per cell. The sum is normalised again.
    """
    grid = max((feature.shape[-2:] for feature in features), key=lambda size: size[0] * size[1])
    sized = (resize(F.normalize(feature.float(), dim=0)[None], grid)[0] for feature in features)
    return F.normalize(add_up(sized), dim=0)


def class_prototypes(z: Tensor, cam: Tensor, settings: GateSettings) -> Tensor:
    """Compute the prototype of each class in an image: the mean feature of its confident cells.

    The mean is weighted by the CAM.

    Args:
        z: (D, h, w), normalised per cell.
        cam: (P, h, w) in [0, 1], the CAMs of the present classes; P may be 0.
        settings: The constants of the gate.

    Returns:
        (P, D), normalised; 0 for a class whose CAM is 0 everywhere.
    """
    cells, flat = z.flatten(1), cam.flatten(1)  # (D, T), (P, T)
    if not len(flat):
        return z.new_zeros(0, len(cells))
    # A class owns the cells where it is the best class and above the threshold.
    best = flat.argmax(dim=0) == torch.arange(len(flat), device=flat.device)[:, None]  # (P, T)
    owned = best & (flat > settings.foreground)
    # A class that owns none gets the cells near its maximum, unless its CAM is 0 everywhere.
    highest = flat.amax(dim=1, keepdim=True)  # (P, 1)
    fallback = (flat >= settings.of_maximum * highest) & (highest > 0)
    owned = torch.where(owned.any(dim=1, keepdim=True), owned, fallback)
    return F.normalize((flat * owned) @ cells.T, dim=1)


def background_regions(z: Tensor, cam: Tensor, key: int, settings: GateSettings) -> Tensor:
    """Find the NROIs of an image: the clusters of its background cells.

    Args:
        z: (D, h, w), normalised per cell.
        cam: (P, h, w) in [0, 1], the CAMs of the present classes; P may be 0.
        key: Seed of the draw of the first centroids.
        settings: The constants of the gate.

    Returns:
        (R, D), normalised, with R in 1..`settings.clusters`.
    """
    cells = z.flatten(1).T  # (T, D)
    # A cell is background if no present class is active there.
    best = cam.flatten(1).amax(dim=0) if len(cam) else z.new_zeros(len(cells))  # (T,)
    member = best < settings.background
    # Where the CAMs leave too few of them, take the least active share of all cells.
    if int(member.sum()) < settings.fewest:
        count = max(1, round(settings.lowest * len(cells)))
        member = torch.zeros_like(member)
        member[best.topk(count, largest=False).indices] = True
    # The draw is made on the CPU, so that every device has the same first centroids.
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
    """Compute the gate: how much nearer each cell is to each class than to what is not the class.

    The gate is sigmoid((near - other) / temperature). `near` is the cosine of the cell with the
    prototype of the class. `other` is its similarity to the background or, if that is larger and
    `settings.rivals` is set, its cosine with the nearest other class of the image.

    Args:
        z: (D, h, w), normalised per cell.
        prototype: (P, D), normalised; a row of zeros gives its class a gate of 1.
        region: (R, D), normalised NROIs, with R at least 1.
        settings: The constants of the gate.
        own: (R,) bool, True for the NROIs to leave out, which must not be all of them. None to
            leave out none.

    Returns:
        (P, h, w) in [0, 1].
    """
    cells = z.flatten(1)  # (D, T)
    # The similarity to the background: the mean cosine with the nearest NROIs. The matrix has one
    # row per cell, because `topk` is three times as fast along contiguous values.
    similarity = cells.T @ region.T  # (T, R)
    count = len(region)
    if own is not None:
        similarity.masked_fill_(own, -torch.inf)
        count -= int(own.sum())
    nearest = similarity.topk(min(settings.nearest, count), dim=1, sorted=False).values
    ground = nearest.mean(dim=1)  # (T,)
    # The similarity to the class. A class without a prototype is neither gated nor a rival.
    known = prototype.any(dim=1)[:, None]  # (P, 1)
    near = prototype @ cells  # (P, T)
    # What the cell must be nearer to the class than: the background or the best rival.
    other = ground.expand_as(near)
    if settings.rivals and len(near) > 1:
        other = torch.maximum(ground, best_of_others(near.masked_fill(~known, -torch.inf)))
    gate = torch.sigmoid((near - other) / settings.temperature)
    return torch.where(known, gate, torch.ones_like(gate)).unflatten(1, z.shape[1:])


def best_of_others(values: Tensor) -> Tensor:
    """Return, per row and column, the largest value that the other rows have in the column.

    Args:
        values: (P, T), with P at least 2.

    Returns:
        (P, T).
    """
    # For the row with the maximum it is the second largest value, for all other rows the largest.
    # If two rows share the maximum, both values are equal.
    first, second = values.topk(2, dim=0).values  # (T,) each
    return torch.where(values == first, second, first)
