"""SFC's two walks within IRN's boundaries: against dense powers, with and without a background."""

from __future__ import annotations

import pytest
import torch
from method_cases import make_method

from network.walk.random_walk import transition

GRID = (5, 6)
LABEL = torch.tensor([[0.0, 1, 0, 1, 0]])


def cam_of(background: bool) -> torch.Tensor:
    cam = torch.rand(1, 5 + background, *GRID, generator=torch.Generator().manual_seed(2))
    present = torch.cat([torch.ones(1, int(background)), LABEL], dim=1)
    return cam * present[:, :, None, None]


def walked(method, cam: torch.Tensor, label: torch.Tensor = LABEL) -> torch.Tensor:
    """The walk with a boundary in the third column, on one value per cell."""
    score = torch.full((1, 1, *GRID), -3.0)
    score[..., 2] = 1.0
    batch = {"size": GRID, "sizes": [(4 * GRID[0], 4 * GRID[1])], "label": label, "cam": cam}
    return method.merge([score, score.clone()], batch)["cam"]


def dense(method, maps: torch.Tensor) -> torch.Tensor:
    """The walk of maps (C, h, w) by powers of the dense matrix."""
    edge = torch.full(GRID, -3.0)
    edge[:, 2] = 1.0
    edge = edge.sigmoid()
    config = method.config
    step = transition(edge, radius=config.walk_radius, beta=config.beta).to_dense()
    power = torch.linalg.matrix_power(step.double(), 2**config.exponent).float()
    return ((maps * (1 - edge)).flatten(1) @ power.T).view(maps.shape)


def test_both_walks_are_normalised_and_added() -> None:
    method, cam = make_method("sfc_irn", exponent=3), cam_of(True)
    found = walked(method, cam)
    first = cam[0, [2, 4]] ** 1.3
    second = cam[0, [0, 2, 4]] ** 1.69
    one, two = dense(method, first), dense(method, second)
    one, two = one / one.max(), two / two.max()
    assert torch.allclose(found[0], (0.25 + two[0]) / 2, atol=1e-4)
    assert torch.allclose(found[[2, 4]], (one + two[1:]) / 2, atol=1e-4)
    assert found[[1, 3, 5]].abs().max() == 0
    assert torch.allclose(walked(method, cam / 2), found, atol=1e-5), "at any scale of the CAM"


def test_cams_without_a_background_row_walk_too() -> None:
    method, cam = make_method("sfc_irn", exponent=3), cam_of(False)
    found = walked(method, cam)
    one, two = dense(method, cam[0, [1, 3]] ** 1.3), dense(method, cam[0, [1, 3]] ** 1.69)
    expected = (one / one.max() + two / two.max()) / 2
    assert torch.allclose(found[[1, 3]], expected, atol=1e-4)
    assert len(found) == 5


@pytest.mark.parametrize("background", [False, True])
def test_an_image_without_classes_is_background(background: bool) -> None:
    method = make_method("sfc_irn")
    found = walked(method, cam_of(background), 0 * LABEL)
    assert found[int(background) :].abs().max() == 0
    assert not background or (found[0] == 1).all()


def test_the_boundaries_are_those_of_irn() -> None:
    ours, theirs = make_method("sfc_irn"), make_method("irn")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.weights() == theirs.weights()
    with pytest.raises(ValueError, match="bg_walk"):
        make_method("sfc_irn", bg_walk=1.5)
