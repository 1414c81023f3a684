"""The kinds of files that a previous stage makes and a method may need."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

from tool.formats.boundary import RULES
from tool.provenance import read_note


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file of which each image has one, in the folder that `--KEY-dir` names.

    Attributes:
        key: The batch key.
        suffix: End of the file names, with its dot.
        plural: The plural of the key. A run's configuration notes the origin of the files by this
            name.
        what: Name of the files in messages, in the plural.
        made_by: The command that makes the files.
    """

    key: str
    suffix: str
    plural: str
    what: str
    made_by: str

    @property
    def flag(self) -> str:
        """Return the flag that names the folder."""
        return f"--{self.key}-dir"


KINDS = {
    kind.key: kind
    for kind in (
        Kind("seed", ".png", "seeds", "seeds", "crf_postprocess.py --cam-dir ... --seeds"),
        Kind("cam", ".npy", "cams", "CAMs", "infer_cam.py"),
        Kind("mask", ".png", "masks", "masks", "crf_postprocess.py"),
        Kind("boundary", ".png", "boundaries", "boundary labels", "python -m data.boundary"),
    )
}
PREVIOUS = "files of previous stages, which some methods read"  # title of the group of flags
INFERABLE = ("seed", "cam")  # keys of the kinds that a method may read in inference
CLASSES = ("seed", "mask")  # keys of the kinds that are PNGs of class indices


def check_kind(folder: Path, kind: Kind) -> None:
    """Check that the note in a folder of PNGs, if it has one, is of files of this kind.

    Boundary labels and class indices have common values, so that one could pass for the other.

    Args:
        folder: The folder of the files; it need not exist.
        kind: The kind that is wanted.

    Raises:
        ValueError: The folder has boundary labels in place of class indices, or the other way
            round; or its note is broken.
    """
    note = read_note(folder) if kind.suffix == ".png" else None
    if note is not None and (RULES in note) != (kind.key == "boundary"):
        found = "boundary labels" if RULES in note else "masks or seeds"
        raise ValueError(
            f"{folder} has {found}, not {kind.what}: give the folder that {kind.made_by} wrote"
        )


def takes_previous_outputs(inputs: Collection[str]) -> bool:
    """Return whether a method with these inputs reads files of a previous stage."""
    return not set(KINDS).isdisjoint(inputs)
