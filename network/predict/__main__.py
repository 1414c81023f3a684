"""Draw a picture of an image, its CAMs and its mask; write the mask."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from network.contrast.gate import GateSettings, NroiGate
from network.methods import Method
from network.predict.maps import class_maps, mask_of
from network.weights.restore import restore
from tool.cli import DEVICES, run_stage
from tool.crf.post import GATES
from tool.files import atomic_path, file_hash
from tool.flags import flag, parse_flags
from tool.formats.image import MAX_SIDE, decode, reduced
from tool.formats.mask import resized, save_mask
from tool.formats.regions import REGIONS, load_regions
from tool.infer.multiscale import network_input
from tool.infer.previous import PREVIOUS, PreviousFlags, takes_previous_outputs
from tool.infer.scales import Views, at_scale
from tool.parallel.dist import pick_device
from tool.ranges import POSITIVE, SIDE, UNIT
from tool.report.picture import heat, label_colours, strip
from tool.train.run_directory import CHECKPOINT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        image: A JPEG or PNG.
        checkpoint: The checkpoint.pth of train_fbr.py.
        classes: Names of the classes to show, and of those that the mask may have. By default the
            likeliest, if the method classifies. A segmentation network, which infers without image
            labels and has a background, needs no names: its mask has the best of all classes.
        top: Number of classes to show without --classes. By default 2, and all classes of the mask
            of a segmentation network.
        mask: Write the mask to this file too: a palette PNG of class indices, of the image's size.
        max_side: Reduce a larger image first, so that its longer side has this many pixels. By
            default 1024, or that of the gate's regions; the mask has the image's own size.
        bg_threshold: The mask is background where no class is above T. By default T is the method's
            threshold.
        out: PNG to write. By default out/NAME_cam.png.
        gate: With nroi, CAMs are gated by the regions in the run's nroi.npz, which infer_cam.py
            made, at the scales of that file. By default the method's, if that file exists.
        device: Where to compute. With auto it is a GPU if there is one.
    """

    image: Path = flag(positional=True, metavar="IMAGE")
    checkpoint: Path
    classes: list[str] | None = flag(None, metavar="NAME")
    top: int | None = flag(None, type=POSITIVE, metavar="N")
    mask: Path | None = flag(None, metavar="FILE")
    max_side: int | None = flag(None, type=SIDE, metavar="PIXELS")
    bg_threshold: float | None = flag(None, type=UNIT, metavar="T")
    out: Path | None = None
    gate: str | None = flag(None, choices=GATES)
    device: str = flag("auto", choices=DEVICES)
    previous: PreviousFlags = flag(title=PREVIOUS)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture of an image, and its mask."""
    command = parse_flags(
        Command, argv, example="photo.jpg --checkpoint out/toy-fbr-seed0/checkpoint.pth"
    )
    device = pick_device(command.device)
    method, config = restore(command.checkpoint)
    method.to(device).to(memory_format=torch.channels_last).eval()
    name, photograph = command.image.stem, decode(command.image, "RGB", upright=True)
    names, segments = config["class_names"], is_segmentation_network(method)
    previous = command.previous.outputs()
    previous.require(method.infer_inputs, [name])
    chosen = chosen_classes(command.classes or (), names)
    if not chosen and (method.conditioned or takes_previous_outputs(method.infer_inputs)):
        raise ValueError(
            f"method {config['method']!r} is given the image's classes: pass --classes, of "
            f"{', '.join(names)}"
        )
    gate, views = gate_of(command, method, config, device)
    image, whole = reduced(photograph, views.max_side), (photograph.height, photograph.width)
    if not chosen and not segments:
        chosen = likeliest(method, image, command.top or 2, device)
        if not chosen:
            raise ValueError(
                f"method {config['method']!r} does not classify: pass --classes, of "
                f"{', '.join(names)}"
            )
    label = label_of(chosen, len(names))
    maps = class_maps(method, name, image, label, previous, device, views, gate, whole=whole)
    gated, present = maps["gated CAM" if gate else "CAM"], torch.from_numpy(label)
    mask = mask_of(gated, None if segments else present, method, command.bg_threshold)
    shown = {names[index]: index for index in chosen or largest_classes(mask, command.top)}
    picture = draw(np.asarray(image), maps, shown, mask, has_background=method.has_background)
    out = command.out or Path("out") / f"{name}_cam.png"
    with atomic_path(out) as temporary:
        Image.fromarray(picture).save(temporary)
    print(out)
    if command.mask is not None:
        save_mask(command.mask, resized(mask, whole))
        print(command.mask)


def draw(
    image: np.ndarray,
    maps: dict[str, torch.Tensor],
    classes: dict[str, int],
    mask: np.ndarray,
    *,
    has_background: bool,
) -> np.ndarray:
    """Return the image, the maps of classes over it, and its mask, side by side.

    Args:
        image: (H, W, 3) uint8.
        maps: {name: (C, H, W)}, those of `class_maps`.
        classes: {name: 0-based index}.
        mask: (H, W) uint8.
        has_background: The maps, except the gate, have the background first.
    """
    panels = [("image", image)]
    for name, index in classes.items():
        for kind, values in maps.items():
            caption = name if len(maps) == 1 else f"{name}: {kind}"
            row = index + (has_background and kind != "gate")
            panels.append((caption, heat(image, values[row].numpy())))
    return strip([*panels, ("mask", label_colours(image, mask))])


def is_segmentation_network(method: Method) -> bool:
    """Return whether the maps of a method say themselves which classes an image has."""
    return method.has_background and set(method.infer_inputs) == {"image"}


def largest_classes(mask: np.ndarray, top: int | None) -> list[int]:
    """Return the 0-based classes of a mask, ascending: the `top` largest, or all."""
    pixels = np.bincount(mask.ravel(), minlength=256)[1:]
    largest = [int(index) for index in (-pixels).argsort(kind="stable") if pixels[index]]
    return sorted(largest[:top])


def chosen_classes(wanted: Sequence[str], names: list[str]) -> list[int]:
    """Return the 0-based indices of the wanted classes, ascending.

    Raises:
        ValueError: A name is unknown; lists the known ones.
    """
    for name in wanted:
        if name not in names:
            raise ValueError(f"unknown class {name!r}: there are {', '.join(names)}")
    return sorted({names.index(name) for name in wanted})


@torch.inference_mode()
def likeliest(method: Method, image: Image.Image, top: int, device: torch.device) -> list[int]:
    """Return the `top` likeliest 0-based classes, ascending.

    They are those of `classify`. A method that reads no label may have none: then those whose maps
    are highest on average. Of any other method without `classify` the list is empty.
    """
    views = method.inference_views()
    eight_bit = (views.of(image)[-1] if views.sides else at_scale(image, 1.0))[None].to(device)
    one = network_input(eight_bit, method.backbone.mean, method.backbone.std, mirror=False)
    found = method.classify({"image": one})
    if found is None:
        if "label" in method.infer_inputs:
            return []
        score = method.score({"image": one})  # (1, C, h, w)
        found = (score[:, 1:] if method.has_background else score).mean(dim=(2, 3))
    return sorted(found[0].topk(min(top, found.shape[1])).indices.tolist())


def label_of(chosen: Sequence[int], num_classes: int) -> np.ndarray:
    """Return a label (K,) float32 with 1 at the chosen 0-based classes."""
    label = np.zeros(num_classes, np.float32)
    label[list(chosen)] = 1
    return label


def gate_of(
    command: Command, method: Method, config: dict[str, Any], device: torch.device
) -> tuple[NroiGate | None, Views]:
    """Return the gate of a run, or None if it has none, and the sizes of the copies of the image.

    With a gate these are the sizes at which its regions were collected, else the method's.

    Raises:
        ValueError: `--gate nroi` is given and the run has no regions, or they are damaged or of
            another checkpoint; names the file.
    """
    path, views = command.checkpoint.parent / REGIONS, method.inference_views()
    views = dataclasses.replace(views, max_side=command.max_side or MAX_SIDE)
    if (command.gate or method.recipe.post.gate) != "nroi":
        return None, views
    if "label" not in method.infer_inputs:
        raise ValueError("--gate nroi: this method infers without classes, which the gate needs")
    if command.checkpoint.name != CHECKPOINT or not path.is_file():
        why = f"{path} does not exist: run infer_cam.py first"
        if command.checkpoint.name != CHECKPOINT:
            why = f"regions belong to the {CHECKPOINT} of a run, and this is another file"
        if command.gate is not None:
            raise ValueError(f"--gate nroi: {why}")
        print(f"without the gate: {why}", file=sys.stderr)
        return None, views
    made_from = {
        "checkpoint_sha256": file_hash(command.checkpoint),
        "class_names": list(config["class_names"]),
        "settings": dataclasses.asdict(GateSettings()),
    }
    regions, noted = load_regions(path, made_from)
    seed = config.get("seed", 0)
    gate = NroiGate(regions, device, seed=seed, has_background=method.has_background)
    views = Views.noted(noted)
    max_side = command.max_side or views.max_side or MAX_SIDE
    return gate, dataclasses.replace(views, max_side=max_side)


if __name__ == "__main__":
    run_stage(main)
