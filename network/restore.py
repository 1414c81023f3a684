"""A method with the weights of a file: our checkpoint, an exported one, or the released code's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.methods import Method, build_method
from network.options import inference_options
from network.pretrained import NEEDED, read_named_weights, unwrapped
from tool.checkpoint import as_checkpoint, load_checkpoint, load_tensors
from tool.options import one_line
from tool.run_directory import check_sizes, load_state, weight_names

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
    options: Sequence[str] = (),
) -> tuple[Method, dict[str, Any]]:
    """The method that a file holds, and its configuration.

    Args:
        path: `checkpoint.pth` of train_fbr.py, the `.safetensors` of tool.export, or a state dict
            of the released code, which needs the other three.
        method: what it must be; None: whatever it is. backbone: what the network of a released
            state dict is. class_names: the K foreground classes that it must have; None: any.
        options: `NAME=VALUE`s in place of what the file has; see `inference_options`. The
            configuration that is returned has them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, of another method, number of classes or class names, or an option
            that it does not have.
    """
    checkpoint = open_checkpoint(path, method=method, backbone=backbone, class_names=class_names)
    config = checkpoint["config"]
    _check_config(config, path)
    _check_wanted(config, path, method=method, backbone=backbone, class_names=class_names)
    restored = _built(config, checkpoint["model"], path)
    if options:
        changed = inference_options(type(restored).Config, options)
        config = config | {"method_config": config["method_config"] | changed}
        try:
            restored = build_method(config)
        except ValueError as error:
            raise ValueError(f"--option {' '.join(options)}: {error}") from error
    may_lack = checkpoint.get("may_lack", ())
    if may_lack is not _TRAINING_ONLY:  # an exported file: it lacks no weights, whatever it says
        weights = weight_names(restored)
        may_lack = [n for n in restored.state_dict() if n in may_lack and n not in weights]
    load_state(restored, checkpoint["model"], path, may_lack=may_lack)
    return restored, config


def _check_config(config: dict[str, Any], path: Path | str) -> None:
    """The parts that describe a network are all there, each of its type."""
    lacking = [key for key, kind in _CONFIG.items() if type(config.get(key)) is not kind]
    if type(config.get("seed", 0)) is not int:
        lacking.append("seed")
    if lacking:
        raise ValueError(f"{path} has an incomplete configuration: no right {', '.join(lacking)}")
    if config["output_stride"] < 1:
        raise ValueError(f"{path} has an output stride of {config['output_stride']}")


def _check_wanted(
    config: dict[str, Any],
    path: Path | str,
    *,
    method: str | None,
    backbone: str | None,
    class_names: tuple[str, ...] | None,
) -> None:
    """The file is what `restore` was asked for, and its classes are as many as their names."""
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
    if config["num_classes"] != len(config["class_names"]) or not config["class_names"]:
        raise ValueError(
            f"{path} has {config['num_classes']} classes and {len(config['class_names'])} names"
        )


def _built(config: dict[str, Any], model: dict[str, Tensor], path: Path | str) -> Method:
    """The method of a file's configuration, made only if it is of the size of the file's tensors.

    Pretrained or not changes no size, and to freeze a backbone takes numbers, which meta lacks.
    """
    try:
        with torch.device("meta"):
            outline = build_method(config | {"pretrained": False})
        check_sizes(outline, model, path)
        return build_method(config)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error).removeprefix(f'{path} ')}") from error


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
    released = unwrapped(content, path)
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


def initialise(
    method: Method, path: Path | str, *, class_names: tuple[str, ...] | None = None
) -> str:
    """Start from the weights of a file of another method or number of classes (`--init`).

    What has the same name and shape is taken; state that is not weights (the bank) is not, nor what
    depends on the classes (the classifier) when the file is of others.

    Args:
        class_names: the K classes of `method`, in order; None: not known, taken for the same.

    Returns:
        One line that says what was taken.

    Raises:
        ValueError: the file is unreadable, or has under 90 % of the backbone's tensors.
    """
    tensors, theirs = read_named_weights(Path(path))
    others = theirs is not None and class_names is not None and theirs != list(class_names)
    if is_released(tensors):
        tensors = from_released(tensors)
    own = method.state_dict()
    names = weight_names(method)
    left = [n for n in class_weights(method) if n in tensors] if others else []
    fitting = [n for n in names if n in tensors and tensors[n].shape == own[n].shape]
    taken = {n: tensors[n] for n in fitting if n not in left}
    total, found = (Counter(n.split(".")[0] for n in group) for group in (names, taken))
    if found["backbone"] < NEEDED * total["backbone"]:
        raise ValueError(
            f"--init {path}: only {found['backbone']} of the {total['backbone']} tensors of "
            f"{method.backbone.name} are in it: is it of this backbone?"
        )
    method.load_state_dict(taken, strict=False)
    parts = ", ".join(f"{part} {found[part]} of {total[part]}" for part in total)
    line = f"started from {Path(path).name}: {parts} tensors"
    return line + (f"; left out, as its classes are others: {', '.join(left)}" if left else "")


def class_weights(method: Method) -> list[str]:
    """The names of the weights whose shape depends on the number of classes."""
    with torch.device("meta"):
        other = type(method)(
            method.backbone, method.num_classes + 1, method.config, pretrained=method.pretrained
        )
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    own = method.state_dict()
    return [name for name in weight_names(method) if own[name].shape != shapes[name]]
