"""High-dimensional Gaussian filtering on the permutohedral lattice.

The lattice consists of the integer points of d + 1 coordinates that sum to zero and have one common
remainder modulo d + 1. Filtering takes three steps: each value is splatted onto the corners of the
simplex that encloses its position, the values on the lattice points are blurred along each axis,
and the result is sliced at the positions again.

The implementation uses a sort, gathers and segment sums. So it runs on any device, without a
compiler.

Source: A. Adams, J. Baek, M. A. Davis, Fast High-Dimensional Filtering Using the Permutohedral
Lattice (Eurographics 2010).

Letters: N positions, d dimensions, M lattice points, L channels of values.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Lattice:
    """The lattice points around a set of positions; it filters values with exp(-|p - q|^2 / 2).

    Args:
        position: (N, d) float32, in units of the kernel's standard deviation.
        group: (N,) int64 >= 0. The kernel between positions of different groups is 0. None means
            one group.

    Raises:
        ValueError: The positions are so far apart that the lattice points between them cannot be
            numbered in 63 bits.
    """

    def __init__(self, position: Tensor, group: Tensor | None = None) -> None:
        count, dims = position.shape
        origin, rank, weight = _enclosing_simplex(_elevate(position.T))  # each (d+1, N)

        # Find the box around the lattice points. Its margin holds the corners of the simplices and
        # the neighbours of the corners.
        low, high = origin[:dims].amin(dim=1) - 2 * dims, origin[:dims].amax(dim=1) + 2 * dims
        sizes = (high - low + 1).tolist()
        groups = 1 if group is None else int(group.max()) + 1
        if math.prod(sizes) * groups >= 2**63:
            raise ValueError(f"positions spread over {sizes} lattice cells are too many to number")

        # Number the corners of all simplices, so that equal lattice points have equal numbers. Each
        # group has a box of its own, so that groups share no lattice point.
        radix = [math.prod(sizes[axis + 1 :]) for axis in range(dims)]
        code = _corner_codes(origin[:dims] - low[:, None], rank, radix)  # (d+1, N)
        if group is not None:
            code += group * math.prod(sizes)

        # Sort the corners by lattice point, so that the corners at a point are a contiguous run.
        code, order = code.T.flatten().sort(stable=True)  # (N (d+1),)
        begins = F.pad(code[1:] != code[:-1], (1, 0), value=True)  # (N (d+1),)

        # Slicing needs, per corner, the index of its lattice point in 0..M-1.
        vertex = torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1)
        self._vertex, self._weight = vertex.view(count, dims + 1), weight.T.contiguous()

        # Splatting needs, per run, where it starts, and per corner its position and its weight.
        self._run_start = begins.nonzero()[:, 0]  # (M,)
        self._run_position = order // (dims + 1)  # (N (d+1),)
        self._run_weight = self._weight.flatten()[order]  # (N (d+1),)

        # Blurring needs the neighbours of each point along each of the d + 1 axes. A step along an
        # axis adds 1 to every coordinate and subtracts d + 1 from the axis's own. So it changes the
        # number of every point by the same amount.
        steps = [sum(radix) - (dims + 1) * one for one in (*radix, 0)]
        self._neighbours = [_neighbours(code[self._run_start], step) for step in steps]

    def filter(self, value: Tensor) -> Tensor:
        """Filter values: splat them onto the lattice, blur them there, slice the result.

        Args:
            value: (N, L) float32.

        Returns:
            (N, L), the sum over positions of kernel times value, approximately and up to a factor
            that depends on d only.
        """
        # Splat: add each value to the corners around its position, by barycentric weight. (M, L)
        on_points = F.embedding_bag(
            self._run_position,
            value,
            self._run_start,
            mode="sum",
            per_sample_weights=self._run_weight,
        )

        # Blur along each axis with (1/2, 1, 1/2). The last row is 0 and stands for neighbours that
        # are not in the lattice.
        on_points = F.pad(on_points, (0, 0, 0, 1))  # (M+1, L)
        for one, other in self._neighbours:
            near = on_points[one] + on_points[other]  # (M, L)
            on_points[:-1] += 0.5 * near

        # Slice: interpolate between the corners around each position. (N, L)
        sliced = F.embedding_bag(
            self._vertex, on_points, mode="sum", per_sample_weights=self._weight
        )
        # Scale by 1 / (1 + 2^-d), as pydensecrf does.
        return sliced / (1 + 2.0 ** (1 - self._vertex.shape[1]))


def _elevate(position: Tensor) -> Tensor:
    """Embed positions in the hyperplane of zero sum.

    They are scaled so that splat, blur and slice together have standard deviation 1 in the units of
    `position`. With s_j = p_j sqrt(2/3) (d + 1) / sqrt((j + 1) (j + 2)), coordinate i of the result
    is the sum of s_j over j >= i, minus i s_(i-1).

    Args:
        position: (d, N).

    Returns:
        (d+1, N), zero sum over the first axis.

    Source: Adams et al.
    """
    # Scale each dimension.
    dims = len(position)
    index = torch.arange(dims, device=position.device, dtype=position.dtype)[:, None]  # (d, 1)
    scaled = position * (math.sqrt(2 / 3) * (dims + 1) / ((index + 1) * (index + 2)).sqrt())

    # Sum from each coordinate on; the last coordinate has an empty sum.
    from_here = F.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))  # (d+1, N)
    # Subtract i s_(i-1); the first coordinate has none.
    return from_here - F.pad(scaled * (index + 1), (0, 0, 1, 0))


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex that encloses each position.

    Args:
        elevated: (d+1, N), zero sum over the first axis.

    Returns:
        origin: (d+1, N) int64, the simplex's corner of remainder 0.
        rank: (d+1, N) int64, for each coordinate how many others have a larger residual to that
            corner, 0..d.
        weight: (d+1, N), the barycentric weights of the corners of remainder 0..d; they sum to 1.

    Source: Adams et al., section 3.1.
    """
    # Round to the nearest point whose coordinates are multiples of d + 1.
    dims = len(elevated) - 1
    nearest = (elevated / (dims + 1)).round()  # (d+1, N), in units of d + 1
    rank = _ranks(elevated - nearest * (dims + 1))

    # The coordinates of that point sum to k, in units of d + 1, and a lattice point needs 0. If
    # k > 0, the k smallest residuals have rank + k > d, and their coordinates move down by one. If
    # k < 0, the -k largest residuals have rank + k < 0, and their coordinates move up by one.
    rank += nearest.sum(dim=0).long()
    wrap = (rank < 0).long() - (rank > dims).long()
    # A coordinate that moved down now has one of the largest residuals, and the reverse.
    rank += wrap * (dims + 1)
    origin = (nearest.long() + wrap) * (dims + 1)

    # With the residuals r_0 <= ... <= r_d in ascending order, in units of d + 1, the weights are
    # r_0 + 1 - r_d for the corner of remainder 0 and r_m - r_(m-1) for that of remainder m.
    share = (elevated - origin) / (dims + 1)  # (d+1, N)
    rising = torch.empty_like(share).scatter_(0, dims - rank, share)
    weight = rising - F.pad(rising, (0, 0, 1, 0))[:-1]
    weight[0] += 1 - rising[dims]
    return origin, rank, weight


