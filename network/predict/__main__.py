"""Draw a picture of an image, its CAMs and its mask; write the mask."""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network.predict.choose import (
    chosen_classes,
    gate_of,
    is_segmentation_network,
    label_of,
    likeliest,
    likelihood,
)
from network.predict.maps import class_maps, mask_of
from network.weights.restore import restore
from tool.cli import DEVICES, run_stage
from tool.crf.post import GATES
from tool.files import atomic_path
from tool.flags import flag, parse_flags
from tool.formats.image import MAX_PIXELS, allow_pixels, decode, reduced
from tool.formats.mask import resized, save_mask
from tool.infer.previous import PREVIOUS, PreviousFlags, takes_previous_outputs
from tool.parallel.dist import pick_device
from tool.ranges import POSITIVE, SIDE, UNIT
from tool.report.picture import heat, label_colours, strip


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
        max_pixels: Refuse an image of more pixels.
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
    max_pixels: int = flag(MAX_PIXELS, type=POSITIVE, metavar="PIXELS")
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
    allow_pixels(command.max_pixels)
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
    gate, views = gate_of(
        command.checkpoint,
        method,
        config,
        device,
        wanted=command.gate,
        max_side=command.max_side,
    )
    image, whole = reduced(photograph, views.max_side), (photograph.height, photograph.width)
    if not chosen and not segments:
        found = likelihood(method, image, device)
        if found is None:
            raise ValueError(
                f"method {config['method']!r} does not classify: pass --classes, of "
                f"{', '.join(names)}"
            )
        chosen = likeliest(found, command.top or 2)
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


def largest_classes(mask: np.ndarray, top: int | None) -> list[int]:
    """Return the 0-based classes of a mask, ascending: the `top` largest, or all."""
    pixels = np.bincount(mask.ravel(), minlength=256)[1:]
    largest = [int(index) for index in (-pixels).argsort(kind="stable") if pixels[index]]
    return sorted(largest[:top])


if __name__ == "__main__":
    run_stage(main)
