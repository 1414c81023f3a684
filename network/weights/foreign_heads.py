"""The heads in a foreign checkpoint: their names in this codebase, and the classifier."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from network.methods import released_heads, released_unused
from network.weights.channel_order import background_place, our_classifier
from tool.train.run_directory import COUNTER

CLASSIFIER = "classifier.weight"
_USUAL = ("fc8.weight", CLASSIFIER, "fc.weight", "head.weight", "head.fc.weight")


def our_names(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the heads of a foreign checkpoint under the names of this codebase.

    Names that the released code does not have are kept. Counters of norms are left out, and so are
    tensors of the released code that no method here has.

    Args:
        heads: {name: tensor} of the file, without the backbone.
    """
    released = released_heads()
    return {
        released.get(name, name): tensor
        for name, tensor in heads.items()
        if not name.startswith(released_unused()) and not name.endswith(COUNTER)
    }


def split_heads(
    tensors: dict[str, Tensor], *, width: int, num_classes: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Separate the classifier of a foreign checkpoint from its other heads.

    Args:
        tensors: {name: tensor} of the file, without the backbone.
        width: D, the number of channels of the backbone's deepest map.
        num_classes: K.

    Returns:
        The other heads under the names of this codebase, and the result of `classifier_names`.
    """
    names = classifier_names(tensors, width=width, num_classes=num_classes)
    apart = {*names, *map(bias_of, names)}
    heads = our_names({n: t for n, t in tensors.items() if n not in apart})
    heads.pop(CLASSIFIER, None)
    return heads, names


def fitted_classifier(
    name: str,
    tensors: dict[str, Tensor],
    own: Tensor,
    num_classes: int,
    *,
    background: str | None,
    what: str,
    keep_own: bool,
) -> tuple[Tensor, str]:
    """Fit a foreign classifier to that of a method.

    Args:
        name: Name of the weight of the foreign classifier.
        tensors: {name: tensor} of the file, without the backbone.
        own: (K or K+1, D, 1, 1), the weight of the method's classifier.
        num_classes: K.
        background: Value of `--background`; None if it was not given.
        what: Name of the file, for messages.
        keep_own: Whether the method may keep its own row of the background if the file has none.

    Returns:
        The weight in the shape of `own`, and a line for the user that says what was assumed.

    Raises:
        ValueError: As for `background_place`, or the file has no row of the background, the method
            needs one, and `keep_own` is False.
    """
    weight = as_maps(tensors[name])
    place, line = background_place(
        len(weight), num_classes, background=background, names=tensors, what=what
    )
    if place == "none" and len(own) > num_classes:
        if not keep_own:
            raise ValueError(
                f"{line}: this method needs a map of the background (--method cam does not)"
            )
        line += "; the background's map keeps its initial weights"
    return our_classifier(weight, own, place), line + classifier_note(name, tensors)


def classifier_names(heads: dict[str, Tensor], *, width: int, num_classes: int) -> list[str]:
    """Find the classifier of a foreign checkpoint by its shape, usual names first.

    Args:
        heads: {name: tensor} of the file, without the backbone.
        width: D, the number of channels of the backbone's deepest map.
        num_classes: K.

    Returns:
        The name of the weight with K or K + 1 rows and D columns, or several names if different
        weights fit equally well. If none has that many rows, the name of a weight with D columns
        and a usual name. Empty if there is none of these.
    """
    # Candidates: linear layers on the deepest map, without the other heads of the released code.
    others = set(released_heads()) | set(released_heads().values())
    others -= set(_USUAL)
    rows = {n: len(t) for n, t in heads.items() if n not in others and _is_linear(t, width)}
    fitting = [name for name in rows if rows[name] in (num_classes, num_classes + 1)]
    best = min(map(_rank, fitting), default=None)
    if best is not None:
        return _different([n for n in fitting if _rank(n) == best], heads)
    usual = sorted((name for name in rows if _rank(name) < 2), key=_rank)
    return usual[:1]


def as_maps(weight: Tensor) -> Tensor:
    """Return a classifier's weight, (rows, D) or (rows, D, 1, 1), as (rows, D, 1, 1)."""
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def bias_of(name: str) -> str:
    """Return the name of the bias that belongs to a weight."""
    return name.removesuffix("weight") + "bias"


def classifier_note(name: str, heads: Iterable[str]) -> str:
    """Return what a user should know about the choice of a classifier, for a message.

    Args:
        name: Name of its weight.
        heads: Names of the file's tensors, without the backbone.

    Returns:
        The end of a line, which begins with a semicolon. "" if the name is a usual one and the
        classifier has no bias.
    """
    note = "" if _rank(name) == 0 else f"; the classifier is {name[:80]!r}"
    if bias_of(name) in heads:
        note += f"; {bias_of(name)[:80]!r} is left out: our classifier has no bias"
    return note


def _is_linear(tensor: Tensor, width: int) -> bool:
    """Return whether a tensor is a linear or 1x1 convolution weight with `width` inputs."""
    shape = tuple(tensor.shape)
    return tensor.is_floating_point() and shape[1:] in ((width,), (width, 1, 1))


def _rank(name: str) -> int:
    """Return 0 for a usual name, 1 for a usual name with a prefix, and 2 for another name."""
    if name in _USUAL:
        return 0
    return 1 if name.endswith(tuple(f".{usual}" for usual in _USUAL)) else 2


def _different(names: list[str], heads: dict[str, Tensor]) -> list[str]:
    """Return the names, but only the first one of tensors with equal values.

    Some codebases save a layer twice.

    Args:
        names: Names of classifiers.
        heads: {name: tensor} of the file.
    """
    kept: list[str] = []
    for name in names:
        if not any(torch.equal(as_maps(heads[name]), as_maps(heads[other])) for other in kept):
            kept.append(name)
    return kept
