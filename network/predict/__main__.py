"""`python -m network.predict IMAGE --checkpoint F`: one picture of an image, its CAMs and its mask.

A program, like the stages: it alone, with `tool.report.table`, may look above `tool`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from network.methods import Method
from network.weights.restore import restore
from tool.cli import Parser, positive_int, run_stage
from tool.files import atomic_path
from tool.formats.image import decode
from tool.infer.multiscale import infer_images, mirrored_pairs
from tool.infer.previous import Earlier, add_earlier_flags, earlier_from, takes_earlier
from tool.infer.scales import at_scale
from tool.parallel.dist import pick_device
from tool.report.picture import heat, label_colours, strip


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture."""
    args = parse(argv)
    device = pick_device(args.device)
    method, config = restore(args.checkpoint)
    method.to(device).eval()
    image = decode(args.image, "RGB")
    names = config["class_names"]
    earlier = earlier_from(args)
    earlier.require(method.infer_inputs, [args.image.stem])
    chosen = chosen_classes(args, names)
    if not chosen and takes_earlier(method.infer_inputs):
        raise ValueError(
            f"method {config['method']!r} is given the image's classes: pass --classes, of "
            f"{', '.join(names)}"
        )
    chosen = chosen or strongest(method, image, args.top, device)
    cam = class_maps(method, args.image.stem, image, label_of(chosen, len(names)), earlier, device)
    picture = panels(np.asarray(image), cam, {i: names[i] for i in chosen}, args.bg_threshold)
    out = args.out or Path("out") / f"{args.image.stem}_cam.png"
    with atomic_path(out) as temporary:
        Image.fromarray(picture).save(temporary)
    print(out)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="network.predict", description=__doc__)
    add = parser.add_argument
    add("image", type=Path, help="a JPEG or PNG")
    add("--checkpoint", type=Path, required=True, help="checkpoint.pth of train_fbr.py")
    add("--classes", nargs="+", help="names of the classes to show; None: the strongest")
    add("--top", type=positive_int, default=2, help="how many classes, without --classes")
    add("--bg-threshold", type=float, default=0.22, help="the mask is background below it")
    add_earlier_flags(parser)
    add("--out", type=Path, help="PNG to write; None: out/NAME_cam.png")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run")
    return parser.parse_args(argv)


def chosen_classes(args: argparse.Namespace, names: list[str]) -> list[int]:
    """The indices of --classes; empty without it."""
    for name in args.classes or ():
        if name not in names:
            raise ValueError(f"unknown class {name!r}: there are {', '.join(names)}")
    return sorted({names.index(name) for name in args.classes or ()})


@torch.inference_mode()
def strongest(method: Method, image: Image.Image, top: int, device: torch.device) -> list[int]:
    """The 0-based classes whose score maps are highest on average, in their order."""
    eight_bit = at_scale(image, 1.0)[None].to(device)
    pair = mirrored_pairs(eight_bit, method.backbone.mean, method.backbone.std)
    score = method.score({"image": pair}).mean(dim=(0, 2, 3))
    score = score[1:] if method.has_background else score
    return sorted(score.topk(min(top, len(score))).indices.tolist())


def label_of(chosen: Sequence[int], num_classes: int) -> np.ndarray:
    """(K,) float32, 1 at the chosen 0-based classes."""
    label = np.zeros(num_classes, np.float32)
    label[list(chosen)] = 1
    return label


def class_maps(
    method: Method,
    image_id: str,
    image: Image.Image,
    label: np.ndarray,
    earlier: Earlier,
    device: torch.device,
) -> torch.Tensor:
    """(K, H, W) CAMs of the classes of `label` (K,), 0 elsewhere."""
    size, inputs = (image.height, image.width), method.infer_inputs
    sample = {
        "image_id": image_id,
        "size": size,
        "images": [at_scale(image, scale) for scale in method.recipe.scales],
        "label": torch.from_numpy(label),
    } | earlier.read(inputs, image_id, size=size, label=label, num_classes=len(label))
    cam = infer_images(method, [sample], device=device)[0]["cam"].float().cpu()
    return cam[1:] if method.has_background else cam


def panels(
    image: np.ndarray, cam: torch.Tensor, names: dict[int, str], bg_threshold: float
) -> np.ndarray:
    """Image, heat of each class, mask overlay, side by side."""
    shown = [("image", image)]
    shown += [(name, heat(image, cam[index].numpy())) for index, name in names.items()]
    best, index = cam[list(names)].max(dim=0)
    classes = torch.tensor(list(names)) + 1
    label = torch.where(best > bg_threshold, classes[index], 0).numpy().astype(np.uint8)
    return strip([*shown, ("mask", label_colours(image, label))])


if __name__ == "__main__":
    run_stage(main)
