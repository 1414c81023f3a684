"""`python -m tool.download checkpoints|pseudo-labels|saliency|weights|u2net`: released files.

Resumed where it was interrupted, or from the start where the host cannot resume. Address and
SHA-256 of a file are recorded on first sight in `sha256.json` beside it and checked ever after; an
archive is unpacked into a folder of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tool.cli import Parser, run_stage
from tool.download.fetch import FOLDER, SOURCES, get


def main(argv: Sequence[str] | None = None) -> None:
    """Download one file, check it, and unpack it."""
    args = parse(argv)
    get(args.what, out=args.out, url=args.url)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(prog="tool.download", description=__doc__)
    parser.add_argument("what", choices=tuple(SOURCES), help="what to download")
    parser.add_argument("--out", type=Path, default=FOLDER, help="parent folder")
    parser.add_argument(
        "--url", help="another address of the same thing; None: the known one, or what is there"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    run_stage(main)