def _ranks(residual: Tensor) -> Tensor:
    """Return for each coordinate how many others of its column are larger.

    If two coordinates are equal, the first one counts as the larger.

    Args:
        residual: (d+1, N).

    Returns:
        (d+1, N) int64, a permutation of 0..d per column.
    """
    rank = torch.zeros(residual.shape, dtype=torch.long, device=residual.device)
    # Each pair adds 1 to the rank of its smaller coordinate.
    for one in range(len(residual)):
        for other in range(one + 1, len(residual)):
            smaller = residual[one] < residual[other]
            rank[one] += smaller
            rank[other] += ~smaller
    return rank


def _corner_codes(origin: Tensor, rank: Tensor, radix: list[int]) -> Tensor:
    """Return the corners of each simplex as single integers, in mixed radix.

    A lattice point has d + 1 coordinates that sum to zero, so the first d of them identify it. The
    corner of remainder m has m more than `origin` in each coordinate, and d + 1 less in those of
    the m largest ranks.

    Args:
        origin: (d, N), the corner of remainder 0, at least 2 d.
        rank: (d+1, N), 0..d.
        radix: The place values of the d coordinates.

    Returns:
        (d+1, N) int64, row m for the corner of remainder m.
    """
    # Encode the corner of remainder 0. The last coordinate follows from the others, so its place
    # value is 0.
    weight = torch.tensor([*radix, 0], device=rank.device)[:, None]  # (d+1, 1)
    base = (origin * weight[:-1]).sum(dim=0)  # (N,)

    # Sort the place values by falling rank. Row m of the running sum is then the sum of the place
    # values of the m largest ranks.
    falling = torch.zeros_like(rank).scatter_(0, len(radix) - rank, weight.expand_as(rank))
    taken_off = F.pad(falling.cumsum(0), (0, 0, 1, 0))[:-1]  # (d+1, N)

    # Add m in every place, and subtract d + 1 in those of the m largest ranks.
    remainder = torch.arange(len(rank), device=rank.device)[:, None]  # (d+1, 1)
    return base + remainder * sum(radix) - len(rank) * taken_off


def _neighbours(point: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the points one step ahead of and one step behind each point.

    Args:
        point: (M,) int64, the numbers of the lattice points, ascending.
        step: The difference between the numbers of a point and of the next one on the axis.

    Returns:
        Two tensors (M,) int64 of indices into `point`; the index M stands for a missing point.
    """
    found = []
    for wanted in (point + step, point - step):
        # The numbers ascend, so a binary search finds the place of a number if it is there.
        index = torch.searchsorted(point, wanted).clamp(max=len(point) - 1)
        found.append(torch.where(point[index] == wanted, index, len(point)))
    return found[0], found[1]
