"""Convolutions that compute faster or more safely on a CPU than the library's."""

from torch import Tensor


def is_on_cpu(feature: Tensor) -> bool:
    """Return whether the convolutions of this folder apply; elsewhere the library's are used."""
    return feature.device.type == "cpu"
