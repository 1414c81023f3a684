"""Convolutions that compute faster or more safely on a CPU than the library's."""

import torch
from torch import Tensor


def is_on_cpu(feature: Tensor) -> bool:
    """Return whether the convolutions of this folder apply.

    On an accelerator, and in a network that is exported, the library's are used.
    """
    return feature.device.type == "cpu" and not torch.compiler.is_exporting()
