"""The random walk equals the dense power that it stands for; its pairs are those of IRN."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor

from network.walk.random_walk import (
    at_offsets,
    line_path,
    pairs_within,
    path_affinity,
    random_walk,
    transition,
)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense_affinity(edge: Tensor, radius: int) -> Tensor:
    """(h w, h w) float64, cell by cell from the definition, with absolute coordinates."""
    cells = list(itertools.product(range(edge.shape[0]), range(edge.shape[1])))
    affinity = torch.eye(len(cells), dtype=torch.float64)
    for (i, a), (j, b) in itertools.combinations(enumerate(cells), 2):
        length = math.dist(a, b)
        if length < radius:
            largest = max(
                float(edge[y, x])
                for y in range(min(a[0], b[0]), max(a[0], b[0]) + 1)
                for x in range(min(a[1], b[1]), max(a[1], b[1]) + 1)
                if abs((b[0] - a[0]) * (x - a[1]) - (b[1] - a[1]) * (y - a[0])) / length < 1 - 1e-9
            )
            affinity[i, j] = affinity[j, i] = 1 - largest
    return affinity


def dense_walk(cam: Tensor, edge: Tensor, *, radius: int, beta: float, squarings: int) -> Tensor:
    """As the originals: P squared again and again."""
    power = dense_affinity(edge, radius) ** beta
    power = power / power.sum(dim=0, keepdim=True)
    for _ in range(squarings):
        power = power @ power
    return ((cam * (1 - edge)).flatten(1) @ power).view(cam.shape)


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (5, 34), (10, 152)])
def test_pairs_of_a_radius(radius: int, count: int) -> None:
    pairs = pairs_within(radius)
    assert len(pairs.offsets) == len(pairs.paths) == count
    both_ways = {*pairs.offsets, *((-dy, -dx) for dy, dx in pairs.offsets)}
    assert len(both_ways) == 2 * count, "each pair once"
    assert all(math.hypot(*offset) < radius for offset in both_ways)
    assert list(pairs.offsets) == sorted(pairs.offsets)
    for offset, path in zip(pairs.offsets, pairs.paths, strict=True):
        assert {(0, 0), offset} <= set(path)
        assert len(set(path)) == len(path)
    assert pairs_within(radius) is pairs


@pytest.mark.parametrize(
    ("offset", "path"),
    [
        ((0, 3), {(0, 0), (0, 1), (0, 2), (0, 3)}),
        ((2, 0), {(0, 0), (1, 0), (2, 0)}),
        ((1, 1), {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ((2, -3), {(0, 0), (0, -1), *((1, -x) for x in range(4)), (2, -2), (2, -3)}),
        ((2, 2), {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)}),
        (
            (3, 4),  # (1, 3) and (2, 1) are at a distance of exactly 1: not in it
            {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4)},
        ),
    ],
)
def test_path_between_two_cells(offset: tuple[int, int], path: set[tuple[int, int]]) -> None:
    assert set(line_path(offset)) == path


def test_affinity_is_one_minus_the_largest_edge_on_the_path() -> None:
    pairs = pairs_within(5)
    edge = torch.zeros(2, 6, 9)
    edge[0, 1, 3], edge[0, 2, 4], edge[0, 5, 5] = 0.3, 0.6, 0.9  # the last is on no path below
    affinity = path_affinity(edge, pairs)
    assert affinity.shape == (2, 34, 6, 9)
    for (y, x), offset, expected in [
        ((1, 1), (0, 3), 0.7),  # row 1, columns 1..4
        ((1, 1), (0, 1), 1.0),
        ((1, 3), (0, 1), 0.7),  # its first end is the edge
        ((2, 1), (0, 3), 0.4),  # its second end is
        ((0, 2), (3, 3), 0.4),  # along the diagonal, both edges: the larger counts
        ((0, 4), (2, -1), 0.4),  # beside the line
    ]:
        assert affinity[0, pairs.offsets.index(offset), y, x].item() == pytest.approx(expected)
    assert path_affinity(edge[0], pairs).equal(affinity[0])
    inside = at_offsets(torch.ones(6, 9), pairs.offsets, fill=0)
    assert affinity[1].equal(inside), "no edge: 1 inside, 0 for a second cell outside"


def test_at_offsets_reads_the_other_cell() -> None:
    seed = torch.arange(2 * 3 * 4).view(2, 3, 4)
    other = at_offsets(seed, [(0, 1), (1, -2), (-1, 3)], fill=255)
    assert other.dtype == seed.dtype
    assert other[1, 0].tolist() == [[13, 14, 15, 255], [17, 18, 19, 255], [21, 22, 23, 255]]
    assert other[0, 1].tolist() == [[255, 255, 4, 5], [255, 255, 8, 9], [255] * 4]
    assert other[0, 2].tolist() == [[255] * 4, [3, 255, 255, 255], [7, 255, 255, 255]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_gradient_of_the_affinity_reaches_the_largest_cell(dtype: torch.dtype) -> None:
    pairs = pairs_within(10)
    edge = noise(2, 12, 23, dtype=torch.float64).to(dtype).requires_grad_()
    affinity = path_affinity(edge, pairs)
    assert affinity.dtype == dtype
    affinity[1, pairs.offsets.index((0, 4)), 3, 5].backward()
    path = edge.detach()[1, 3, 5:10]
    expected = torch.zeros_like(edge)
    expected[1, 3, 5 + int(path.argmax())] = -1
    assert edge.grad.equal(expected)


def test_gradient_equals_that_of_plain_maxima() -> None:
    pairs = pairs_within(4)
    edge = noise(2, 5, 6, dtype=torch.float64).requires_grad_()
    inside = at_offsets(torch.ones(5, 6), pairs.offsets, fill=0).double()
    (ours,) = torch.autograd.grad((path_affinity(edge, pairs) ** 3).sum(), edge)
    plain = [at_offsets(edge, path, fill=1).amax(dim=-3) for path in pairs.paths]
    (theirs,) = torch.autograd.grad(((1 - torch.stack(plain, dim=1)) ** 3 * inside).sum(), edge)
    torch.testing.assert_close(ours, theirs)
    assert (ours != 0).sum() > 15


def test_affinity_of_nan_is_nan() -> None:
    edge = torch.zeros(4, 4)
    for sign in (1, -1):
        edge[1, 1] = math.copysign(math.nan, sign)
        affinity = path_affinity(edge, pairs_within(2))
        assert affinity[:, 1, 1].isnan().all(), "of either sign: hardware makes both"
        assert affinity[:, 3].isfinite().all()


@pytest.mark.parametrize(
    ("size", "radius", "beta"), [((9, 7), 5, 10.0), ((3, 8), 5, 4.0), ((1, 12), 5, 10.0),
                                 ((7, 1), 3, 2.0), ((2, 2), 10, 1.0), ((1, 1), 5, 10.0)]
)  # fmt: skip
def test_equals_the_dense_power(size: tuple[int, int], radius: int, beta: float) -> None:
    cam = noise(3, *size, seed=1, dtype=torch.float64)
    edge = noise(*size, seed=2, dtype=torch.float64) ** 2
    expected = dense_walk(cam, edge, radius=radius, beta=beta, squarings=8)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-4), (torch.float16, 1e-2)):
        walked = random_walk(cam.to(dtype), edge, radius=radius, beta=beta, steps=256)
        assert walked.shape == cam.shape
        assert walked.dtype == torch.promote_types(dtype, torch.float32)
        assert (walked - expected).abs().max() / expected.abs().max() < tolerance


def test_defaults_are_those_of_the_release() -> None:
    cam, edge = noise(2, 6, 9), noise(6, 9)
    spelt_out = random_walk(cam, edge, radius=5, beta=10, steps=2**8)
    assert random_walk(cam, edge).equal(spelt_out)


def test_arguments_stay_as_they_are() -> None:
    cam, edge = noise(2, 5, 6), noise(5, 6).requires_grad_()
    copies = cam.clone(), edge.detach().clone()
    assert not random_walk(cam, edge, steps=3).requires_grad
    assert cam.equal(copies[0])
    assert edge.equal(copies[1])


@pytest.mark.parametrize("size", [(150, 113), (1, 200), (3, 2), (1, 1)])
def test_rows_sum_to_one_and_mass_is_kept(size: tuple[int, int]) -> None:
    edge = noise(*size, dtype=torch.float64) ** 3
    step = transition(edge, radius=5, beta=10)
    parts = step.crow_indices(), step.col_indices(), step.values()
    torch.sparse_csr_tensor(*parts, size=step.shape, check_invariants=True)
    assert step.layout == torch.sparse_csr
    assert step._nnz() <= 69 * edge.numel(), "sparse"
    one = torch.ones(edge.numel(), 1, dtype=edge.dtype)
    torch.testing.assert_close(step @ one, one)
    # A is symmetric, so the walk keeps the sum of each map weighted with A's row sums
    pairs = pairs_within(5)
    weight = path_affinity(edge, pairs) ** 10
    degree = 1 + weight.sum(dim=0)
    for one_weight, (dy, dx) in zip(weight, pairs.offsets, strict=True):
        degree += at_offsets(one_weight, [(-dy, -dx)], fill=0)[0]
    cam = noise(2, *size, seed=3, dtype=edge.dtype)
    walked = random_walk(cam, edge, steps=9)
    mass = (cam * (1 - edge) * degree).sum(dim=(1, 2))
    torch.testing.assert_close((walked * degree).sum(dim=(1, 2)), mass)


def test_beta_state_of_csr_is_not_the_users_business() -> None:
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            random_walk(noise(1, 4, 5), noise(4, 5), steps=2)
    finally:
        torch.set_warn_always(False)


def test_no_wrap_around_at_the_border() -> None:
    cam = torch.zeros(4, 12, 13)
    corners = [(0, 0), (0, 12), (11, 0), (11, 12)]
    for row, (y, x) in enumerate(corners):
        cam[row, y, x] = 1
    walked = random_walk(cam, torch.zeros(12, 13), steps=1)
    for row, corner in enumerate(corners):
        reached = [math.dist(corner, cell) < 5 for cell in itertools.product(range(12), range(13))]
        assert (walked[row].flatten() > 0).tolist() == reached


def wall(kind: str) -> Tensor:
    """(12, 14): a line of edges that parts the upper left corner from the lower right one."""
    edge = torch.zeros(12, 14)
    if kind == "column":
        edge[:, 6] = 1
    elif kind == "row":
        edge[5] = 1
    else:
        for y in range(12):
            edge[y, 11 - y] = 1
    return edge


@pytest.mark.parametrize("kind", ["column", "row", "diagonal"])
def test_a_wall_of_edges_blocks_the_walk(kind: str) -> None:
    edge = wall(kind)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(14), indexing="ij")
    near = {"column": x < 6, "row": y < 5, "diagonal": x + y < 11}[kind]
    cam = torch.stack([near & (edge == 0), torch.ones_like(near)]).float()
    walked = random_walk(cam, edge)
    assert not walked[0][~near].any(), "behind the wall and on it: exactly 0"
    torch.testing.assert_close(walked[0][near], torch.ones(int(near.sum())), atol=1e-4, rtol=0)
    assert not walked[1][edge == 1].any(), "a CAM on an edge is dropped before the walk"
    through = random_walk(cam, edge * 0.5, steps=1)
    assert (through[0][~near] > 0).any(), "half an edge lets some pass"


def test_beta_sharpens_and_steps_spread() -> None:
    cam = torch.zeros(1, 9, 20)
    cam[0, 4, 2] = 1
    edge = torch.zeros(9, 20)
    edge[:, 10] = 0.3
    walks = [random_walk(cam, edge, beta=beta, steps=8) for beta in (1, 5, 20)]
    far = [float(walked[..., 11:].sum()) for walked in walks]
    assert far[0] > far[1] > far[2] > 0
    width = [int((random_walk(cam, edge, steps=steps) > 0).sum()) for steps in (0, 1, 2)]
    assert width[0] == 1 < width[1] < width[2]


def test_autocast_does_not_reach_the_walk() -> None:
    cam, edge = noise(2, 6, 7), noise(6, 7)
    with torch.autocast("cpu", torch.bfloat16):
        inside = random_walk(cam, edge, steps=9)
    assert inside.equal(random_walk(cam, edge, steps=9))


def test_no_class() -> None:
    assert random_walk(torch.zeros(0, 4, 5), torch.zeros(4, 5)).shape == (0, 4, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_equals_cpu() -> None:
    cam, edge = noise(3, 40, 31), noise(40, 31, seed=4) ** 3
    walked = random_walk(cam.cuda(), edge.cuda())
    assert walked.is_cuda
    torch.testing.assert_close(walked.cpu(), random_walk(cam, edge), rtol=1e-3, atol=1e-4)
    assert random_walk(cam[:0].cuda(), edge).shape == (0, 40, 31)


def with_value(value: float, *shape: int) -> Tensor:
    found = torch.full(shape, 0.5)
    found[(-1,) * len(shape)] = value
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"radius": 1}, "radius 1 "),
        ({"radius": -3}, "radius -3 "),
        ({"beta": 0.0}, "beta 0.0"),
        ({"beta": float("nan")}, "beta nan"),
        ({"beta": float("inf")}, "beta inf"),
        ({"steps": -1}, "steps -1"),
        ({"cam": torch.zeros(4, 5)}, r"\(4, 5\)"),
        ({"cam": torch.zeros(2, 5, 4)}, r"\(2, 5, 4\) .*\(4, 5\)"),
        ({"edge": torch.zeros(1, 4, 5)}, r"\(1, 4, 5\)"),
        ({"cam": torch.zeros(1, 2, 4, 5), "edge": torch.zeros(2, 4, 5)}, r"\(1, 2, 4, 5\)"),
        ({"cam": torch.zeros(2, 0, 5), "edge": torch.zeros(0, 5)}, r"\(2, 0, 5\)"),
        ({"edge": with_value(1.5, 4, 5)}, "0.5 to 1.5"),
        ({"edge": with_value(-0.25, 4, 5)}, "-0.25 to 0.5"),
        ({"edge": with_value(float("nan"), 4, 5)}, "nan"),
        ({"cam": with_value(float("nan"), 2, 4, 5)}, "1 values .* nan"),
        ({"cam": with_value(float("-inf"), 2, 4, 5)}, "1 values .* -inf"),
    ],
)
def test_bad_input_is_named(change: dict, said: str) -> None:
    given = {"cam": torch.zeros(2, 4, 5), "edge": torch.zeros(4, 5), "steps": 2} | change
    with pytest.raises(ValueError, match=said):
        random_walk(**given)


@pytest.mark.parametrize("shape", [(5,), (1, 1, 4, 5)])
def test_affinity_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="edge of shape"):
        path_affinity(torch.zeros(shape), pairs_within(2))
