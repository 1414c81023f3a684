"""A method with the weights of a file: our checkpoint, an exported one, or the released code's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.methods import Method, build_method
from network.pretrained import NEEDED, read_weights, unwrapped
from tool.checkpoint import as_checkpoint, load_checkpoint, load_tensors
from tool.run_directory import load_state, weight_names

# The released code's heads; everything else in its files is the backbone, under the same names.
_RELEASED = {
    "fc8.weight": "classifier.weight",
    "f8_3.weight": "correlation.low.weight",
    "f8_4.weight": "correlation.mid.weight",
    "f9.weight": "correlation.embed.weight",
    "proj_fg.weight": "project_foreground.weight",
    "proj_bg.weight": "project_background.weight",
    "bg_classifier.weight": "segment_background.classifier.weight",
}
_CONFIG = {
    "method": str,
    "backbone": str,
    "output_stride": int,
    "num_classes": int,
    "class_names": list,
    "pretrained": bool,
    "method_config": dict,
}
_UNUSED = "bg_bn."  # a BatchNorm frozen at its identity
_TRAINING_ONLY = ("correlation.", "project_", "segment_background.", "bank.")


def restore(
    path: Path | str,
    *,
    method: str | None = None,
    backbone: str | None = None,
    class_names: tuple[str, ...] | None = None,
) -> tuple[Method, dict[str, Any]]:
    """The method that a file holds, and its configuration.

    Args:
        path: `checkpoint.pth` of train_fbr.py, the `.safetensors` of tool.export, or a state dict
            of the released code, which needs the other three.
        method: what it must be; None: whatever it is. backbone: what the network of a released
            state dict is. class_names: the K foreground classes that it must have; None: any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or of another method, number of classes or class names.
    """
    checkpoint = open_checkpoint(path, method=method, backbone=backbone, class_names=class_names)
    config = checkpoint["config"]
    lacking = [key for key, kind in _CONFIG.items() if not isinstance(config.get(key), kind)]
    if lacking:
        raise ValueError(f"{path} has an incomplete configuration: no {', '.join(lacking)}")
    if method not in (None, config["method"]):
        raise ValueError(f"{path} is of method {config['method']}, not {method}")
    if backbone not in (None, config["backbone"]):
        raise ValueError(f"{path} has the backbone {config['backbone']}, not {backbone}")
    if class_names is not None and config["num_classes"] != len(class_names):
        raise ValueError(
            f"{path} has {config['num_classes']} classes, the dataset has {len(class_names)}"
        )
    if class_names is not None and list(config["class_names"]) != list(class_names):
        raise ValueError(f"{path} was trained on classes of other names than the dataset's")
    restored = build_method(config)
    load_state(restored, checkpoint["model"], path, may_lack=checkpoint.get("may_lack", ()))
    return restored, config


def open_checkpoint(
    path: Path | str,
    *,
    method: str | None,
    backbone: str | None,
    class_names: tuple[str, ...] | None,
) -> dict[str, Any]:
    """The content of a file as a checkpoint of ours; see `restore`."""
    path = Path(path)
    if not path.is_file() or path.suffix == ".safetensors":
        return load_checkpoint(path)
    content = load_tensors(path)
    released = unwrapped(content)
    if not is_released(released):
        return as_checkpoint(content, path)
    if method is None or backbone is None or class_names is None:
        raise ValueError(
            f"{path} is a state dict of the released code: pass --method and --backbone"
        )
    model = from_released(released)
    return {
        "method": method,
        "config": {
            "method": method,
            "backbone": backbone,
            "output_stride": 8,
            "num_classes": len(model["classifier.weight"]) - 1,
            "class_names": list(class_names),
            "pretrained": True,
            "method_config": {},
        },
        "model": model,
        "step": 0,
        "may_lack": _TRAINING_ONLY,
    }


def is_released(tensors: dict[str, Tensor]) -> bool:
    """Whether these are tensors of the released code."""
    return "fc8.weight" in tensors and tensors["fc8.weight"].ndim == 4


def from_released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the released code under our names, its background moved to the front."""
    state = {}
    for name, tensor in tensors.items():
        if name == "fc8.weight":
            tensor = torch.roll(tensor, 1, dims=0)
        if not name.startswith(_UNUSED) and not name.endswith("num_batches_tracked"):
            state[_RELEASED.get(name, f"backbone.net.{name}")] = tensor
    return state


def initialise(method: Method, path: Path | str) -> str:
    """Start from the weights of a file of another method or number of classes (`--init`).

    What has the same name and shape is taken; state that is not weights (the bank) is not.

    Returns:
        One line that says what was taken.

    Raises:
        ValueError: the file is unreadable, or has under 90 % of the backbone's tensors.
    """
    tensors = read_weights(Path(path))
    if is_released(tensors):
        tensors = from_released(tensors)
    own = method.state_dict()
    names = weight_names(method)
    taken = {n: tensors[n] for n in names if n in tensors and tensors[n].shape == own[n].shape}
    total, found = (Counter(n.split(".")[0] for n in group) for group in (names, taken))
    if found["backbone"] < NEEDED * total["backbone"]:
        raise ValueError(
            f"--init {path}: only {found['backbone']} of the {total['backbone']} tensors of "
            f"{method.backbone.name} are in it: is it of this backbone?"
        )
    method.load_state_dict(taken, strict=False)
    parts = ", ".join(f"{part} {found[part]} of {total[part]}" for part in total)
    return f"started from {Path(path).name}: {parts} tensors"
