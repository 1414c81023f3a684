"""All methods, found by their file names in this folder.

To add a method, add `network/methods/NAME.py` with one subclass of `Method`, whose contract is
`network/method.py`. No other Python file changes: train_fbr.py makes a flag of every field of its
`Config`, infer_cam.py builds the method that the checkpoint names, and the tests of the contract
find it by its file.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Collection
from typing import Any

import torch

from network.backbones import NORMS, build_backbone
from network.backbones.cpu.pointwise import replace_thin_strides
from network.method import Method as Method
from network.options import check_option
from network.options import option as option
from network.recipe import Recipe as Recipe
from tool.progress import derive_seed
from tool.train.batch import Batch as Batch


def method_names() -> list[str]:
    """Return the names of all methods, sorted: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def trained_names() -> list[str]:
    """Return the names of the methods that train_fbr.py trains, sorted."""
    return [name for name in method_names() if find_method(name).trained]


def find_method(name: str) -> type[Method]:
    """Return the class of the method in `network/methods/NAME.py`.

    Raises:
        ValueError: There is no such file, in which case the message lists the known methods; or the
            file does not define exactly one `Method`.
    """
    if name not in method_names():
        raise ValueError(f"unknown method {name!r}: there are {', '.join(method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    classes = [
        item
        for item in vars(module).values()
        if isinstance(item, type)
        and issubclass(item, Method)
        and item.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise ValueError(f"{module.__file__} must define one Method, not {len(classes)}")
    return classes[0]


def build_method(config: dict[str, Any]) -> Method:
    """Build the method of a configuration, with random weights keyed by its `seed`.

    Args:
        config: `method`, `backbone`, `output_stride`, `num_classes`, `pretrained`, `method_config`
            (the hyper-parameters that differ from the defaults), `seed`, 0 if missing, and `norm`
            (of `NORMS`), frozen if missing.

    Returns:
        The method. If `pretrained`, its backbone is frozen, but its weights are still random.

    Raises:
        ValueError: The method, the backbone or a hyper-parameter is unknown; a value is out of
            range; or the network is too large for memory.
    """
    method = find_method(config["method"])
    known = {field.name: field for field in dataclasses.fields(method.Config)}
    unknown = sorted(set(config["method_config"]) - set(known))
    if unknown:
        raise ValueError(
            f"method {config['method']!r} has no hyper-parameter {', '.join(unknown)}: "
            f"it has {', '.join(sorted(known)) or 'none'}"
        )
    for name, value in config["method_config"].items():
        check_option(known[name], value)
    norm = config.get("norm", "frozen")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r:.80}: there are {', '.join(NORMS)}")
    # Layers draw their weights from torch's global generator. Seed it, and restore it afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.get("seed", 0), "weights"))
        backbone = build_backbone(config["backbone"], output_stride=config["output_stride"])
        if config["pretrained"]:
            backbone.freeze(norm)
        hyper = method.Config(**config["method_config"])
        try:
            built = method(backbone, config["num_classes"], hyper, pretrained=config["pretrained"])
        except RuntimeError as error:  # torch raises it if a size is too large for memory
            raise ValueError(
                f"method {config['method']!r} cannot be made with these sizes: {error}"
            ) from error
    replace_thin_strides(built)
    return built


@functools.cache
def released_heads() -> dict[str, str]:
    """Return {name in the released code's files: name here} of the heads of all methods."""
    heads: dict[str, str] = {}
    for name in method_names():
        heads |= find_method(name).released
    return heads


@functools.cache
def released_unused() -> tuple[str, ...]:
    """Return the beginnings of names in the released code's files that no method here has."""
    return tuple(sorted({n for name in method_names() for n in find_method(name).released_unused}))


def released_background(names: Collection[str]) -> str | None:
    """Find where a released file has its background, by the names of its tensors.

    Args:
        names: The names of the file's tensors.

    Returns:
        "first" or "last"; None if the names do not show it.
    """
    for name in method_names():
        known = find_method(name).released_background
        if known is not None and known[1] <= set(names):
            return known[0]
    return None
