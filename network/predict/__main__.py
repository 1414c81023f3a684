"""Segment photographs: write their masks, and pictures of what was found.

With --out FILE.png it is a picture of one photograph, its CAMs and its mask. With --out DIR, and
for several photographs, masks go to DIR/mask, and the photographs under the colours of their masks
to DIR/overlay. The masks are those of stages 2 and 3.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from network.predict.choose import SURE, is_segmentation_network
from network.predict.predictor import Prediction, Predictor, load
from network.predict.request import Request
from tool.cli import DEVICES, printable, run_stage
from tool.crf.flags import CrfFlags
from tool.crf.post import GATES
from tool.files import atomic_path, spelled
from tool.flags import flag, parse_flags
from tool.formats.image import MAX_PIXELS, allow_pixels
from tool.formats.mask import resized, save_mask
from tool.infer.kinds import KINDS, PREVIOUS
from tool.infer.previous import PreviousFlags, PreviousOutputs
from tool.ranges import POSITIVE, SIDE, UNIT
from tool.report.picture import heat, label_colours, strip

_OTHERS = (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")  # suffixes of no result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        image: Photographs to segment, as JPEG, PNG, WebP, BMP or TIFF.
        checkpoint: The checkpoint.pth of train_fbr.py.
        classes: Names of the classes that the masks may have. By default those of which the method
            is sure (a probability of at least 0.5, else the likeliest one), if it classifies. A
            segmentation network needs no names.
        top: Number of classes without --classes, the likeliest ones. Of a segmentation network the
            number of classes that are shown, by default all of the mask.
        mask: Write the mask of one photograph to this file: a palette PNG of class indices, of the
            photograph's size.
        max_side: Reduce a larger photograph first, so that its longer side has this many pixels. By
            default 1024 (512 with resnet38d), or that of the gate's regions; the mask has the
            photograph's own size.
        max_pixels: Refuse an image of more pixels.
        bg_threshold: Make masks without a CRF: background where no class is above T.
        out: PNG of one photograph, or a folder. By default out/NAME_cam.png, or out/predict for
            several photographs.
        gate: With nroi, CAMs are gated by the regions in the run's nroi.npz, which infer_cam.py
            made, at the scales of that file. By default the method's, if that file exists.
        device: Where to compute. With auto it is a GPU if there is one.
    """

    image: list[Path] = flag(list, positional=True, nargs="*", metavar="IMAGE")
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

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError("give photographs, before --classes, which takes all words behind it")
        named: dict[str, Path] = {}
        for path in self.image:
            if path.stem in named:
                raise ValueError(
                    f"{named[path.stem]} and {path} would get one mask, {path.stem}.png: give them "
                    "in two calls"
                )
            named[path.stem] = path
        if len(self.image) > 1 and self.mask is not None:
            raise ValueError("--mask is of one photograph: several have theirs in --out DIR")
        if len(self.image) > 1 and self.picture is not None:
            raise ValueError(f"--out {self.out}: give a folder for several photographs")
        self._check_outputs()

    def _check_outputs(self) -> None:
        """Raise `ValueError` if a file to write has another format, or the place of another one."""
        for name, path in (("--mask", self.mask), ("--out", self.out)):
            if path is not None and path.suffix.lower() in _OTHERS:
                raise ValueError(f"{name} {path}: it is a PNG, so its name ends in .png")
        if self.mask is not None and self.picture is not None and _same(self.mask, self.picture):
            raise ValueError(f"--mask {self.mask} and the picture of --out are one file")
        for source in self.image:
            for path in (self.mask, self.picture):
                if path is not None and _same(path, source):
                    raise ValueError(
                        f"{path} is the photograph: choose another name for the result"
                    )

    @property
    def picture(self) -> Path | None:
        """Return the PNG that shows one photograph with its CAMs; None if there is a folder."""
        if self.out is None:
            return Path("out") / f"{self.image[0].stem}_cam.png" if len(self.image) == 1 else None
        return self.out if self.out.suffix.lower() == ".png" else None


def main(argv: Sequence[str] | None = None) -> None:
    """Write the masks and pictures of photographs."""
    command = parse_flags(
        Command, argv, example="photo.jpg --checkpoint out/toy-fbr-seed0/checkpoint.pth"
    )
    allow_pixels(command.max_pixels)
    predictor = load(
        command.checkpoint,
        device=command.device,
        gate=command.gate,
        max_side=command.max_side,
        crf=CrfFlags(threshold=command.bg_threshold),
    )
    if command.bg_threshold and predictor.method.has_background:
        print(
            f"warning: --bg-threshold {command.bg_threshold:g} means 0, no CRF: the maps have a "
            "background row, and the best row wins",
            file=sys.stderr,
        )
    folder = command.out or Path("out/predict")
    for path, found in zip(command.image, predictions(command, predictor), strict=True):
        print(printable(f"{path}: {said(found, predictor, command.top)}"), flush=True)
        image = found.maps.image
        if command.mask is not None:
            save_mask(command.mask, found.mask)
            print(command.mask)
        if command.picture is not None:
            write_picture(command.picture, draw(found, shown_classes(found, command.top)))
            print(command.picture)
        else:
            save_mask(folder / "mask" / f"{path.stem}.png", found.mask)
            overlay = label_colours(image, resized(found.mask, image.shape[:2]))
            write_picture(folder / "overlay" / f"{path.stem}.png", overlay)
    if command.picture is None:
        masks = "1 mask" if len(command.image) == 1 else f"{len(command.image)} masks"
        print(f"{masks} in {folder / 'mask'}, overlays in {folder / 'overlay'}")


