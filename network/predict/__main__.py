"""Draw a picture of an image, its CAMs and its mask."""

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
from network.losses import resize
from network.methods import Method
from network.weights.restore import restore
from tool.cli import DEVICES, positive_int, run_stage
from tool.crf.post import GATES
from tool.files import atomic_path, file_hash
from tool.flags import flag, parse_flags
from tool.formats.image import decode
from tool.formats.regions import REGIONS, load_regions
from tool.infer.multiscale import infer_images, network_input
from tool.infer.previous import PREVIOUS, PreviousFlags, PreviousOutputs, takes_previous_outputs
from tool.infer.scales import Views, at_scale
from tool.parallel.dist import pick_device
from tool.report.picture import heat, label_colours, strip
from tool.train.run_directory import CHECKPOINT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        image: A JPEG or PNG.
        checkpoint: The checkpoint.pth of train_fbr.py.
        classes: Names of the classes to show. By default the likeliest, if the method classifies.
        top: Number of classes to show without --classes.
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
    top: int = flag(2, type=positive_int, metavar="N")
    bg_threshold: float | None = flag(None, metavar="T")
    out: Path | None = None
    gate: str | None = flag(None, choices=GATES)
    device: str = flag("auto", choices=DEVICES)
    previous: PreviousFlags = flag(title=PREVIOUS)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture of an image."""
    command = parse_flags(
        Command, argv, example="photo.jpg --checkpoint out/toy-fbr-seed0/checkpoint.pth"
    )
    device = pick_device(command.device)
    method, config = restore(command.checkpoint)
    method.to(device).eval()
    name, image = command.image.stem, decode(command.image, "RGB")
    names = config["class_names"]
    previous = command.previous.outputs()
    previous.require(method.infer_inputs, [name])
    chosen = chosen_classes(command.classes or (), names)
    if not chosen and (method.conditioned or takes_previous_outputs(method.infer_inputs)):
        raise ValueError(
            f"method {config['method']!r} is given the image's classes: pass --classes, of "
            f"{', '.join(names)}"
        )
    chosen = chosen or likeliest(method, image, command.top, device)
    if not chosen:
        raise ValueError(
            f"method {config['method']!r} does not classify: pass --classes, of {', '.join(names)}"
        )
    gate, views = gate_of(command, method, config, device)
    label = label_of(chosen, len(names))
    maps = class_maps(method, name, image, label, previous, device, views, gate)
    mask = mask_of(maps["gated CAM" if gate else "CAM"], chosen, method, command.bg_threshold)
    panels = [("image", np.asarray(image))]
    for index in chosen:
        for kind, values in maps.items():
            caption = names[index] if len(maps) == 1 else f"{names[index]}: {kind}"
            row = index + (method.has_background and kind != "gate")
            panels.append((caption, heat(panels[0][1], values[row].numpy())))
    picture = strip([*panels, ("mask", label_colours(panels[0][1], mask))])
    out = command.out or Path("out") / f"{name}_cam.png"
    with atomic_path(out) as temporary:
        Image.fromarray(picture).save(temporary)
    print(out)


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
    views = method.recipe.views().of(image)
    eight_bit = (views[-1] if method.recipe.sides else at_scale(image, 1.0))[None].to(device)
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
    path, views = command.checkpoint.parent / REGIONS, method.recipe.views()
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
    return gate, Views.noted(noted)


def class_maps(
    method: Method,
    image_id: str,
    image: Image.Image,
    label: np.ndarray,
    previous: PreviousOutputs,
    device: torch.device,
    views: Views,
    gate: NroiGate | None,
) -> dict[str, torch.Tensor]:
    """Compute the maps of an image.

    Args:
        method: In `eval()`, on `device`.
        image_id: Name of the image's files from previous stages.
        image: RGB, of size (W, H).
        label: (K,) float32, 1 for the classes that are present.
        previous: Folders of files of previous stages.
        device: The device that computes.
        views: The sizes of the copies of the image.
        gate: The gate of the run; None for none.

    Returns:
        `CAM` (C, H, W) float32 on the CPU, the first of the method's maps. If the method reads the
        label, the maps of absent classes are 0. With a gate also `gate` (K, H, W) and `gated CAM`
        (C, H, W).
    """
    size, inputs = (image.height, image.width), method.infer_inputs
    sample = {"image_id": image_id, "size": size, "images": views.of(image)}
    if "label" in inputs:
        sample["label"] = torch.from_numpy(label)
    sample |= previous.read(
        inputs, image_id, size=size, label=lambda: label, num_classes=len(label)
    )
    shown: dict[str, torch.Tensor] = {}

    def refine(
        image_id: str,
        features: Sequence[torch.Tensor],
        maps: dict[str, torch.Tensor],
        label: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the gated maps, and keep the CAM and the gate for the picture."""
        assert gate is not None
        cam = maps[method.maps[0]]
        values, present = gate.gate(image_id, features, cam, label)
        whole = cam.new_zeros(len(label), *values.shape[-2:]).index_copy_(0, present, values)
        shown.update({"CAM": cam, "gate": resize(whole[None], size)[0]})
        return gate(image_id, features, maps, label)

    maps = infer_images(
        method,
        [sample],
        device=device,
        mirror=views.mirror,
        refine=refine if gate is not None else None,
    )[0]
    found = shown | {"gated CAM" if gate else "CAM": maps[method.maps[0]]}
    return {name: values.float().cpu() for name, values in found.items()}


def mask_of(
    maps: torch.Tensor, chosen: Sequence[int], method: Method, bg_threshold: float | None
) -> np.ndarray:
    """Return the mask (H, W) uint8 of the chosen classes.

    Args:
        maps: (K, H, W), or (K+1, H, W) with background.
        chosen: The 0-based classes.
        method: The method that made the maps.
        bg_threshold: Maps without background are foreground above it; None for the method's
            threshold.
    """
    values = torch.tensor([0, *(index + 1 for index in chosen)])
    if method.has_background:
        return values[maps[values].argmax(dim=0)].numpy().astype(np.uint8)
    threshold = method.recipe.post.threshold if bg_threshold is None else bg_threshold
    best, index = maps[list(chosen)].max(dim=0)
    return torch.where(best > threshold, values[1:][index], 0).numpy().astype(np.uint8)


if __name__ == "__main__":
    run_stage(main)
