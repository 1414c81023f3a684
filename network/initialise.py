"""A run that starts from the weights of another method or number of classes (`--init`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from network.channel_order import background_place, our_classifier
from network.methods import Method
from network.pretrained import NEEDED, read_named_weights, too_few
from network.restore import CLASSIFIER, OURS, our_names
from network.unwrap import COUNTER, find_backbone
from tool.run_directory import weight_names


def initialise(
    method: Method,
    path: Path | str,
    *,
    class_names: tuple[str, ...] | None = None,
    background: str | None = None,
) -> str:
    """Start from the weights of a file of another method or number of classes (`--init`).

    What has the same name and shape is taken; state that is not weights (the bank) is not, nor what
    depends on the classes (the classifier) when the file is of others.

    Args:
        class_names: the K classes of `method`, in order; None: not known, taken for the same.
        background: where a foreign classifier has it; see `network.channel_order`.

    Returns:
        One line that says what was taken.

    Raises:
        ValueError: the file is unreadable, has under 90 % of the backbone's tensors, or leaves open
            where its background is.
    """
    path = Path(path)
    content, theirs = read_named_weights(path)
    found = find_backbone(method.backbone, content, path)
    if found.count < NEEDED * found.total:
        raise ValueError(f"--init {path}: {too_few(method.backbone, found)}")
    notes = [found.place] if found.place else []
    own, names = method.state_dict(), weight_names(method)
    tensors = {f"backbone.{name}": tensor for name, tensor in found.backbone.items()}
    left: list[str] = []
    if theirs is not None or found.prefix.endswith(OURS):
        if background is not None:
            raise ValueError(f"--background {background}: {path} is ours, its background is first")
        tensors |= found.rest
        known = theirs.get("class_names") if theirs else None
        if known is not None and class_names is not None and known != list(class_names):
            left = [n for n in class_weights(method) if n in tensors]
            if left:
                notes.append(f"left out, as its classes are others: {', '.join(left)}")
    else:
        heads = our_names(found.rest)
        foreign = heads.pop(CLASSIFIER, None)
        tensors |= heads
        if foreign is not None and foreign.ndim == 4:
            fitted, note = _fitted(method, foreign, found.rest, path.name, background)
            tensors |= {} if fitted is None else {CLASSIFIER: fitted}
            notes.append(note)
        elif background is not None:
            raise ValueError(f"--background {background}: {path} has no classifier of maps")
    taken = {
        n: tensors[n]
        for n in names
        if n in tensors and n not in left and tensors[n].shape == own[n].shape
    }
    method.load_state_dict(taken, strict=False)
    total, got = (
        Counter(n.split(".")[0] for n in group if not n.endswith(COUNTER))
        for group in (names, taken)
    )
    parts = ", ".join(f"{part} {got[part]} of {total[part]}" for part in total)
    return "; ".join([f"started from {path.name}: {parts} tensors", *notes])


def _fitted(
    method: Method, foreign: Tensor, names: Collection[str], what: str, background: str | None
) -> tuple[Tensor | None, str]:
    """Fit a foreign classifier (rows, D, 1, 1) to the method's own; None where it is left out.

    Returns:
        The weight, and a note that says what was assumed.
    """
    own, classes = method.state_dict().get(CLASSIFIER), method.num_classes
    if own is None or own.shape[1:] != foreign.shape[1:]:
        return None, "its classifier is left out: the method's is another"
    if len(foreign) not in (classes, classes + 1):
        left = f"its classifier of {len(foreign)} maps is left out"
        return None, f"{left}: this run has {classes} classes"
    place, note = background_place(len(foreign), classes, said=background, names=names, what=what)
    if place == "none" and len(own) > classes:
        note += "; the background's map keeps its initial weights"
    return our_classifier(foreign, own, place), note


def class_weights(method: Method) -> list[str]:
    """Return the names of the weights whose shape depends on the number of classes."""
    with torch.device("meta"):
        other = type(method)(
            method.backbone, method.num_classes + 1, method.config, pretrained=method.pretrained
        )
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    own = method.state_dict()
    return [name for name in weight_names(method) if own[name].shape != shapes[name]]
