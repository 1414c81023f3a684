"""Initialisation of a run by the weights of another method or number of classes (`--init`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from network.methods import Method
from network.weights.contents import quoted
from network.weights.foreign_heads import CLASSIFIER, as_maps, fitted_classifier, split_heads
from network.weights.pretrained import open_weights
from network.weights.unwrap import OURS
from tool.train.run_directory import COUNTER, weight_names


def initialise(
    method: Method,
    path: Path | str,
    *,
    class_names: tuple[str, ...] | None = None,
    background: str | None = None,
    allow_pixel_truth: bool = False,
) -> str:
    """Load the weights of a file of another method or number of classes (`--init`).

    Weights with the same name and shape are loaded. State that is not weights, such as the bank, is
    left out. If the file has other classes, weights that depend on the classes, such as the
    classifier, are left out, too.

    Args:
        method: Receives the weights; changed in place.
        path: The file.
        class_names: The K classes of `method`, in order. None if they are not known, in which case
            the file is assumed to have the same classes.
        background: Position of the background in a foreign classifier, one of
            `network.weights.channel_order.PLACES`; None if it was not given.
        allow_pixel_truth: Whether to accept weights that have seen pixel truth.

    Returns:
        One line for the user that says what was loaded.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is unreadable, has less than 90 % of the backbone's tensors, is of
            another backbone, has seen pixel truth and that is not allowed, does not show the
            position of its background, or does not fit `background`.
    """
    # Read the file and find the backbone in it.
    path = Path(path)
    weights = open_weights(
        method.backbone,
        path,
        f"--init {path}",
        num_classes=method.num_classes,
        allow_pixel_truth=allow_pixel_truth,
    )
    found, theirs = weights.found, weights.config
    # Choose the heads, of a file of this codebase or of a foreign one.
    if theirs is not None or found.prefix.endswith(OURS):
        if background is not None:
            raise ValueError(f"--background {background}: {path} is ours, its background is first")
        known = theirs.get("class_names") if theirs else None
        heads, notes = _our_heads(method, found.rest, known, class_names)
    else:
        heads, notes = _foreign_heads(method, found.rest, path, background)
    # Load what fits, and count the tensors of each part of the method.
    tensors = {f"backbone.{name}": tensor for name, tensor in found.backbone.items()} | heads
    own, names = method.state_dict(), weight_names(method)
    taken = {n: tensors[n] for n in names if n in tensors and tensors[n].shape == own[n].shape}
    method.load_state_dict(taken, strict=False)
    total, got = (
        Counter(n.split(".")[0] for n in group if not n.endswith(COUNTER))
        for group in (names, taken)
    )
    parts = ", ".join(f"{part} {got[part]} of {total[part]}" for part in total)
    return "; ".join([f"started from {path.name}: {parts} tensors", *weights.notes, *notes])


def _our_heads(
    method: Method,
    heads: dict[str, Tensor],
    known: list[str] | None,
    class_names: tuple[str, ...] | None,
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the heads to load from a file of this codebase.

    If the file has other classes, weights that depend on the classes are left out.

    Args:
        method: The method that receives them.
        heads: {name: tensor} of the file, without the backbone.
        known: The classes of the file; None if it does not name them.
        class_names: The classes of the method; None if they are not known.

    Returns:
        The heads, and notes about what was left out.
    """
    if known is None or class_names is None or known == list(class_names):
        return heads, []
    omitted = [name for name in class_weights(method) if name in heads]
    notes = [f"left out, as its classes are others: {', '.join(omitted)}"] if omitted else []
    return {name: tensor for name, tensor in heads.items() if name not in omitted}, notes


def _foreign_heads(
    method: Method, found: dict[str, Tensor], path: Path, background: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Choose the heads to load from a foreign file.

    Args:
        method: The method that receives them.
        found: {name: tensor} of the file, without the backbone.
        path: The file, for messages.
        background: Position of the background in the classifier; None if it was not given.

    Returns:
        The heads under the names of this codebase, and notes about the classifier.

    Raises:
        ValueError: `background` is given and the file does not have exactly one classifier; or the
            position of the background is ambiguous, or `background` does not fit.
    """
    width = method.backbone.taps["high"].channels
    heads, names = split_heads(found, width=width, num_classes=method.num_classes)
    if len(names) == 1:
        weight, note = _fitted(method, names[0], found, path.name, background)
        return heads | ({} if weight is None else {CLASSIFIER: weight}), [note]
    choice = quoted(names, 5)
    if background is not None:
        reason = f"several classifiers: {choice}" if names else f"no classifier of {width} channels"
        raise ValueError(f"--background {background}: {path} has {reason}")
    return heads, [f"its classifier is left out, as it has several: {choice}"] if names else []


def _fitted(
    method: Method, name: str, heads: dict[str, Tensor], what: str, background: str | None
) -> tuple[Tensor | None, str]:
    """Fit a foreign classifier to that of the method.

    Args:
        method: The method that receives the classifier.
        name: Name of the classifier among `heads`.
        heads: {name: tensor} of the file, without the backbone.
        what: Name of the file, for messages.
        background: Position of the background in the classifier; None if it was not given.

    Returns:
        The weight, and a note for the user that says what was assumed. The weight is None if the
        classifier does not fit and is left out.

    Raises:
        ValueError: The position of the background is ambiguous, or `background` does not fit.
    """
    foreign = as_maps(heads[name])
    own, classes = method.state_dict().get(CLASSIFIER), method.num_classes
    if own is None or own.shape[1:] != foreign.shape[1:]:
        return None, "its classifier is left out: the method's is another"
    if len(foreign) not in (classes, classes + 1):
        note = f"its classifier of {len(foreign)} maps is left out"
        return None, f"{note}: this run has {classes} classes"
    return fitted_classifier(
        name, heads, own, classes, background=background, what=what, keep_own=True
    )


def class_weights(method: Method) -> list[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    # Build the method once more with one class more, without memory, and compare the shapes.
    with torch.device("meta"):
        other = type(method)(
            method.backbone, method.num_classes + 1, method.config, pretrained=method.pretrained
        )
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    own = method.state_dict()
    return [name for name in weight_names(method) if own[name].shape != shapes[name]]
