"""The heads in a foreign checkpoint: their names here, and which of them is the classifier."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tool.train.run_directory import COUNTER

CLASSIFIER = "classifier.weight"
# The released code's heads; everything else in its files is the backbone, under the same names.
RELEASED = {
    "fc8.weight": CLASSIFIER,
    "f8_3.weight": "correlation.low.weight",
    "f8_4.weight": "correlation.mid.weight",
    "f9.weight": "correlation.embed.weight",
    "proj_fg.weight": "project_foreground.weight",
    "proj_bg.weight": "project_background.weight",
    "bg_classifier.weight": "segment_background.classifier.weight",
}
_UNUSED = "bg_bn."  # a BatchNorm frozen at its identity
_USUAL = ("fc8.weight", CLASSIFIER, "fc.weight", "head.weight", "head.fc.weight")
_OTHER_HEADS = set(RELEASED) | set(RELEASED.values()) - {CLASSIFIER}
_OTHER_HEADS -= set(_USUAL)


def our_names(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the heads of the released code, or of another, under our names."""
    return {
        RELEASED.get(name, name): tensor
        for name, tensor in heads.items()
        if not name.startswith(_UNUSED) and not name.endswith(COUNTER)
    }


def classifier_names(heads: dict[str, Tensor], *, width: int, num_classes: int) -> list[str]:
    """Find the classifier of a foreign checkpoint by its shape, usual names first.

    Args:
        heads: the tensors beside the backbone.
        width: D, the channels of the backbone's deepest map.
        num_classes: K.

    Returns:
        The name of the weight of K or K + 1 rows and D columns; several names if different ones
        fit equally well. Without such a weight one of another number of rows under a usual name.
        Empty if there is none.
    """
    rows = {n: len(t) for n, t in heads.items() if n not in _OTHER_HEADS and _is_linear(t, width)}
    fitting = [name for name in rows if rows[name] in (num_classes, num_classes + 1)]
    best = min(map(_rank, fitting), default=None)
    if best is not None:
        return _different([n for n in fitting if _rank(n) == best], heads)
    usual = sorted((name for name in rows if _rank(name) < 2), key=_rank)
    return usual[:1]


def as_maps(weight: Tensor) -> Tensor:
    """Return a classifier's weight, (rows, D) or (rows, D, 1, 1), as that of a 1x1 convolution."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def bias_of(name: str) -> str:
    """Return the name of the bias beside a weight."""
    return name.removesuffix("weight") + "bias"


def classifier_note(name: str, heads: Iterable[str]) -> str:
    """Say what about the choice of a classifier is not obvious; "" if nothing."""
    note = "" if _rank(name) == 0 else f"; the classifier is {name[:80]!r}"
    if bias_of(name) in heads:
        note += f"; {bias_of(name)[:80]!r} is left out: our classifier has no bias"
    return note


def _is_linear(tensor: Tensor, width: int) -> bool:
    shape = tuple(tensor.shape)
    return tensor.is_floating_point() and shape[1:] in ((width,), (width, 1, 1))


def _rank(name: str) -> int:
    """0: a usual name, 1: one behind a prefix, 2: another name."""
    if name in _USUAL:
        return 0
    return 1 if name.endswith(tuple(f".{usual}" for usual in _USUAL)) else 2


def _different(names: list[str], heads: dict[str, Tensor]) -> list[str]:
    """Drop names of tensors that are equal to an earlier one: some codebases save a layer twice."""
    kept: list[str] = []
    for name in names:
        if not any(torch.equal(as_maps(heads[name]), as_maps(heads[other])) for other in kept):
            kept.append(name)
    return kept
