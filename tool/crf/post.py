"""Settings that say how a method's maps become masks: the defaults of stages 3 and 4.

A method states its own settings in `Recipe.post`. Stage 2 writes them into the provenance file of
the CAM folder. Stages 3 and 4, which import no torch, read them there.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from tool.crf.dense import PRESETS
from tool.provenance import POST, read_note

GATES = ("nroi", "none")
PRESET = "fbr80"  # FBR's, and that of foreign CAMs


@dataclasses.dataclass(frozen=True)
class Post:
    """Settings that say how maps become masks. The defaults are FBR's.

    Attributes:
        preset: Name of the CRF's preset; None for masks without a CRF.
        iterations: Number of mean-field steps; None for the preset's own.
        alpha: Exponent of the background score (1 - best class)^alpha in the CRF.
        threshold: In [0, 1]. A pixel is foreground if its best class is above it, in the evaluation
            and in masks without a CRF. CAMs with a background row need no threshold, because the
            best row wins.
        seeds: Thresholds (FG, BG) of confident seeds: foreground above FG, background below BG. For
            CAMs with a background row they are factors on that row.
        gate: "nroi" if stage 2 gates the maps by background regions, else "none".

    Raises:
        ValueError: A setting is out of range; names it.
    """

    preset: str | None = PRESET
    iterations: int | None = None
    alpha: float = 8.0
    threshold: float = 0.22
    seeds: tuple[float, float] = (0.30, 0.05)
    gate: str = "none"

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r}: there are {', '.join(PRESETS)}")
        if self.iterations is not None and not _is_count(self.iterations):
            raise ValueError(f"iterations {self.iterations!r} is not a count of at least 1")
        if not _is_number(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha {self.alpha!r} is not above 0")
        if not _is_number(self.threshold) or not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold!r} is not within [0, 1]")
        if self.gate not in GATES:
            raise ValueError(f"gate {self.gate!r}: there are {', '.join(GATES)}")
        pair = len(self.seeds) == 2 and all(map(_is_number, self.seeds))
        if not pair or not 0 <= self.seeds[1] <= self.seeds[0] <= 1:
            raise ValueError(f"seeds {self.seeds!r} are not FG and BG with 0 <= BG <= FG <= 1")

    def as_note(self) -> dict[str, Any]:
        """Return the settings as JSON stores them."""
        return dataclasses.asdict(self) | {"seeds": list(self.seeds)}


def alpha_at(threshold: float) -> float:
    """Return the alpha whose background score (1 - t)^alpha is t, for the threshold t.

    With this alpha the background wins exactly where the best class is below `threshold`. So the
    argmax that a CRF on labels starts from is the same as with a constant background score.

    Args:
        threshold: In [0, 1]; clipped to [1e-6, 1 - 1e-6], because no such alpha exists at the ends.
    """
    threshold = min(max(threshold, 1e-6), 1 - 1e-6)
    return math.log(threshold) / math.log(1 - threshold)


def post_of(folder: Path) -> Post:
    """Return the settings that stage 2 noted in a folder of CAMs.

    Args:
        folder: The folder of the CAMs. If it has no note or the note has no settings, the settings
            are FBR's.

    Raises:
        ValueError: The note is broken; names the file.
    """
    note = read_note(folder)
    found = None if note is None else note.get(POST)
    if found is None:
        return Post()
    try:
        if not isinstance(found, dict) or not isinstance(found.get("seeds", []), list):
            raise TypeError("no dictionary of settings")
        given = dict(found)
        if "seeds" in given:
            given["seeds"] = tuple(given["seeds"])
        return Post(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the settings {POST!r} noted in {folder} are broken: {error}") from error


def max_side_of(folder: Path) -> int | None:
    """Return the longer side in pixels to which stage 2 reduced larger images.

    Args:
        folder: The folder of the CAMs.

    Returns:
        At least 1; None if stage 2 reduced no images or left no note.

    Raises:
        ValueError: The note is broken; names the file.
    """
    note = read_note(folder)
    found = None if note is None else note.get("max_side")
    if found is not None and not _is_count(found):
        raise ValueError(f"the max_side {found!r} noted in {folder} is not a number of pixels")
    return found


def check_noted(folder: Path) -> None:
    """Check that a folder of CAMs that this project made notes how seeds are made from them.

    Args:
        folder: The folder of the CAMs. A folder of foreign CAMs always passes.

    Raises:
        ValueError: An older version made the folder and noted no thresholds.
    """
    note = read_note(folder)
    if note is not None and "checkpoint_sha256" in note and POST not in note:
        raise ValueError(
            f"{folder} was made by an older version, which noted no thresholds: give --seeds FG "
            "BG, or run infer_cam.py again, which adds them and makes no CAM anew"
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
