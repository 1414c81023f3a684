"""Pairs of near cells, their affinities given an edge map, and the random walk over affinities.

Source: J. Ahn, S. Cho, S. Kwak, Weakly Supervised Learning of Instance Segmentation with
Inter-pixel Relations (IRN, CVPR 2019); the walk itself is that of J. Ahn, S. Kwak, Learning
Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation (AffinityNet, CVPR 2018).

Letters: N batch, h w cells, P pairs per cell, C maps. An offset is (dy, dx) in cells.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Offset = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs (cell, cell + offset) of cells closer than a radius, each pair once.

    Attributes:
        radius: Distance in cells, exclusive.
        offsets: The P offsets in ascending order. All lead to later cells: dy > 0, or dy = 0 and
            dx > 0.
        paths: Per offset, the cells on the path from the first cell to the second, relative to the
            first. Both ends are included.
    """

    radius: int
    offsets: tuple[Offset, ...]
    paths: tuple[tuple[Offset, ...], ...]


@functools.cache
def pairs_within(radius: int) -> Pairs:
    """Return the pairs of cells within a radius: 34 per cell for radius 5, 152 for radius 10.

    Args:
        radius: Distance in cells, exclusive; at least 2.

    Raises:
        ValueError: The radius is below 2, so that no two cells are within it.

    Source: IRN, the neighbouring pairs P; AffinityNet's are those of radius 5.
    """
    if radius < 2:
        raise ValueError(f"radius {radius} has no pair of cells in it; the least is 2")
    reach = range(1 - radius, radius)
    offsets = tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in reach
        if (dy, dx) > (0, 0) and dy * dy + dx * dx < radius * radius
    )
    return Pairs(radius, offsets, tuple(line_path(offset) for offset in offsets))


def line_path(offset: Offset) -> tuple[Offset, ...]:
    """Return the path from (0, 0) to an offset.

    It consists of the cells closer than 1 to the line between the two ends, inside the rectangle
    that the ends span. Such a path is thick enough to meet every line of edge cells between its
    ends, even a diagonal one. It lies within the map if its ends do.

    Args:
        offset: The other end, with dy > 0, or dy = 0 and dx > 0.

    Returns:
        The cells relative to (0, 0), row by row, including both ends.

    Source: IRN, the line Pi_ij between two cells; its width is that of the release.
    """
    dy, dx = offset
    return tuple(
        (y, x)
        for y in range(dy + 1)
        for x in range(min(0, dx), max(0, dx) + 1)
        if (dy * x - dx * y) ** 2 < dy * dy + dx * dx  # distance = cross product / length
    )


def at_offsets(value: Tensor, offsets: Sequence[Offset], *, fill: float) -> Tensor:
    """Return the value at the other cell of each pair, such as its label or displacement.

    Args:
        value: (..., h, w), of any type.
        offsets: The P offsets, in any direction.
        fill: Value of cells outside the map. For a seed, 255 makes pairs that leave the map
            unknown.

    Returns:
        (..., P, h, w), of which each value stands at the first cell of its pair.
    """
    # Pad the map by the largest offset, and cut out a shifted view of it per offset.
    height, width = value.shape[-2:]
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    padded = F.pad(value, (reach,) * 4, value=fill)
    views = [
        padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        for dy, dx in offsets
    ]
    return torch.stack(views, dim=-3)


def path_affinity(edge: Tensor, pairs: Pairs) -> Tensor:
    """Compute the affinity of every pair: 1 minus the largest edge on the path between its cells.

    Args:
        edge: (h, w) or (N, h, w) in [0, 1]; receives the gradient.
        pairs: The pairs, from `pairs_within`.

    Returns:
        (P, h, w) or (N, P, h, w) in [0, 1], of which each value stands at the first cell of its
        pair. It is exactly 0 if the second cell is outside the map. The caller must leave such
        pairs out in training: `at_offsets` of the seed with fill 255 marks them.

    Raises:
        ValueError: The edge has neither two nor three axes.

    Source: IRN, a_ij = 1 - max of B over Pi_ij; the edge is the paper's B.
    Differs from the release: in its training, only cells farther than the radius from the lower
    border and from both sides are the first cell of a pair. Here every pair inside the map counts.
    If several cells have the maximum (in float32), the last one gets the gradient. In the release
    the first one does.
    """
    if edge.dim() not in (2, 3):
        raise ValueError(f"edge of shape {tuple(edge.shape)} is not (h, w) or (N, h, w)")
    reach = pairs.radius - 1
    # Outside the map the edge is 1. The upper border needs no padding, because no offset points up.
    padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
    # Find the position of each maximum without autograd, and read its value with it.
    where = _largest_on_paths(padded, pairs)  # (..., P, h, w)
    largest = padded.flatten(-2).gather(-1, where.flatten(-3)).view(where.shape)
    return 1 - largest


def _largest_on_paths(padded: Tensor, pairs: Pairs) -> Tensor:
    """Return the position of the largest value on each path, in the flattened padded map.

    A value and its position share an integer, so that one maximum finds both. This works because
    the bits of floats that are not negative are in the same order as the floats, with NaN above
    all. In this way autograd stores one index per pair instead of the values of every path.

    Args:
        padded: (..., h + radius - 1, w + 2 (radius - 1)), not negative.
        pairs: The pairs, from `pairs_within`.

    Returns:
        (..., P, h, w) int64.
    """
    reach = pairs.radius - 1
    height, width = padded.shape[-2] - reach, padded.shape[-1] - 2 * reach
    # Put the value into the upper 32 bits and the position into the lower ones. The mask clears the
    # sign of -0.
    bits = padded.float().view(torch.int32).long() & 0x7FFFFFFF
    position = torch.arange(padded.shape[-2:].numel(), device=padded.device)
    key = bits << 32 | position.view(padded.shape[-2:])
    # Take the maximum over each path. The paths of an offset have the same shape everywhere, so
    # each of its cells is one shifted view of the map.
    best = key.new_zeros(*padded.shape[:-2], len(pairs.offsets), height, width)
    for pair, path in zip(best.unbind(-3), pairs.paths, strict=True):
        for y, x in path:
            cell = key[..., y : y + height, reach + x : reach + x + width]
            torch.maximum(pair, cell, out=pair)
    return best.bitwise_and_(0xFFFFFFFF)  # the position


