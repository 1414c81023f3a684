"""Restore a method from a file: a checkpoint, an exported checkpoint, or weights of other code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from network.backbones import build_backbone, stride_of
from network.methods import Method, build_method, find_method
from network.options import inference_options
from network.weights.configuration import built, check_config, outline_of
from network.weights.contents import described, plain_name, quoted
from network.weights.foreign_heads import CLASSIFIER, fitted_classifier, split_heads
from network.weights.unwrap import Found, find_backbone
from tool.files import first_few
from tool.formats.checkpoint import load_checkpoint, load_safetensors, load_tensors
from tool.formats.checkpoint_content import as_checkpoint
from tool.train.run_directory import COUNTER, load_state, state_names


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a file must hold, as the arguments of `restore` of the same names.

    None stands for anything.
    """

    method: str | None
    backbone: str | None
    class_names: tuple[str, ...] | None
    background: str | None

    def check(self, config: dict[str, Any], path: Path | str) -> None:
        """Check that a file's configuration fits, and that it has one name per class.

        Args:
            config: The configuration of the file, after `check_config`.
            path: The file, for messages.

        Raises:
            ValueError: It does not fit; names the file and what differs.
        """
        names = self.class_names
        if self.method not in (None, config["method"]):
            raise ValueError(f"{path} is of method {config['method']}, not {self.method}")
        if self.backbone not in (None, config["backbone"]):
            raise ValueError(f"{path} has the backbone {config['backbone']}, not {self.backbone}")
        if names is not None and config["num_classes"] != len(names):
            raise ValueError(
                f"{path} has {config['num_classes']} classes, the dataset has {len(names)}"
            )
        if names is not None and list(config["class_names"]) != list(names):
            raise ValueError(f"{path} was trained on classes of other names than the dataset's")
        if config["num_classes"] != len(config["class_names"]) or not config["class_names"]:
            raise ValueError(
                f"{path} has {config['num_classes']} classes and {len(config['class_names'])} names"
            )


def restore(
    path: Path | str,
    *,
    method: str | None = None,
    backbone: str | None = None,
    class_names: tuple[str, ...] | None = None,
    options: Sequence[str] = (),
    background: str | None = None,
    report: Callable[[str], object] = print,
) -> tuple[Method, dict[str, Any]]:
    """Build the method of a file and load its weights.

    Args:
        path: The `checkpoint.pth` of train_fbr.py, the `.safetensors` of network.export, or a
            foreign state dict in either container. A foreign state dict needs `method`, `backbone`
            and `class_names`.
        method: Name of the method that the file must hold; None for any.
        backbone: Name of the backbone that the file must hold; None for any.
        class_names: The K foreground classes that the file must have, in order; None for any.
        options: `NAME=VALUE`s that replace hyper-parameters of the file; see `inference_options`.
            The configuration that is returned contains them.
        background: Position of the background in the classifier of a foreign state dict, one of
            `network.weights.channel_order.PLACES`; None if it was not given.
        report: Called with a line that says what was assumed about a foreign state dict.

    Returns:
        The method with its weights, and its configuration.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is unreadable, or has another method, backbone, number of classes or
            class names; the method does not have an option; or the position of the background is
            ambiguous.
    """
    wanted = Wanted(method, backbone, class_names, background)
    checkpoint, may_lack = open_checkpoint(Path(path), wanted, report)
    config = checkpoint["config"]
    check_config(config, path)
    wanted.check(config, path)
    restored = built(config, checkpoint["model"], path)
    if options:
        changed = inference_options(type(restored).Config, options)
        config = config | {"method_config": config["method_config"] | changed}
        try:
            restored = build_method(config)
        except ValueError as error:
            raise ValueError(f"--set {' '.join(options)}: {error}") from error
    if may_lack is None:
        may_lack = state_names(restored) if checkpoint.get("may_lack") else ()
    load_state(restored, checkpoint["model"], path, may_lack=may_lack)
    return restored, config


