"""Detection of weights that have seen pixel truth, such as those of a segmentation network.

A run that starts from them is not weakly supervised. So they are refused unless a flag permits
them, in which case the run records it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from network.methods import method_names, released_heads
from network.weights.contents import containers_of
from network.weights.unwrap import Found
from tool.infer.kinds import KINDS

FACT = "init_saw_masks"  # in the configuration of a run
_HEAD_PARTS = {"aspp", "decode_head"}  # parts of the names of DeepLab's and mmsegmentation's heads
_TORCHVISIONS = ("classifier.4.weight", "aux_classifier.4.weight")  # torchvision's heads
_ROWS = (21, 81, 91)  # VOC, COCO, and COCO by category number, each with the background


def refuse_pixel_truth(
    found: Found,
    content: dict[str, Any],
    config: dict[str, Any] | None,
    *,
    width: int,
    num_classes: int | None,
    allowed: bool,
    image_heads: tuple[str, ...] = (),
) -> str:
    """Refuse weights that have seen pixel truth, unless they are allowed.

    Args:
        found: The tensors of the file, from one of its containers.
        content: The whole content of the file.
        config: The configuration of a checkpoint of this codebase; None for a foreign file.
        width: D, the number of channels of the backbone's deepest map.
        num_classes: K; None if it is not known.
        allowed: Value of `--allow-pixel-truth`.
        image_heads: Beginnings of names of image-level heads, which do not show pixel truth.

    Returns:
        A note that tells what shows that the weights have seen pixel truth; "" if nothing does.

    Raises:
        ValueError: The weights have seen pixel truth and are not allowed.
    """
    sign = _sign_of_ours(config) if config else ""
    if not sign and (config is None or config.get("method") not in method_names()):
        sign = _sign_of_foreign(found, content, width, num_classes, image_heads)
    if sign and not allowed:
        raise ValueError(
            f"the file has seen pixel truth ({sign}), so a run from it is not weakly supervised: "
            "--allow-pixel-truth permits and notes it"
        )
    return f"it has seen pixel truth ({sign})" if sign else ""


def _sign_of_ours(config: dict[str, Any]) -> str:
    """Return what shows that a checkpoint of this codebase has seen pixel truth; "" if nothing.

    A network that was trained on pseudo masks has not seen it.
    """
    if config.get(KINDS["mask"].plural) == "truth":
        return "it was trained with --mask-dir truth"
    return "its own start had" if config.get(FACT) else ""


def _sign_of_foreign(
    found: Found,
    content: dict[str, Any],
    width: int,
    num_classes: int | None,
    image_heads: tuple[str, ...],
) -> str:
    """Return what shows that a foreign file has a segmentation head; "" if nothing does.

    A classifier of K + 1 maps that is one 1x1 convolution of the backbone's deepest map is no such
    head, because the CAM methods EPS, SEAM and PPC have it.

    Args:
        found: The tensors of the file, from one of its containers.
        content: The whole content of the file.
        width: D, the number of channels of the backbone's deepest map.
        num_classes: K; None if it is not known.
        image_heads: Beginnings of the names of image-level heads in the backbone's published files.
    """
    rows = {*_ROWS, *(() if num_classes is None else (num_classes + 1,))}
    # Heads with a name of their own, anywhere in the file.
    heads = [
        name
        for _, tensors in containers_of(content)
        for name, tensor in tensors.items()
        if _HEAD_PARTS & set(name.lower().split("."))
        or (name.endswith(_TORCHVISIONS) and tensor.ndim == 4)
    ]
    # Last convolutions with a number of maps as in segmentation, beside the backbone.
    heads += [
        name
        for name, tensor in found.rest.items()
        if _is_last(name, tensor, width, caffe=found.caffe_names)
        and len(tensor) in rows
        and not name.startswith(image_heads)
    ]
    return f"{heads[0]!r:.80} is of a segmentation head" if heads else ""


def _is_last(name: str, tensor: Tensor, width: int, *, caffe: bool) -> bool:
    """Return whether a tensor is the weight of a convolution that is no CAM method's classifier.

    That is one with another shape than a 1x1 convolution of the deepest map, or the `fc` of
    DeepLab-v1 in a file with Caffe's names. DeepLab's COCO weights have the latter, with 91 maps.

    Args:
        name: Name of the tensor. Those of the released heads do not count.
        tensor: The tensor.
        width: D, the number of channels of the backbone's deepest map.
        caffe: Whether the file has Caffe's names.
    """
    if tensor.ndim != 4 or not name.endswith(".weight") or name in released_heads():
        return False
    if caffe and name == "fc.weight":
        return True
    return tuple(tensor.shape[1:]) != (width, 1, 1)
