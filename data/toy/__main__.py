"""`python -m data.toy --root R`: write the embedded dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.toy import CLASS_NAMES, write_toy
from tool.cli import Parser, positive_int, run_stage


def main(argv: Sequence[str] | None = None) -> None:
    """Write the dataset that the flags describe."""
    parser = Parser(prog="python -m data.toy", description="write the embedded dataset")
    parser.add_argument("--root", type=Path, default=Path("out/toy-data"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="draws other pictures of the same kind")
    parser.add_argument("--train", type=positive_int, default=240, help="number of train images")
    parser.add_argument("--val", type=positive_int, default=120, help="number of val images")
    args = parser.parse_args(argv)
    write_toy(args.root, seed=args.seed, train=args.train, val=args.val)
    print(f"{args.root}: {args.train} train and {args.val} val images, {len(CLASS_NAMES)} classes")


if __name__ == "__main__":
    run_stage(main)
