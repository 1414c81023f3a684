"""Norms with constant statistics and a trained scale and shift."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FixedNorm2d(nn.Module):
    """A BatchNorm that normalises by its running statistics in training, too.

    It has the tensors of the BatchNorm under the same names, except `num_batches_tracked`.

    Args:
        norm: The BatchNorm, whose tensors are used and not copied.

    Source: IRN (J. Ahn et al., CVPR 2019), whose networks keep pretrained norms in this form.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, feature: Tensor) -> Tensor:
        """Normalise a map (N, D, h, w)."""
        return F.batch_norm(
            feature, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fix_statistics(module: nn.Module) -> None:
    """Replace every `BatchNorm2d` inside `module`, in place, by one with constant statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FixedNorm2d(child))
        else:
            fix_statistics(child)