def open_checkpoint(
    path: Path, wanted: Wanted, report: Callable[[str], object]
) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Read a file as a checkpoint of this codebase.

    Args:
        path: The file.
        wanted: What the file must hold. Method, backbone and class names are required for a foreign
            file.
        report: Called with a line that says what was assumed about a foreign state dict.

    Returns:
        The checkpoint, and the beginnings of the names of tensors that it may lack. The latter are
        None for a file of this codebase: if it is an export, it may lack state, but never weights.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is unreadable; it is foreign and does not fit what is wanted; or the
            position of the background is given for a file of this codebase.
    """
    content, ours = _read(path)
    if ours is not None:
        if wanted.background is not None:
            raise ValueError(
                f"--background {wanted.background}: {path} is ours, its background is first"
            )
        return ours, None
    method, names = wanted.method, wanted.class_names
    if method is None or wanted.backbone is None or names is None:
        raise ValueError(
            f"{path} is not a checkpoint of train_fbr.py: it lacks method and config; weights "
            "of other code need --method and --backbone (infer_cam.py); the file holds "
            f"{described(content)}"
        )
    config = {
        "method": method,
        "backbone": wanted.backbone,
        "output_stride": stride_of(wanted.backbone, find_method(method).recipe.output_stride),
        "num_classes": len(names),
        "class_names": list(names),
        "pretrained": True,
        "method_config": {},
    }
    model = _foreign_model(content, config, path, wanted.background, report)
    checkpoint = {"method": method, "config": config, "step": 0, "model": model}
    return checkpoint, find_method(method).training_only


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read a file.

    Returns:
        The content, and the content as a checkpoint; None for the latter if the file is foreign.

    Raises:
        FileNotFoundError: The file does not exist; says what makes it.
        ValueError: The file is unreadable.
    """
    if not path.is_file():
        return {}, load_checkpoint(path)  # raises, and says what makes the file
    if path.suffix == ".safetensors":
        tensors, about = load_safetensors(path)
        return tensors, as_checkpoint({**about, "model": tensors}, path) if about else None
    content = load_tensors(path)
    ours = {"method", "config"} <= set(content)
    return content, as_checkpoint(content, path) if ours else None


def _foreign_model(
    content: dict[str, Any],
    config: dict[str, Any],
    path: Path,
    background: str | None,
    report: Callable[[str], object],
) -> dict[str, Tensor]:
    """Return a foreign state dict under the names of this codebase, background first.

    Heads that the method does not have are left out, and named in the line for `report`.

    Args:
        content: The content of the file.
        config: The configuration of the method that it must fit.
        path: The file, for messages.
        background: Position of the background in the classifier; None if it was not given.
        report: Called with a line that says what was assumed.

    Raises:
        ValueError: The file does not fit the method, or the position of the background is
            ambiguous.
    """
    # Find the shapes that the method needs, and the backbone and heads that the file has.
    own, classes = outline_of(config, path).state_dict(), config["num_classes"]
    found, others, name = _backbone_and_heads(content, config, path)
    if CLASSIFIER not in own:
        raise ValueError(f"{path} has a classifier of one layer, method {config['method']} has not")
    weight, line = fitted_classifier(
        name,
        found.rest,
        own[CLASSIFIER],
        classes,
        background=background,
        what=path.name,
        keep_own=False,
    )
    # Keep only those of the other heads that the method has.
    heads = {n: t for n, t in others.items() if n in own} | {CLASSIFIER: weight}
    omitted = [n for n in others if n not in heads]
    # Report everything that was assumed or left out in one line.
    line = "; ".join([line, *found.notes])
    if omitted:
        shown = quoted(omitted, 5)
        line += f"; left out, as method {config['method']} has no such tensors: {shown}"
    report(line)
    weights = {f"backbone.{n}": t for n, t in found.backbone.items() if not n.endswith(COUNTER)}
    return heads | weights


def _backbone_and_heads(
    content: dict[str, Any], config: dict[str, Any], path: Path
) -> tuple[Found, dict[str, Tensor], str]:
    """Find the backbone in a foreign state dict, its other heads, and its one classifier.

    Args:
        content: The content of the file.
        config: The configuration of the method that it must fit.
        path: The file, for messages.

    Returns:
        The backbone, the heads without the classifier under the names of this codebase, and the
        name of the classifier's weight in the file.

    Raises:
        ValueError: A tensor of the backbone is missing, or there is not exactly one classifier.
    """
    with torch.device("meta"):
        outline = build_backbone(config["backbone"], output_stride=config["output_stride"])
    found = find_backbone(outline, content, path)
    classes, width = config["num_classes"], outline.taps["high"].channels
    heads, names = split_heads(found.rest, width=width, num_classes=classes)
    lacking = [*map(plain_name, found.missing), *([] if names else [CLASSIFIER])]
    if lacking:
        raise ValueError(
            f"{path} does not fit {config['backbone']} and {classes} classes: it lacks "
            f"{len(lacking)} tensors or has them in another shape, first {first_few(lacking)}; "
            f"the file holds {found.content}"
        )
    if len(names) > 1:
        raise ValueError(
            f"{path} has several classifiers: {quoted(names, 5)}: keep one of them in the file"
        )
    return found, heads, names[0]