def transition(edge: Tensor, *, radius: int, beta: float) -> Tensor:
    """Return the sparse matrix T of one step of the walk, x <- T x.

    Args:
        edge: (h, w) in [0, 1].
        radius: Cells closer than this are neighbours, in cells.
        beta: Exponent of the affinity; the larger it is, the more an edge blocks.

    Returns:
        (h w, h w) CSR, the transpose of the matrix P of `random_walk`. Row j holds
        A_ij^beta / sum_i A_ij^beta for the neighbours i of cell j and for j itself, with A_jj = 1.
        Rows sum to 1.

    Raises:
        ValueError: The radius is below 2.

    Source: IRN and AffinityNet, T = S^-1 A^(o beta) with S the row sums of A^(o beta).
    """
    pairs = pairs_within(radius)
    height, width = edge.shape
    # 1. The affinity of each cell to later cells, and to earlier ones. The latter is that of the
    # same pair, read at its second cell.
    ahead = path_affinity(edge, pairs).pow(beta)  # (P, h, w)
    opposite = [(-dy, -dx) for dy, dx in pairs.offsets]
    behind = [
        at_offsets(one, [offset], fill=0) for one, offset in zip(ahead, opposite, strict=True)
    ]
    # 2. The weights of all neighbours of a cell in the order of their columns: earlier cells, the
    # cell itself, later cells. They are divided by their sum.
    weight = torch.cat([*reversed(behind), torch.ones_like(edge)[None], ahead])  # (2P+1, h, w)
    weight = weight / weight.sum(dim=0)
    # 3. The column of each weight, -1 outside the map. The entries inside are those of the CSR
    # matrix, row by row.
    cell = torch.arange(height * width, dtype=torch.int32, device=edge.device)
    offsets = [*reversed(opposite), (0, 0), *pairs.offsets]
    column = at_offsets(cell.view(height, width), offsets, fill=-1).flatten(1).T  # (h w, 2P+1)
    inside = column >= 0
    row_ends = inside.sum(dim=1).cumsum(dim=0, dtype=torch.int32)  # (h w,)
    # Torch warns unless it is told whether to check the matrix. It is valid by construction, and a
    # test checks it.
    unchecked = torch.sparse.check_sparse_tensor_invariants(enable=False)
    with warnings.catch_warnings(), unchecked:
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            F.pad(row_ends, (1, 0)),
            column[inside],
            weight.flatten(1).T[inside],
            size=(height * width, height * width),
        )


@torch.inference_mode()
def random_walk(
    cam: Tensor, edge: Tensor, *, radius: int = 5, beta: float = 10.0, steps: int = 256
) -> Tensor:
    """Spread CAMs by a random walk that edges block.

    Args:
        cam: (C, h, w), finite. Computed in float64 if it is float64, else in float32.
        edge: (h, w) in [0, 1], on the same cells; moved to the CAM's device.
        radius: A step reaches cells closer than this, in cells of the map; at least 2.
        beta: Exponent of the affinity, above 0.
        steps: Number of steps of the walk, at least 0. The default of 256 is 2^8, as in the
            originals.

    Returns:
        (C, h, w): (cam * (1 - edge)) P^steps, neither normalised nor resized.

    Raises:
        ValueError: The shapes do not fit, the map has no cells, the edge is outside [0, 1] or NaN,
            the CAM is not finite, or a parameter is out of range.

    Source: IRN, T^t vec(M (1 - B)), with the parameters of its release.
    Differs from the release: it squares the dense (h w, h w) matrix P eight times, with 1 GiB each
    at 128x128 cells, and cuts off what an image has above 512 pixels. Here the maps are multiplied
    256 times by the sparse P, and nothing is cut off. The results are equal but for rounding, about
    1e-4 of the maximum in float32.
    """
    _check(cam, edge, beta, steps)
    cam = cam.to(torch.promote_types(cam.dtype, torch.float32))
    edge = edge.to(cam)
    # Without autocast: the 8 bits of bf16 would not survive 256 products.
    with torch.autocast(cam.device.type, enabled=False):
        step = transition(edge, radius=radius, beta=beta)
        walked = (cam * (1 - edge)).flatten(1).T  # (h w, C)
        for _ in range(steps):
            walked = step @ walked
    return walked.T.reshape(cam.shape)


def _check(cam: Tensor, edge: Tensor, beta: float, steps: int) -> None:
    """Raise the ValueErrors of `random_walk`, except that of the radius."""
    if cam.dim() != 3 or cam.shape[1:] != edge.shape or not edge.numel():
        raise ValueError(
            f"cam of shape {tuple(cam.shape)} and edge of shape {tuple(edge.shape)} are not "
            "(C, h, w) and (h, w) of the same cells"
        )
    low, high = (float(one) for one in edge.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"edge from {low} to {high} is not a map of probabilities in [0, 1]")
    odd = cam[~cam.isfinite()]
    if len(odd):
        raise ValueError(f"cam with {len(odd)} values that are not finite, the first {odd[0]}")
    if not (0 < beta < math.inf):
        raise ValueError(f"beta {beta} is not a finite number above 0")
    if steps < 0:
        raise ValueError(f"steps {steps} is negative")
