"""Pairs of near cells, their affinity under an edge map, and the random walk it guides.

Source: J. Ahn, S. Cho, S. Kwak, Weakly Supervised Learning of Instance Segmentation with
Inter-pixel Relations (IRN, CVPR 2019); the walk itself is that of J. Ahn, S. Kwak, Learning
Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation (AffinityNet, CVPR 2018).

Letters: h w cells, P pairs a cell, C maps; an offset is (dy, dx) in cells.
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
    """The pairs of cells closer than a radius, each once: (cell, cell + offset).

    Attributes:
        radius: in cells, exclusive.
        offsets: P of them in ascending order, all in the half plane of later cells:
            dy > 0, or dy = 0 and dx > 0.
        paths: of each offset the cells between, relative to the first; both ends are among them.
    """

    radius: int
    offsets: tuple[Offset, ...]
    paths: tuple[tuple[Offset, ...], ...]


@functools.cache
def pairs_within(radius: int) -> Pairs:
    """The pairs of a radius: 34 of radius 5, 152 of radius 10.

    Raises:
        ValueError: a radius below 2, which has no pairs.

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
    """The cells of the rectangle around a segment from (0, 0) that are closer than 1 to its line.

    Such a path is thick enough to meet every line of edge cells between its ends, diagonal ones
    too, and lies within the map when its ends do.

    Args:
        offset: the other end, in the half plane of `Pairs`.

    Returns:
        Cells relative to (0, 0), row by row, both ends among them.

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
    """What stands at the other cell of each pair, such as its label or displacement.

    Args:
        value: (..., h, w), any type.
        offsets: P of them.
        fill: what stands outside the map; 255 for a seed makes its pairs unknown.

    Returns:
        (..., P, h, w).
    """
    height, width = value.shape[-2:]
    reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    padded = F.pad(value, (reach,) * 4, value=fill)
    views = [
        padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        for dy, dx in offsets
    ]
    return torch.stack(views, dim=-3)


def path_affinity(edge: Tensor, pairs: Pairs) -> Tensor:
    """The affinity of every pair: 1 - the largest edge on the path between its cells.

    Args:
        edge: (h, w) or (N, h, w) in [0, 1], not negative; receives the gradient.
        pairs: from `pairs_within`.

    Returns:
        (P, h, w) or (N, P, h, w) in [0, 1], at the first cell of each pair; exactly 0 where the
        second one is outside the map. In training such pairs are for the caller to leave out:
        `at_offsets` of the seed with fill 255 marks them.

    Raises:
        ValueError: an edge of another shape.

    Source: IRN, a_ij = 1 - max of B over Pi_ij; edge is the paper's B.
    Differs from the release: there only cells farther from the border than the radius (below them,
    and at both sides) are the first cell of a pair in training, here every pair inside the map
    counts. Of several maximal cells (to float32) the last one gets the gradient, there the first.
    """
    if edge.dim() not in (2, 3):
        raise ValueError(f"edge of shape {tuple(edge.shape)} is not (h, w) or (N, h, w)")
    reach = pairs.radius - 1
    padded = F.pad(edge, (reach, reach, 0, reach), value=1.0)
    where = _largest_on_paths(padded, pairs)
    largest = padded.flatten(-2).gather(-1, where.flatten(-3)).view(where.shape)
    return 1 - largest


def _largest_on_paths(padded: Tensor, pairs: Pairs) -> Tensor:
    """(..., P, h, w) int64: where in the flattened padded map the largest value of a path is.

    Value and position share an integer: the bits of floats that are not negative are ordered as
    the floats are, NaN above all. So one maximum finds both, and autograd keeps one index a pair
    in place of every path.
    """
    reach = pairs.radius - 1
    height, width = padded.shape[-2] - reach, padded.shape[-1] - 2 * reach
    bits = padded.float().view(torch.int32).long() & 0x7FFFFFFF
    position = torch.arange(padded.shape[-2:].numel(), device=padded.device)
    key = bits << 32 | position.view(padded.shape[-2:])
    best = key.new_zeros(*padded.shape[:-2], len(pairs.offsets), height, width)
    for pair, path in zip(best.unbind(-3), pairs.paths, strict=True):
        for y, x in path:
            cell = key[..., y : y + height, reach + x : reach + x + width]
            torch.maximum(pair, cell, out=pair)
    return best.bitwise_and_(0xFFFFFFFF)


def transition(edge: Tensor, *, radius: int, beta: float) -> Tensor:
    """One step of the walk as a sparse matrix T: x <- T x, T = P transposed.

    Args:
        edge: (h, w) in [0, 1].
        radius: of the pairs, in cells.
        beta: exponent of the affinity; the larger, the more an edge blocks.

    Returns:
        (h w, h w) CSR. Row j holds A_ij^beta / sum_i A_ij^beta for the cells i closer to j than the
        radius, j itself with A_jj = 1 among them; rows sum to 1.

    Source: IRN and AffinityNet, T = S^-1 A^(o beta) with S the row sums of A^(o beta).
    """
    pairs = pairs_within(radius)
    height, width = edge.shape
    ahead = path_affinity(edge, pairs).pow(beta)
    opposite = [(-dy, -dx) for dy, dx in pairs.offsets]
    behind = [
        at_offsets(one, [offset], fill=0) for one, offset in zip(ahead, opposite, strict=True)
    ]
    # in the order of their columns
    weight = torch.cat([*reversed(behind), torch.ones_like(edge)[None], ahead])
    weight = weight / weight.sum(dim=0)
    cell = torch.arange(height * width, dtype=torch.int32, device=edge.device)
    offsets = [*reversed(opposite), (0, 0), *pairs.offsets]
    column = at_offsets(cell.view(height, width), offsets, fill=-1).flatten(1).T
    inside = column >= 0
    row_ends = inside.sum(dim=1).cumsum(dim=0, dtype=torch.int32)
    # the invariants hold by construction, which a test checks; torch wants an explicit choice
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
    """Spreads CAMs over the cells that no edge parts from them.

    Args:
        cam: (C, h, w), finite; float64 is kept, all else is computed in float32.
        edge: (h, w) in [0, 1], at the same stride; moved to the CAM's device.
        radius: a step reaches cells closer than this, in cells of the map.
        beta: exponent of the affinity, above 0.
        steps: of the walk; 256 is the originals' 2^8.

    Returns:
        (C, h, w): (cam * (1 - edge)) P^steps. Not normalised, not resized: `merge` does that.

    Raises:
        ValueError: shapes that do not fit, a map without cells, an edge outside [0, 1] or NaN, a
            CAM that is not finite, a parameter out of range.

    Source: IRN, T^t vec(M (1 - B)), with the parameters of its release.
    Differs from the release: that squares the dense (h w, h w) matrix P eight times, 1 GiB each
    at 128x128 cells, where this multiplies by the sparse P 256 times: the same but for rounding,
    about 1e-4 of the maximum in float32. There an image above 512 pixels is cut off; here none is.
    """
    _check(cam, edge, beta, steps)
    cam = cam.to(torch.promote_types(cam.dtype, torch.float32))
    edge = edge.to(cam)
    with torch.autocast(cam.device.type, enabled=False):  # 256 products would lose bf16's 8 bits
        step = transition(edge, radius=radius, beta=beta)
        walked = (cam * (1 - edge)).flatten(1).T
        for _ in range(steps):
            walked = step @ walked
    return walked.T.reshape(cam.shape)


def _check(cam: Tensor, edge: Tensor, beta: float, steps: int) -> None:
    """Raises what `random_walk` says."""
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
