"""Mean-field inference of the dense CRF in torch, for several images of one size at once.

With the energies u, the weights w_k and the normalised kernels A_k, a step computes for each pixel
i and label l

    Q_i(l) = softmax_l(-u_i(l) + sum_k w_k sum_j A_k(i, j) Q_j(l)),

which is the Potts model. Kernels are normalised symmetrically, as in pydensecrf.

Source: P. Krähenbühl, V. Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials (NIPS 2011).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tool.crf.permutohedral import Lattice


class Kernel:
    """A Gaussian kernel between positions, normalised symmetrically by its row sums.

    It is A = D^(-1/2) K D^(-1/2), where K(i, j) = exp(-|p_i - p_j|^2 / 2) and D is the diagonal
    matrix of the row sums of K.

    Args:
        position: (N, d) float32, in units of the kernel's standard deviation.
        group: (N,) int64 >= 0, as for `Lattice`.

    Raises:
        ValueError: As `Lattice`.
    """

    def __init__(self, position: Tensor, group: Tensor | None = None) -> None:
        self.lattice = Lattice(position, group)
        # The row sums are K applied to ones.
        rows = self.lattice.filter(position.new_ones(len(position), 1))
        self.norm = (rows + 1e-20).rsqrt()  # (N, 1)

    def __call__(self, value: Tensor) -> Tensor:
        """Return the kernel applied to values (N, L) float32, (N, L)."""
        return self.norm * self.lattice.filter(value * self.norm)


@torch.inference_mode()
def mean_field(
    image: Tensor,
    unary: Tensor,
    *,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
    iterations: int,
) -> Tensor:
    """Compute the marginals of a batch by mean-field inference.

    Args:
        image: (B, H, W, 3) uint8.
        unary: (B, L, H, W) float32 energies on the same device; +inf excludes a label.
        gaussian: Standard deviation in pixels, and weight.
        bilateral: Standard deviations in pixels and in colour (0..255), and weight.
        iterations: Number of mean-field steps; with 0 the result is softmax(-unary).

    Returns:
        (B, L, H, W) float32, summing to 1 over L.

    Raises:
        ValueError: As `Lattice`.
    """
    images, labels, height, width = unary.shape
    sxy, gaussian_weight = gaussian
    space, colour, bilateral_weight = bilateral
    # The smoothness kernel depends on positions alone, so all images share one lattice.
    smoothness = _smoothness(height, width, sxy, image.device)

    # The appearance kernel depends on colours too, so one lattice holds each image as a group.
    pixel = _pixels(height, width, image.device).repeat(images, 1) / space  # (B H W, 2)
    position = torch.cat([pixel, image.reshape(-1, 3).float() / colour], dim=1)  # (B H W, 5)
    group = torch.arange(images, device=image.device).repeat_interleave(height * width)  # (B H W,)
    appearance = Kernel(position, group)

    # The inference starts from the energies alone.
    score = -unary.flatten(2).transpose(1, 2)  # (B, H W, L)
    prob = score.softmax(dim=2)  # (B, H W, L)
    for _ in range(iterations):
        # Filter with the smoothness kernel: the labels of all images are channels of one lattice.
        side_by_side = prob.transpose(0, 1).flatten(1)  # (H W, B L)
        near = smoothness(side_by_side).unflatten(1, (images, labels)).transpose(0, 1)
        # Filter with the appearance kernel.
        alike = appearance(prob.flatten(0, 1)).view_as(prob)  # (B, H W, L), as `near`
        # Add both messages to the scores, and normalise over the labels.
        prob = (score + gaussian_weight * near + bilateral_weight * alike).softmax(dim=2)
    return prob.transpose(1, 2).unflatten(2, (height, width))


def _pixels(height: int, width: int, device: torch.device) -> Tensor:
    """Return the positions x and y of all pixels, (H W, 2) float32."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)


@functools.lru_cache(maxsize=4)
def _smoothness(height: int, width: int, sxy: float, device: torch.device) -> Kernel:
    """Return the kernel of positions alone, cached because images of one size share it."""
    return Kernel(_pixels(height, width, device) / sxy)
