"""Find the background channel of a foreign classifier."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from network.weights.foreign_heads import RELEASED

PLACES = ("first", "last", "none")
BACKGROUND_HELP = (
    "position of the background map in a foreign classifier, if the file does not show it: first "
    "(SEAM, PPC), last (EPS) or none (PSA)"
)
_OF_FBR = ("project_", "segment_background.")
_FBR_HEADS = {name for name, ours in RELEASED.items() if ours.startswith(_OF_FBR)}


def background_place(
    rows: int, num_classes: int, *, background: str | None, names: Collection[str], what: str
) -> tuple[str, str]:
    """Decide where a classifier of `rows` maps has the background.

    Args:
        num_classes: K.
        background: value of `--background`, one of `PLACES`, or None.
        names: of the file's tensors: FBR's own heads tell that it is last.
        what: the file, for messages.

    Returns:
        One of `PLACES`, and a line that says what was assumed.

    Raises:
        ValueError: neither K nor K + 1 maps, not what `--background` says, or ambiguous.
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
    if background is None and not set(names) >= _FBR_HEADS:
        raise ValueError(
            f"{what} has {rows} maps for {num_classes} classes and does not say where the "
            "background is: pass --background first (as SEAM and PPC) or last (as EPS)"
        )
    why = "as --background says" if background else "as the file has FBR's heads"
    place = background or "last"
    return place, f"{what}: its {rows} maps are the classes and the background, {place}, {why}"


def our_classifier(weight: Tensor, own: Tensor, place: str) -> Tensor:
    """Return the maps of a foreign classifier that ours takes, the background first.

    Args:
        weight: (K or K+1, ...), its background where `place` says.
        own: (K or K+1, ...), ours; gives the background that `weight` lacks.
    """
    if place == "last":
        weight = torch.roll(weight, 1, dims=0)
    classes = weight if place == "none" else weight[1:]
    if len(own) == len(classes):
        return classes
    return torch.cat([own[:1].to(weight.dtype) if place == "none" else weight[:1], classes])
