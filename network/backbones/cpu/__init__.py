"""Convolutions that a CPU computes faster or more safely than the library does."""

from torch import Tensor


def is_on_cpu(feature: Tensor) -> bool:
    """Return whether the convolutions of this folder apply; elsewhere the library's are used."""
    return feature.device.type == "cpu"
