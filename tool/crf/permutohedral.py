"""High-dimensional Gaussian filtering on the permutohedral lattice.

It uses a sort, gathers and segment sums. So it runs on any device, without a compiler.

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
        group: (N,) int64 >= 0. Positions of different groups do not see each other. None means one
            group.

    Raises:
        ValueError: Positions spread too far to number the lattice points between them.
    """

    def __init__(self, position: Tensor, group: Tensor | None = None) -> None:
        count, dims = position.shape
        origin, rank, weight = _enclosing_simplex(_elevate(position.T))  # each (d+1, N)

        # The box around the lattice points; its margin holds the corners and their neighbours.
        low, high = origin[:dims].amin(dim=1) - 2 * dims, origin[:dims].amax(dim=1) + 2 * dims
        sizes = (high - low + 1).tolist()
        groups = 1 if group is None else int(group.max()) + 1
        if math.prod(sizes) * groups >= 2**63:
            raise ValueError(f"positions spread over {sizes} lattice cells are too many to number")

        # Number the corners of all simplices, so that equal lattice points have equal numbers.
        radix = [math.prod(sizes[axis + 1 :]) for axis in range(dims)]
        code = _corner_codes(origin[:dims] - low[:, None], rank, radix)  # (d+1, N)
        if group is not None:
            code += group * math.prod(sizes)

        # Sort the corners by lattice point. The sum onto a point is then that of a contiguous run.
        code, order = code.T.flatten().sort(stable=True)  # (N (d+1),)
        begins = F.pad(code[1:] != code[:-1], (1, 0), value=True)
        vertex = torch.empty_like(order).scatter_(0, order, begins.cumsum(0) - 1)
        self._vertex, self._weight = vertex.view(count, dims + 1), weight.T.contiguous()
        self._run_start = begins.nonzero()[:, 0]  # (M,)
        self._run_position = order // (dims + 1)
        self._run_weight = self._weight.flatten()[order]

        # A step along one of the d + 1 axes adds 1 to every coordinate and takes d + 1 off its own.
        # It changes the number of any point by the same amount.
        steps = [sum(radix) - (dims + 1) * one for one in (*radix, 0)]
        self._neighbours = [_neighbours(code[self._run_start], step) for step in steps]

    def filter(self, value: Tensor) -> Tensor:
        """Filter values: splat them onto the lattice, blur them there, slice the result.

        Args:
            value: (N, L) float32.

        Returns:
            (N, L), the sum over positions of kernel times value, up to a constant of the lattice.
        """
        # Splat: add each value to the corners around its position, by barycentric weight.
        on_points = F.embedding_bag(
            self._run_position,
            value,
            self._run_start,
            mode="sum",
            per_sample_weights=self._run_weight,
        )

        # Blur along each axis with (1/2, 1, 1/2). The last row stands for missing neighbours.
        on_points = F.pad(on_points, (0, 0, 0, 1))  # (M+1, L)
        for one, other in self._neighbours:
            near = on_points[one] + on_points[other]
            on_points[:-1] += 0.5 * near

        # Slice: interpolate between the corners around each position.
        sliced = F.embedding_bag(
            self._vertex, on_points, mode="sum", per_sample_weights=self._weight
        )
        return sliced / (1 + 2.0 ** (1 - self._vertex.shape[1]))


def _elevate(position: Tensor) -> Tensor:
    """Embed positions in the hyperplane of zero sum, scaled so that the lattice blurs by 1.

    Args:
        position: (d, N).

    Returns:
        (d+1, N).
    """
    dims = len(position)
    index = torch.arange(dims, device=position.device, dtype=position.dtype)[:, None]
    scaled = position * (math.sqrt(2 / 3) * (dims + 1) / ((index + 1) * (index + 2)).sqrt())
    from_here = F.pad(scaled.flip(0).cumsum(0).flip(0), (0, 0, 0, 1))
    return from_here - F.pad(scaled * (index + 1), (0, 0, 1, 0))


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each position.

    Args:
        elevated: (d+1, N).

    Returns:
        origin: (d+1, N) int64, the simplex's corner of remainder 0.
        rank: (d+1, N) int64, for each coordinate how many others have a larger residual to that
            corner, 0..d.
        weight: (d+1, N), the barycentric weights of the corners of remainder 0..d.

    Source: Adams et al., section 3.1.
    """
    # The nearest point with coordinates that are multiples of d + 1.
    dims = len(elevated) - 1
    nearest = (elevated / (dims + 1)).round()
    rank = _ranks(elevated - nearest * (dims + 1))

    # If its coordinates do not sum to zero, move it along the axes of extreme residuals.
    rank += nearest.sum(dim=0).long()
    wrap = (rank < 0).long() - (rank > dims).long()
    rank += wrap * (dims + 1)
    origin = (nearest.long() + wrap) * (dims + 1)

    # The weights are the differences of the residuals in ascending order.
    share = (elevated - origin) / (dims + 1)
    rising = torch.empty_like(share).scatter_(0, dims - rank, share)
    weight = rising - F.pad(rising, (0, 0, 1, 0))[:-1]
    weight[0] += 1 - rising[dims]
    return origin, rank, weight


def _ranks(residual: Tensor) -> Tensor:
    """Return how many coordinates of its column are larger than each one, (d+1, N) int64.

    Of equal coordinates the first counts as the larger one.
    """
    rank = torch.zeros(residual.shape, dtype=torch.long, device=residual.device)
    for one in range(len(residual)):
        for other in range(one + 1, len(residual)):
            smaller = residual[one] < residual[other]
            rank[one] += smaller
            rank[other] += ~smaller
    return rank


def _corner_codes(origin: Tensor, rank: Tensor, radix: list[int]) -> Tensor:
    """Return the corners of each simplex as single integers, in mixed radix.

    A lattice point has d + 1 coordinates that sum to zero, so d of them name it. The corner of
    remainder m adds m to each coordinate, and takes d + 1 off those of the m largest ranks.

    Args:
        origin: (d, N), at least 2 d.
        rank: (d+1, N), 0..d.
        radix: The place values of the d coordinates.

    Returns:
        (d+1, N) int64.
    """
    # The last coordinate follows from the others and has no place.
    weight = torch.tensor([*radix, 0], device=rank.device)[:, None]  # (d+1, 1)
    base = (origin * weight[:-1]).sum(dim=0)

    # The places in order of falling rank; their running sum takes off the m largest ranks.
    falling = torch.zeros_like(rank).scatter_(0, len(radix) - rank, weight.expand_as(rank))
    taken_off = F.pad(falling.cumsum(0), (0, 0, 1, 0))[:-1]
    remainder = torch.arange(len(rank), device=rank.device)[:, None]
    return base + remainder * sum(radix) - len(rank) * taken_off


def _neighbours(point: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the points one step ahead and one step behind of each point.

    Args:
        point: (M,) int64, ascending.
        step: The difference to the next point.

    Returns:
        Two of (M,); M stands for a missing point.
    """
    found = []
    for wanted in (point + step, point - step):
        index = torch.searchsorted(point, wanted).clamp(max=len(point) - 1)
        found.append(torch.where(point[index] == wanted, index, len(point)))
    return found[0], found[1]
