"""Weights that have seen pixel truth: those of a segmentation network.

A weakly supervised run that starts from them is none. So they are refused unless a flag permits
them, and then the run notes it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from network.methods import method_names, released_heads
from network.weights.unwrap import Found, containers_of
from tool.infer.previous import KINDS

FACT = "init_saw_masks"  # in the configuration of a run
_HEAD_PARTS = {"aspp", "decode_head"}  # in the names of DeepLab's heads, and of mmsegmentation's
_TORCHVISIONS = ("classifier.4.weight", "aux_classifier.4.weight")  # of its segmentation networks
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
    """Check that weights have not seen pixel truth, or that they may have.

    Args:
        found: The tensors of the file, from one of its containers.
        content: All of the file.
        config: The configuration of a checkpoint of this codebase; None for a foreign file.
        width: D, the channels of the backbone's deepest map.
        num_classes: K; None if it is not known.
        allowed: Value of `--allow-pixel-truth`.
        image_heads: Beginnings of names of heads that are no sign.

    Returns:
        What shows that the weights have seen pixel truth; "" if nothing does.

    Raises:
        ValueError: They have, and that is not allowed.
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
    """Return what shows that a checkpoint of this codebase has seen pixel truth.

    A network that was trained on pseudo masks has not.
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
    """Return the name of a segmentation head in a foreign file.

    A classifier of K + 1 maps that is one 1x1 convolution of the backbone's deepest map is no sign:
    the CAM methods EPS, SEAM and PPC have it.
    """
    rows = {*_ROWS, *(() if num_classes is None else (num_classes + 1,))}
    heads = [
        name
        for _, tensors in containers_of(content)
        for name, tensor in tensors.items()
        if _HEAD_PARTS & set(name.lower().split("."))
        or (name.endswith(_TORCHVISIONS) and tensor.ndim == 4)
    ]
    heads += [
        name
        for name, tensor in found.rest.items()
        if _is_last(name, tensor, width, caffe=found.caffe_names)
        and len(tensor) in rows
        and not name.startswith(image_heads)
    ]
    return f"{heads[0]!r:.80} is of a segmentation head" if heads else ""


def _is_last(name: str, tensor: Tensor, width: int, *, caffe: bool) -> bool:
    """Return whether a tensor is a convolution that no CAM method has as its classifier.

    It is more than one 1x1 convolution of the deepest map, or the `fc` of DeepLab-v1 in a file with
    Caffe's names. DeepLab's COCO weights have that, with 91 maps.
    """
    if tensor.ndim != 4 or not name.endswith(".weight") or name in released_heads():
        return False
    if caffe and name == "fc.weight":
        return True
    return tuple(tensor.shape[1:]) != (width, 1, 1)
