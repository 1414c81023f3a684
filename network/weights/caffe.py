"""The two forms of a ResNet's weights, torchvision's and Caffe's, and how a file shows its form.

Both have tensors of the same shapes. But Caffe's network has the stride of a stage in the first 1x1
convolution, and reads BGR images in 0..255. So weights of one form give wrong features in a network
of the other.

The names show the form if they are those that deeplab-pytorch writes for Caffe's network. The first
norm shows it, too. For each filter, the running variance divided by the sum of the squared weights
is the variance of the input, up to a factor. The median of this ratio over the filters is about
0.16 for inputs of about +-1, and some thousand times larger for inputs in 0..255.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from network.backbones import Backbone, backbone_names

LARGEST_SMALL = 30.0  # if the ratio is above this, the inputs are in 0..255
_CONV, _VARIANCE = "net.conv1.weight", "net.bn1.running_var"
_LAYERS = {"reduce": 1, "conv3x3": 2, "increase": 3}
_NAME = re.compile(
    r"(?P<prefix>(?:.*\.)?)layer(?:(?P<stage>[2-5])\.block(?P<block>[1-9]\d*)\."
    r"(?P<layer>reduce|conv3x3|increase|shortcut)|1\.conv1)\.(?P<part>conv|bn)\.(?P<tensor>\w+)"
)


def our_name(name: str) -> str:
    """Translate a tensor's name from deeplab-pytorch's for Caffe's ResNet to torchvision's.

    A prefix is kept. Any other name is returned unchanged.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    part, tensor = match["part"], match["tensor"]
    if match["stage"] is None:
        return f"{match['prefix']}{part}1.{tensor}"
    if match["layer"] == "shortcut":
        layer = f"downsample.{0 if part == 'conv' else 1}"
    else:
        layer = f"{part}{_LAYERS[match['layer']]}"
    stage, block = int(match["stage"]) - 1, int(match["block"]) - 1
    return f"{match['prefix']}layer{stage}.{block}.{layer}.{tensor}"


def is_caffes(name: str) -> bool:
    """Return whether a name is one that `our_name` translates."""
    return _NAME.fullmatch(name) is not None


def in_our_form(
    backbone: Backbone, tensors: dict[str, Tensor], *, named: bool, ours: bool
) -> tuple[dict[str, Tensor], str]:
    """Check that a file has the form of the backbone, and return its tensors for an RGB input.

    The first convolution of a file of Caffe's form reads BGR, so the order of its input channels is
    reversed. This is done under torchvision's names, too, because renaming tensors does not change
    their values.

    Args:
        backbone: Any backbone. If it is no ResNet, the file is not checked.
        tensors: The file's tensors under the names of the backbone's state dict.
        named: Whether the file has Caffe's names.
        ours: Whether the file is of this codebase, so that its first convolution reads RGB already.

    Returns:
        The tensors, and a note about the form; "" if it is torchvision's.

    Raises:
        ValueError: The form of the file is not that of the backbone; the file does not show its
            form and could be of either; or it has Caffe's names and inputs of about +-1.
    """
    if not {_CONV, _VARIANCE} <= set(backbone.state_dict()):
        return tensors, ""
    ratio = input_ratio(tensors)
    if ratio is None and not named and _other_form(backbone.name, not backbone.caffe) is None:
        return tensors, ""  # there is no other form of this backbone that the file could be of
    if ratio is None:
        raise ValueError(
            "the file does not show whether it is of torchvision's or Caffe's ResNet: "
            "conv1.weight or bn1.running_var is missing, or the same for every filter"
        )
    large = ratio > LARGEST_SMALL
    if named and not large:
        raise ValueError(
            f"the file has the names of Caffe's ResNet, but its first norm is of inputs of about "
            f"+-1 (ratio {ratio:.2g}), not 0..255 (above {LARGEST_SMALL:g}): it fits neither form"
        )
    if large != backbone.caffe:
        theirs, where = _FORMS[large]
        raise ValueError(
            f"the file is of {theirs} ResNet, {where} (first norm's ratio {ratio:.2g}): "
            + _remedy(backbone.name, large)
        )
    if not large:
        return tensors, ""
    if ours:
        return tensors, "of Caffe's form"
    note = "of Caffe's form: conv1 is turned from BGR to RGB"
    if not named:
        note = "of Caffe's form by its statistics: conv1 is taken as BGR and turned to RGB"
    return tensors | {_CONV: tensors[_CONV].flip(1)}, note


_FORMS = {
    False: ("torchvision's", "with the stride in the 3x3 and inputs of about +-1"),
    True: ("Caffe's", "with the stride in the first 1x1 and inputs in 0..255"),
}


def _remedy(name: str, caffe: bool) -> str:
    """Return the end of a message: which backbone to use for a file that `name` cannot take.

    Args:
        name: The backbone of the run.
        caffe: Whether the file is of Caffe's form, and not of torchvision's.
    """
    other = _other_form(name, caffe)
    return f"{name} has no such form" if other is None else f"use --backbone {other}"


def _other_form(name: str, caffe: bool) -> str | None:
    """Return the name of a backbone's Caffe form if `caffe`, else of its torchvision form.

    None if there is no such backbone.
    """
    other = f"{name.removeprefix('timm:')}_caffe" if caffe else name.removesuffix("_caffe")
    return other if other in backbone_names() else None


def input_ratio(tensors: dict[str, Tensor]) -> float | None:
    """Compute the median over filters of the first norm's variance over the filter's energy.

    The energy of a filter is the sum of its squared weights.

    Args:
        tensors: The file's tensors under the names of the backbone's state dict.

    Returns:
        The ratio. None if the tensors are missing or all variances are equal, which means that the
        norm is new or that its statistics were merged into its scale and shift.
    """
    weight, variance = tensors.get(_CONV), tensors.get(_VARIANCE)
    if weight is None or variance is None or bool((variance == variance[0]).all()):
        return None
    energy = weight.double().flatten(1).square().sum(dim=1)
    return float((variance.double() / energy.clamp(min=torch.finfo(torch.float64).tiny)).median())
