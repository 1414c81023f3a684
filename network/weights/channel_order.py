"""Where a foreign classifier has its background map, and its conversion to background first."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from network.methods import released_background

PLACES = ("first", "last", "none")


def background_place(
    rows: int, num_classes: int, *, background: str | None, names: Collection[str], what: str
) -> tuple[str, str]:
    """Decide where a classifier of `rows` maps has the background.

    Args:
        rows: Number of maps of the classifier.
        num_classes: K.
        background: Value of `--background`, one of `PLACES`; None if it was not given.
        names: Names of the file's tensors. The heads of a released file may show the position.
        what: Name of the file, for messages.

    Returns:
        One of `PLACES`, and a line for the user that says what was assumed.

    Raises:
        ValueError: The classifier has neither K nor K + 1 maps, `background` does not fit their
            number, or the position is ambiguous.
    """
    if rows not in (num_classes, num_classes + 1):
        raise ValueError(
            f"{what} has a classifier of {rows} maps: {num_classes} classes take {num_classes}, "
            f"or {num_classes + 1} with the background"
        )
    if background is not None and (background == "none") != (rows == num_classes):
        raise ValueError(
            f"--background {background}: {what} has {rows} maps: with {rows} maps for "
            f"{num_classes} classes "
            + (
                "there is no background: use --background none"
                if rows == num_classes
                else "there is a background: use --background first or last"
            )
        )
    if rows == num_classes:
        return "none", f"{what}: its {rows} maps are the classes, without background"
    shown = released_background(names)
    if background is None and shown is None:
        raise ValueError(
            f"{what} has {rows} maps for {num_classes} classes and does not say where the "
            "background is: pass --background first (as SEAM and PPC) or last (as EPS)"
        )
    why = "as --background says" if background else "as the heads in the file show"
    place = background or shown
    return place, f"{what}: its {rows} maps are the classes and the background, {place}, {why}"


def our_classifier(weight: Tensor, own: Tensor, place: str) -> Tensor:
    """Return the weight of a foreign classifier in the layout of the method's own.

    Args:
        weight: (K or K+1, ...), the foreign weight.
        own: (K or K+1, ...), the method's weight. It supplies the row of the background if `weight`
            has none.
        place: Position of the background in `weight`, one of `PLACES`.

    Returns:
        (K or K+1, ...), with as many rows as `own`; the background, if there is one, is first.
    """
    if place == "last":
        weight = torch.roll(weight, 1, dims=0)
    classes = weight if place == "none" else weight[1:]
    if len(own) == len(classes):
        return classes
    return torch.cat([own[:1].to(weight.dtype) if place == "none" else weight[:1], classes])