def predictions(command: Command, predictor: Predictor) -> Iterator[Prediction]:
    """Return the predictions of the photographs, in their order.

    Raises:
        FileNotFoundError: A photograph, or its file of a previous stage, does not exist.
        ValueError: As `Predictor.predict`.
    """
    previous, inputs = command.previous.outputs(), predictor.method.infer_inputs
    for path in command.image:
        if path.is_dir():
            raise FileNotFoundError(
                f"photograph {path} is a folder: name its files, as {path}/*.jpg"
            )
        if not path.is_file():
            raise FileNotFoundError(f"photograph {path} does not exist")
    previous.warn_of_unread(inputs)
    previous.require(inputs, [path.stem for path in command.image])
    requests = [
        Request(
            path,
            command.classes,
            command.top,
            files_of(previous, inputs, path.stem),
            explained=command.picture is not None,
        )
        for path in command.image
    ]
    return predictor.each(requests)


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths are those of one file, which need not exist."""
    return one.resolve() == other.resolve()


def files_of(previous: PreviousOutputs, inputs: Sequence[str], name: str) -> dict[str, Path]:
    """Return the files of previous stages that a method reads for a photograph.

    Args:
        previous: The folders of the previous stages.
        inputs: The batch keys that the method needs in inference.
        name: The file name of the photograph, without its suffix.

    Returns:
        {batch key: path}. The files need not exist.

    Raises:
        ValueError: Two files have the name, in different Unicode forms.
    """
    read = {key: folder for key, folder in previous.folders.items() if key in inputs}
    return {key: spelled(folder, f"{name}{KINDS[key].suffix}") for key, folder in read.items()}


def said(found: Prediction, predictor: Predictor, top: int | None) -> str:
    """Return the line to print about a mask: its classes, and why these.

    Args:
        found: The prediction.
        predictor: The network that made it.
        top: The number of likeliest classes that the caller wanted; None if it did not say.

    Returns:
        The classes that the caller gave. Else, of a segmentation network, those in the mask, or
        "background only"; of other methods those that were chosen, with their scores and the rule.
    """
    if found.given:
        return f"{', '.join(found.classes)}, as given"
    if is_segmentation_network(predictor.method):
        names = [found.class_names[index] for index in largest_classes(found.mask, None)]
        return ", ".join(names) or "background only"
    names = [f"{name} {found.scores[name]:.2f}" for name in found.classes]
    if top is not None:
        return f"{', '.join(names)} (the likeliest: --top {top})"
    if all(found.scores[name] >= SURE for name in found.classes):
        return f"{', '.join(names)} (the classes with a score of {SURE:g} or more)"
    return f"{', '.join(names)} (the likeliest: none has a score of {SURE:g})"


def shown_classes(found: Prediction, top: int | None) -> list[int]:
    """Return the 0-based classes whose maps a picture shows, ascending.

    These are the classes of the prediction. A segmentation network that was given none shows those
    in the mask.

    Args:
        found: The prediction.
        top: How many of the classes in the mask are shown, the largest ones; None for all.
    """
    if found.given or found.scores:
        return [found.class_names.index(name) for name in found.classes]
    return largest_classes(found.mask, top)


def draw(found: Prediction, classes: Sequence[int]) -> np.ndarray:
    """Draw a photograph, the maps of some classes over it, and its mask, side by side.

    Args:
        found: The prediction.
        classes: The 0-based classes whose maps are drawn.

    Returns:
        (H, W, 3) uint8, a strip of panels with captions.
    """
    image = found.maps.image
    panels = [("image", image)]
    for index in classes:
        name, maps = found.class_names[index], found.maps.of_class(index + 1)
        for kind, values in maps.items():
            caption = name if len(maps) == 1 else f"{name}: {kind}"
            panels.append((caption, heat(image, values)))
    mask = label_colours(image, resized(found.mask, image.shape[:2]))
    return strip([*panels, ("mask", mask)])


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8, whole or not at all."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary)


def largest_classes(mask: np.ndarray, top: int | None) -> list[int]:
    """Return the 0-based classes of a mask, ascending: the `top` largest, or all."""
    pixels = np.bincount(mask.ravel(), minlength=256)[1:]
    largest = [int(index) for index in (-pixels).argsort(kind="stable") if pixels[index]]
    return sorted(largest[:top])


if __name__ == "__main__":
    run_stage(main)
