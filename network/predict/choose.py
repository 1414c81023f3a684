"""What inference on one image chooses: the classes, the gate, and the sizes of its copies."""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from network.contrast.gate import NroiGate
from network.contrast.gate_steps import GateSettings
from network.methods import Method
from tool.files import file_hash, meant
from tool.formats.regions import REGIONS, load_regions
from tool.infer.multiscale import network_input
from tool.infer.scales import Views, at_scale
from tool.train.run_directory import CHECKPOINT

SURE = 0.5  # probability from which on `classify` is sure of a class


def is_segmentation_network(method: Method) -> bool:
    """Return whether a method predicts masks from the image alone, without image-level labels."""
    return method.has_background and set(method.infer_inputs) == {"image"}


def chosen_classes(wanted: Sequence[str], names: list[str]) -> list[int]:
    """Return the 0-based indices of the wanted classes, ascending.

    Raises:
        ValueError: A name is unknown; lists the known ones.
    """
    for name in wanted:
        if name not in names:
            several = " (separate names by spaces)" if "," in name else meant(name, names)
            raise ValueError(f"unknown class {name!r}{several}: there are {', '.join(names)}")
    return sorted({names.index(name) for name in wanted})


@torch.inference_mode()
def likelihood(method: Method, image: Image.Image, device: torch.device) -> np.ndarray | None:
    """Return how likely each class is to be in an image, (K,) float32.

    It is the probability of `classify`, if the method has it. Otherwise, for a method that reads no
    label, it is the mean of the class's score map, which is not a probability. For other methods
    return None.
    """
    views = method.inference_views()
    eight_bit = (views.of(image)[-1] if views.sides else at_scale(image, 1.0))[None].to(device)
    one = network_input(eight_bit, method.backbone.mean, method.backbone.std, mirror=False)
    found = method.classify({"image": one})
    if found is None:
        if "label" in method.infer_inputs:
            return None
        score = method.score({"image": one})  # (1, C, h, w)
        found = (score[:, 1:] if method.has_background else score).mean(dim=(2, 3))
    return found[0].float().cpu().numpy()


def likeliest(likelihood: np.ndarray, top: int) -> list[int]:
    """Return the `top` likeliest 0-based classes, ascending.

    Args:
        likelihood: (K,).
        top: The number of classes to return; all K if it is above K.
    """
    order = np.argsort(-likelihood, kind="stable")
    return sorted(order[:top].tolist())


def region_id(source: Path, gate: NroiGate | None) -> str:
    """Return the id that a photograph has in the regions of a gate, else its file name.

    The gate needs the id to leave out the regions of this very image. An id may include folders:
    that of R/cat/1.jpg is "cat/1" in a dataset with one folder per class.

    Args:
        source: The photograph.
        gate: The gate; None without one.
    """
    parts = unicodedata.normalize("NFC", source.with_suffix("").as_posix()).split("/")
    names = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((name for name in names if gate and name in gate.index), parts[-1])


def label_of(chosen: Sequence[int], num_classes: int) -> np.ndarray:
    """Return a label (K,) float32 with 1 at the chosen 0-based classes."""
    label = np.zeros(num_classes, np.float32)
    label[list(chosen)] = 1
    return label


def gate_of(
    checkpoint: Path,
    method: Method,
    config: dict[str, Any],
    device: torch.device,
    *,
    wanted: str | None,
    max_side: int | None,
) -> tuple[NroiGate | None, Views]:
    """Return the gate of a run, or None if it has none, and the sizes of the copies of the image.

    With a gate these are the sizes at which its regions were collected, else the method's.

    Args:
        checkpoint: The file of the run.
        method: Its method, on `device`.
        config: Its configuration.
        device: The device that computes.
        wanted: One of `GATES`; None for the method's, if the run has regions.
        max_side: The longer side in pixels to which larger images are reduced; None for that of
            the regions, else that of the backbone.

    Raises:
        ValueError: `--gate nroi` is given and the run has no regions, or they are damaged or of
            another checkpoint; names the file.
    """
    path, views = checkpoint.parent / REGIONS, method.inference_views()
    own_side = method.backbone.max_side
    views = dataclasses.replace(views, max_side=max_side or own_side)
    if (wanted or method.recipe.post.gate) != "nroi":
        return None, views
    if "label" not in method.infer_inputs:
        raise ValueError("--gate nroi: this method infers without classes, which the gate needs")
    if checkpoint.name != CHECKPOINT or not path.is_file():
        why = f"{path} does not exist: run infer_cam.py first"
        if checkpoint.name != CHECKPOINT:
            why = f"regions belong to the {CHECKPOINT} of a run, and this is another file"
        if wanted is not None:
            raise ValueError(f"--gate nroi: {why}")
        print(f"without the gate: {why}", file=sys.stderr)
        return None, views
    made_from = {
        "checkpoint_sha256": file_hash(checkpoint),
        "class_names": list(config["class_names"]),
        "settings": dataclasses.asdict(GateSettings()),
    }
    regions, noted = load_regions(path, made_from)
    seed = config.get("seed", 0)
    gate = NroiGate(regions, device, seed=seed, has_background=method.has_background)
    views = Views.noted(noted)
    return gate, dataclasses.replace(views, max_side=max_side or views.max_side or own_side)
