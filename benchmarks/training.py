"""Make methods as `train_fbr.py` does from its flags, in networks with random weights."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from typing import TypeVar

import torch

import train_fbr
from data.catalog import Catalog
from data.readable import ImageList
from network.methods import Method, build_method
from network.start import load_start, start_file
from tool.cli import Parser
from tool.flags import add_flags, flags_as

Own = TypeVar("Own")
DEFAULTS = "--backbone timm:tf_efficientnet_lite0 --output-stride 16 --weights none "
DEFAULTS += "--crop 224 --batch-size 8 --lr 0 --num-workers 0"


def parse_with_training(
    kind: type[Own],
    module: str,
    argv: Sequence[str] | None,
    *,
    example: str,
    defaults: str = DEFAULTS,
) -> tuple[Own, train_fbr.Command]:
    """Parse the flags of a benchmark together with those of `train_fbr.py`.

    Args:
        kind: Dataclass of the benchmark's flags. They take precedence over flags of `train_fbr.py`
            with the same name.
        module: Name of the module that is the program.
        argv: The command line; None for that of the process.
        example: Flags of a typical call, shown in the help.
        defaults: Defaults of flags of `train_fbr.py`, which the command line may override.

    Returns:
        The flags of the benchmark and those of the training.

    Raises:
        SystemExit: The command line is wrong, or help was requested.
    """
    more = "All flags of train_fbr.py are flags here too, and its --help explains them. "
    parser = Parser(module, example=example, more=f"{more}Here their defaults are {defaults}.")
    add_flags(parser, kind)
    own, others = parser.parse_known_args(argv)
    if "--epochs" in others:  # in place of a number of steps
        defaults = re.sub(r"--steps \d+", "", defaults)
    stage = train_fbr.parse([*defaults.split(), *others, "--out", "unused"], module=module)
    return flags_as(kind, own), stage


def build(
    stage: train_fbr.Command, catalog: Catalog, images: ImageList, device: torch.device
) -> Method:
    """Return the method of a run, on the device.

    Layers that are frozen with pretrained weights are frozen with random weights too, so that a
    step costs the same.

    Args:
        stage: The flags of the training.
        catalog: The dataset.
        images: The image list.
        device: The device.
    """
    config = train_fbr.run_config(stage, stage.recipe, catalog, images)
    method = build_method(config | {"pretrained": True})
    load_start(method, stage.start, config, start_file(method, stage.start))
    return train_fbr.prepared(method, stage, device)


def headline(stage: train_fbr.Command, device: torch.device, *facts: str) -> str:
    """Return a line that names the method, the backbone, some facts, the precision and the machine.

    Args:
        stage: The flags of the training.
        device: The device.
        facts: Other facts of the measurement.
    """
    number = "bf16" if stage.run.amp else "float32"
    machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    return ", ".join([stage.method_name, stage.recipe.backbone, *facts, number, machine])
