"""`python -m tool.export CHECKPOINT --out F.safetensors`: the weights alone, to share.

No optimizer, no bank: every stage and `--init` read it, training cannot resume from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tool.checkpoint import load_checkpoint, save_exported
from tool.options import Parser, run_stage


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and say what is in it."""
    parser = Parser(prog="tool.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pth of train_fbr.py")
    parser.add_argument("--out", type=Path, help="None: model.safetensors beside the checkpoint")
    args = parser.parse_args(argv)
    out = args.out or args.checkpoint.with_name("model.safetensors")
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors")
    left_out = save_exported(out, load_checkpoint(args.checkpoint))
    megabytes = (out.stat().st_size / 2**20, args.checkpoint.stat().st_size / 2**20)
    print(f"{out}: {megabytes[0]:.1f} of {megabytes[1]:.1f} MiB, without the optimizer", end="")
    print("".join(f", {name}" for name in left_out))


if __name__ == "__main__":
    run_stage(main)
