"""`python -m network.export CHECKPOINT --out F.safetensors`: the weights alone, to share.

No optimizer, no bank: every stage and `--init` read it, training cannot resume from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from network.weights.restore import check_config, outline_of
from tool.cli import Parser, run_stage
from tool.formats.checkpoint import load_checkpoint, save_exported
from tool.train.run_directory import check_complete, check_sizes, state_names


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file and print what it leaves out."""
    parser = Parser(prog="network.export", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pth of train_fbr.py")
    parser.add_argument("--out", type=Path, help="None: model.safetensors beside the checkpoint")
    args = parser.parse_args(argv)
    out = args.out or args.checkpoint.with_name("model.safetensors")
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors")
    left_out = export(args.checkpoint, out)
    megabytes = (out.stat().st_size / 2**20, args.checkpoint.stat().st_size / 2**20)
    print(f"{out}: {megabytes[0]:.1f} of {megabytes[1]:.1f} MiB, without the optimizer", end="")
    print("".join(f", {name}" for name in left_out))


def export(checkpoint: Path, out: Path) -> list[str]:
    """Write the weights of a checkpoint to `out`.

    Which tensors are no weights follows from the method that the configuration describes. Older
    checkpoints contain a list of them. It is not read, because it includes the scale and shift of
    frozen norms.

    Returns:
        The names of the tensors that are left out.

    Raises:
        ValueError: The file is not a checkpoint of the method that it describes.
    """
    content = load_checkpoint(checkpoint)
    config = content["config"]
    check_config(config, checkpoint)
    outline = outline_of(config, checkpoint)
    check_sizes(outline, content["model"], checkpoint)
    check_complete(outline, content["model"], checkpoint)
    left_out = state_names(outline)
    save_exported(out, content, left_out)
    return left_out


if __name__ == "__main__":
    run_stage(main)
