"""A method with the weights of a file: our checkpoint, an exported one, or the released code's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.backbones import build_backbone
from network.channel_order import background_place, our_classifier
from network.methods import Method, build_method
from network.options import inference_options
from network.unwrap import COUNTER, find_backbone, tensors_named
from tool.checkpoint import as_checkpoint, load_checkpoint, load_tensors
from tool.options import one_line
from tool.run_directory import check_sizes, load_state, state_names

CLASSIFIER = "classifier.weight"
OURS = "backbone.net."  # what the names of a backbone's tensors begin with in our files
# The released code's heads; everything else in its files is the backbone, under the same names.
_RELEASED = {
    "fc8.weight": CLASSIFIER,
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
    background: str | None = None,
    tell: Callable[[str], object] = print,
) -> tuple[Method, dict[str, Any]]:
    """The method that a file holds, and its configuration.

    Args:
        path: `checkpoint.pth` of train_fbr.py, the `.safetensors` of network.export, or a state
            dict of the released code or its kin, which needs the other three.
        method: what it must be; None: whatever it is. backbone: what the network of a released
            state dict is. class_names: the K foreground classes that it must have; None: any.
        options: `NAME=VALUE`s in place of what the file has; see `inference_options`. The
            configuration that is returned has them.
        background: where the classifier of a released state dict has it; see
            `network.channel_order`.
        tell: takes a line that says what was assumed about a released state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, of another method, number of classes or class names, an option that
            it does not have, or a background whose place is open.
    """
    checkpoint = open_checkpoint(
        path,
        method=method,
        backbone=backbone,
        class_names=class_names,
        background=background,
        tell=tell,
    )
    config = checkpoint["config"]
    check_config(config, path)
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
    if (
        may_lack and may_lack is not _TRAINING_ONLY
    ):  # an export: it lacks no weights, whatever it says
        may_lack = state_names(restored)
    load_state(restored, checkpoint["model"], path, may_lack=may_lack)
    return restored, config


def check_config(config: dict[str, Any], path: Path | str) -> None:
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
    """The method of a file's configuration, made only if it has the size of the file's tensors."""
    check_sizes(outline_of(config, path), model, path)
    with _naming(path):
        return build_method(config)


def outline_of(config: dict[str, Any], path: Path | str) -> Method:
    """Return the method of a file's configuration on the meta device: names and shapes alone.

    Pretrained or not changes no size, and to freeze a backbone takes numbers, which meta lacks.

    Raises:
        ValueError: there is no such method; names the file.
    """
    with _naming(path), torch.device("meta"):
        return build_method(config | {"pretrained": False})


@contextlib.contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Name the file in a `ValueError` about its content."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error).removeprefix(f'{path} ')}") from error


def open_checkpoint(
    path: Path | str,
    *,
    method: str | None,
    backbone: str | None,
    class_names: tuple[str, ...] | None,
    background: str | None = None,
    tell: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Return the content of a file as a checkpoint of ours; see `restore`."""
    path = Path(path)
    if not path.is_file() or path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
    else:
        content = load_tensors(path)
        ours = {"method", "config"} <= set(content)
        if not ours and any(t.ndim == 4 for t in tensors_named(content, "fc8.weight")):
            if method is None or backbone is None or class_names is None:
                raise ValueError(
                    f"{path} is a state dict of the released code: pass --method and --backbone"
                )
            config = {
                "method": method,
                "backbone": backbone,
                "output_stride": 8,
                "num_classes": len(class_names),
                "class_names": list(class_names),
                "pretrained": True,
                "method_config": {},
            }
            model = _released_model(content, config, path, background, tell)
            about = {"method": method, "config": config, "step": 0, "may_lack": _TRAINING_ONLY}
            return about | {"model": model}
        checkpoint = as_checkpoint(content, path)
    if background is not None:
        raise ValueError(f"--background {background}: {path} is ours, its background is first")
    return checkpoint


def _released_model(
    content: dict[str, Any],
    config: dict[str, Any],
    path: Path,
    background: str | None,
    tell: Callable[[str], object],
) -> dict[str, Tensor]:
    """Return a state dict of the released code under our names, in our order of the maps.

    Heads that only training uses are left out where the method has none.
    """
    own = outline_of(config, path).state_dict()
    with torch.device("meta"):
        outline = build_backbone(config["backbone"], output_stride=config["output_stride"])
    found = find_backbone(outline, content, path)
    heads = our_names(found.rest)
    lacking = [*found.missing, *({CLASSIFIER} - set(heads))]
    if lacking:
        raise ValueError(
            f"{path} does not fit {config['backbone']}: {len(lacking)} tensors lack or have "
            f"another shape, first {', '.join(lacking[:3])}; the file holds {found.content}"
        )
    if CLASSIFIER not in own:
        raise ValueError(f"{path} has a classifier of one layer, method {config['method']} has not")
    classes, weight = config["num_classes"], heads[CLASSIFIER]
    place, line = background_place(
        len(weight), classes, said=background, names=found.rest, what=path.name
    )
    if place == "none" and len(own[CLASSIFIER]) > classes:
        raise ValueError(
            f"{line}: method {config['method']} needs a map of the background (--method cam does "
            "not)"
        )
    heads[CLASSIFIER] = our_classifier(weight, own[CLASSIFIER], place)
    tell(line + (f"; {found.place}" if found.place else ""))
    weights = {f"backbone.{n}": t for n, t in found.backbone.items() if not n.endswith(COUNTER)}
    return weights | {
        n: t for n, t in heads.items() if n in own or not n.startswith(_TRAINING_ONLY)
    }


def our_names(heads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the heads of the released code, or of another, under our names."""
    return {
        _RELEASED.get(name, name): tensor
        for name, tensor in heads.items()
        if not name.startswith(_UNUSED) and not name.endswith(COUNTER)
    }
