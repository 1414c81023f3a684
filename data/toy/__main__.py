"""Write the embedded dataset: drawn images with labels, saliency maps, masks and context."""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data.toy import CLASS_NAMES, write_toy
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import POSITIVE, SEED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of this command.

    Attributes:
        root: Folder to write.
        seed: Random seed. Another one draws other pictures of the same kind.
        train: Number of images in the list train.
        val: Number of images in the list val.
    """

    root: Path = Path("out/toy-data")
    seed: int = flag(0, type=SEED)
    train: int = flag(240, type=POSITIVE, metavar="N")
    val: int = flag(120, type=POSITIVE, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset that the flags describe."""
    command = parse_flags(Command, argv, example="--root out/other-toy --seed 1")
    root, train, val = command.root, command.train, command.val
    write_toy(root, seed=command.seed, train=train, val=val)
    print(f"{root}: {train} train and {val} val images, {len(CLASS_NAMES)} classes")


if __name__ == "__main__":
    run_stage(main)
