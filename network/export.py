"""Export a checkpoint to share it: its weights as .safetensors, or its network as .onnx.

A .safetensors file has no optimizer and no bank. Every stage and `--init` can read it, but training
cannot resume from it. An .onnx file runs without this project.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from network.to_onnx import export_onnx
from network.weights.configuration import check_config, outline_of
from network.weights.restore import restore
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.formats.checkpoint import load_checkpoint, save_exported
from tool.train.run_directory import check_complete, check_sizes, state_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        checkpoint: The checkpoint.pth of train_fbr.py.
        out: File to write. It ends in .safetensors, or in .onnx for the network's scores at one
            scale. By default it is model.safetensors beside the checkpoint.
    """

    checkpoint: Path = flag(positional=True, metavar="CHECKPOINT")
    out: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Write the exported file, and print its size and which tensors it leaves out.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
        ValueError: The name of the file has another suffix, or as `export` and `export_onnx`.
    """
    command = parse_flags(
        Command, argv, example="out/toy-fbr-seed0/checkpoint.pth --out fbr-toy.safetensors"
    )
    checkpoint = command.checkpoint
    out = command.out or checkpoint.with_name("model.safetensors")
    if out.suffix == ".onnx":
        method, config = restore(checkpoint)
        note = export_onnx(method, config, out)
        print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB, {note}")
        return
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors or .onnx")
    left_out = export(checkpoint, out)
    megabytes = (out.stat().st_size / 2**20, checkpoint.stat().st_size / 2**20)
    print(f"{out}: {megabytes[0]:.1f} of {megabytes[1]:.1f} MiB, without the optimizer", end="")
    print("".join(f", {name}" for name in left_out))


def export(checkpoint: Path, out: Path) -> list[str]:
    """Write the weights of a checkpoint as a .safetensors file.

    Tensors that are no weights, such as the bank, are left out. The method in the configuration
    tells which they are. Older checkpoints contain a list of them. It is not used, because it
    includes the scale and shift of frozen norms, which are weights.

    Args:
        checkpoint: The checkpoint.
        out: The file to write.

    Returns:
        The names of the tensors that are left out.

    Raises:
        FileNotFoundError: The checkpoint does not exist.
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
