"""Where the background is among the maps of a classifier that others trained."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

PLACES = ("first", "last", "none")
BACKGROUND_HELP = (
    "where the classifier of another code's file has its background map, where the file does not "
    "tell: first (SEAM, PPC), last (EPS) or none (PSA)"
)
_FBR_HEADS = {"proj_fg.weight", "proj_bg.weight", "bg_classifier.weight"}


def background_place(
    rows: int, num_classes: int, *, said: str | None, names: Collection[str], what: str
) -> tuple[str, str]:
    """Decide where a classifier of `rows` maps has the background.

    Args:
        num_classes: K.
        said: what `--background` says, one of `PLACES`; None: nothing.
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
    if said is not None and (said == "none") != (rows == num_classes):
        raise ValueError(
            f"--background {said}: {what} has {rows} maps for {num_classes} classes: it is "
            + ("none" if rows == num_classes else "first or last")
        )
    if rows == num_classes:
        return "none", f"{what}: its {rows} maps are the classes, without background"
    if said is None and not set(names) >= _FBR_HEADS:
        raise ValueError(
            f"{what} has {rows} maps for {num_classes} classes and does not say where the "
            "background is: pass --background first (as SEAM and PPC) or last (as EPS)"
        )
    why = "as --background says" if said else "as the file has FBR's heads"
    place = said or "last"
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
