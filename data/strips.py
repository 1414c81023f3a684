"""Draw images of a run, a row per image: the image, a CAM, its gate, the gated CAM, mask and truth.

The maps are those of the image's first class. The gate is shown if the run kept the CAMs before it
(`infer_cam.py --keep-plain`). By default the dataset and the list are those of the run's
config.json.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.readable import ListFlags, open_list
from data.report_flags import parse_like_run
from data.report_images import ReportImages, gate_between
from tool.cli import printable, run_stage
from tool.files import atomic_path
from tool.flags import flag
from tool.ranges import POSITIVE, SIDE
from tool.report.picture import heat, label_colours, strip
from tool.report.run import Run, open_run

_GAP = 4  # pixels between two rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        run: Run directory with mask/ and cam/.
        ids: Ids of images of the list. By default as many as --count, evenly spaced in the list.
        count: Number of images.
        mask_dir: Folder of the masks, if it is not RUN/mask.
        side: Width and height in pixels to which each image is stretched.
        out: File to write, a PNG.
    """

    data: ListFlags
    run: Path = flag(positional=True)
    ids: list[str] = flag(list, metavar="ID")
    count: int = flag(3, type=POSITIVE)
    mask_dir: Path | None = None
    side: int = flag(150, type=SIDE)
    out: Path = flag(metavar="FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture."""
    example = "out/toy-fbr-seed0 --out toy.png"
    command = parse_like_run(Command, argv, example=example)
    run = open_run(command.run, mask_dir=command.mask_dir)
    catalog, images = open_list(command.data)
    source = ReportImages.of(catalog, [run])
    chosen = command.ids or [images.ids[place] for place in spaced(len(images.ids), command.count)]
    unknown = [image_id for image_id in chosen if image_id not in set(images.ids)]
    if unknown:
        raise ValueError(f"--ids {unknown[0]}: {images.name} has no such image")
    rows = [strip(panels(source, run, image_id, command.side)) for image_id in chosen]
    width = max(row.shape[1] for row in rows)
    with atomic_path(command.out) as temporary:
        Image.fromarray(stacked(rows, width)).quantize(256).save(temporary, "PNG", optimize=True)
    size = command.out.stat().st_size / 1e3
    print(printable(f"{command.out}: {', '.join(chosen)}; {size:.0f} kB"))


def spaced(length: int, count: int) -> list[int]:
    """Return `count` places, evenly spaced in a list of this length; all of them if it is short."""
    count = min(length, count)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def panels(
    source: ReportImages, run: Run, image_id: str, side: int
) -> list[tuple[str, np.ndarray]]:
    """Return the captions and panels of an image, (side, side, 3) uint8 each.

    Raises:
        FileNotFoundError: The run has no mask of the image.
        ValueError: A file is broken, or of another size than the image.
    """
    photograph = source.catalog.read_image(image_id)
    image, size = np.asarray(photograph), (photograph.height, photograph.width)
    mask = source.mask(run, image_id)
    if mask is None:
        raise FileNotFoundError(f"{source.mask_path(run, image_id)}: run crf_postprocess.py first")
    found = [("image", image)]
    cam, plain = (source.cam(folder, image_id, size) for folder in (run.cam_dir, run.plain_dir))
    if cam is not None and cam.foreground().class_index.size:
        cam = cam.foreground()
        name = source.catalog.class_names[cam.class_index[0] - 1]
        if plain is None:
            found.append((f"CAM of {name}", heat(image, cam.cam[0])))
        else:
            before = plain.foreground().cam[0]
            found += [
                (f"CAM of {name}", heat(image, before)),
                ("NROI gate", heat(image, gate_between(before, cam.cam[0]))),
                ("gated CAM", heat(image, cam.cam[0])),
            ]
    found.append(("mask", label_colours(image, mask)))
    truth = source.catalog.mask_if_there(image_id)
    if truth is not None:
        found.append(("ground truth", label_colours(image, np.where(truth == 255, 0, truth))))
    shape = (side, side)
    return [(name, np.asarray(Image.fromarray(one).resize(shape))) for name, one in found]


def stacked(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    """Return rows (h, w, 3) uint8 below each other, on white, up to `width` pixels wide."""
    parts = []
    for row in rows:
        page = np.full((row.shape[0] + _GAP, width, 3), 255, np.uint8)
        page[: row.shape[0], : row.shape[1]] = row
        parts.append(page)
    return np.concatenate(parts)[:-_GAP]


if __name__ == "__main__":
    run_stage(main)
