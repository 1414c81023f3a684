"""The flags of `train_fbr.py` that set a recipe and that describe a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tool.cli import Parser, non_negative_float, positive_float, positive_int
from tool.parallel.machine import spare_cores


def add_recipe_flags(parser: Parser, recipe: Any) -> None:
    """Add the flags whose defaults a method's recipe (`network.methods.Recipe`) sets."""
    add = parser.add_argument
    length = f"{recipe.epochs} epochs" if recipe.epochs else f"{recipe.steps} steps"
    add("--steps", type=positive_int, help=f"optimizer steps of the whole run; default: {length}")
    add("--epochs", type=positive_float, help="in place of --steps: how often each image is seen")
    add("--batch-size", type=positive_int, default=recipe.batch_size, help="a step's, of all ranks")
    add(
        "--accumulate",
        type=positive_int,
        default=recipe.accumulate,
        help="micro-batches a batch is split into",
    )
    add("--crop", type=positive_int, default=recipe.crop, help="side of the training crop, pixels")
    add(
        "--long-side",
        type=positive_int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="range of the resized image's longer side; by default it scales with --crop, from "
        f"{recipe.long_side} at {recipe.crop}",
    )
    add(
        "--scale",
        type=float,
        nargs="+",
        metavar="FACTOR",
        help="factors of the resize, in place of --long-side: two are a range, any other number of "
        f"them are choices; by default {recipe.scale}",
    )
    add(
        "--jitter",
        action=argparse.BooleanOptionalAction,
        default=recipe.jitter,
        help="change brightness, contrast, saturation and hue",
    )
    add(
        "--lr",
        type=float,
        default=recipe.lr,
        help=f"of pretrained weights; new ones take {recipe.rates[2]:g}x",
    )
    add("--momentum", type=float, default=recipe.momentum, help="of SGD")
    add("--warmup", type=int, default=recipe.warmup, help="steps of a linear rise of the rates")
    add(
        "--clip",
        type=non_negative_float,
        default=recipe.clip,
        help="largest norm of the gradient of a step; a longer one is scaled down to it; 0: none",
    )
    add("--weight-decay", type=float, default=recipe.weight_decay, help="on weights, not biases")


def add_run_flags(parser: Parser) -> None:
    """Add the flags that say where and how to run."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="run directory; resumed when it has a checkpoint")
    add("--seed", type=int, default=0, help="keys every random draw")
    add("--save-every", type=positive_int, default=200, help="steps between checkpoints")
    add("--log-every", type=positive_int, default=20, help="steps between rows of log.jsonl")
    add(
        "--picture-every",
        type=int,
        default=200,
        help="steps between pictures, and after the last one; 0: none",
    )
    add(
        "--num-workers",
        type=int,
        default=spare_cores(),
        help="loader processes a rank; 0: in the main one; default: the cores the network leaves",
    )
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to train")
    add("--amp", action="store_true", help="bf16 autocast")
    add(
        "--compile",
        nargs="?",
        const="inductor",
        choices=("inductor", "cudagraphs", "aot_eager"),
        help="torch.compile the backbone; inductor wants triton on a GPU, a C++ compiler on a CPU",
    )
