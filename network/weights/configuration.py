"""The configuration in a file of weights: whether it is complete, and the method that it describes.

Whether the method is the wanted one is a question of `network.weights.restore`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.methods import Method, build_method
from tool.cli import one_line
from tool.train.run_directory import check_sizes

_CONFIG = {
    "method": str,
    "backbone": str,
    "output_stride": int,
    "num_classes": int,
    "class_names": list,
    "pretrained": bool,
    "method_config": dict,
}


def check_config(config: dict[str, Any], path: Path | str) -> None:
    """Check that a configuration describes a network: it has the entries of `_CONFIG`.

    Args:
        config: The configuration in a file.
        path: The file, for messages.

    Raises:
        ValueError: An entry is missing, or has another type; names the file and the entry.
    """
    lacking = [key for key, kind in _CONFIG.items() if type(config.get(key)) is not kind]
    if type(config.get("seed", 0)) is not int:
        lacking.append("seed")
    if lacking:
        raise ValueError(f"{path} has an incomplete configuration: no right {', '.join(lacking)}")
    if config["output_stride"] < 1:
        raise ValueError(f"{path} has an output stride of {config['output_stride']}")


def built(config: dict[str, Any], model: dict[str, Tensor], path: Path | str) -> Method:
    """Build the method of a file's configuration, after checking that the file's tensors fit.

    Args:
        config: The configuration.
        model: The file's state dict.
        path: The file, for messages.

    Returns:
        The method, with random weights.

    Raises:
        ValueError: The method cannot be built or a tensor has another shape; names the file.
    """
    check_sizes(outline_of(config, path), model, path)
    with _naming(path):
        return build_method(config)


def outline_of(config: dict[str, Any], path: Path | str) -> Method:
    """Build the method of a file's configuration on the meta device, for its names and shapes.

    `pretrained` is set to False. It changes no shape, and to freeze a backbone its values are
    needed, which the meta device does not have.

    Args:
        config: The configuration.
        path: The file, for messages.

    Raises:
        ValueError: The method cannot be built; names the file.
    """
    with _naming(path), torch.device("meta"):
        return build_method(config | {"pretrained": False})


@contextlib.contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Put the name of the file before the message of a `ValueError` of the block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error).removeprefix(f'{path} ')}") from error
