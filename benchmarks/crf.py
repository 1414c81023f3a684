"""Compare the CRF in torch with pydensecrf: time and agreement.

The images are photographs of a folder, or one image that is drawn. The figures are the seconds per
image for each preset and number of labels, on one thread of a CPU (or on a GPU), and the
differences between the two results.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import importlib.util
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawn import soft_blobs, structured_noise
from benchmarks.record import JsonFlags, Rows, row
from benchmarks.timing import repeated
from data.files import IMAGE_SUFFIXES
from tool.cli import run_stage
from tool.crf.dense import PRESETS, Preset, label_unary, score_unary
from tool.flags import flag, parse_flags
from tool.formats.image import decode
from tool.ranges import POSITIVE, SIDE

DRAWN = (375, 500)
REPEATS = 3
COLUMNS = ("preset", "labels", "pydensecrf s", "torch s", "ratio", "argmax agrees")
COLUMNS += ("mean difference",)
CELLS = ("{preset}", "{labels}", "{pydensecrf:.2f}", "{torch:.3f}", "{ratio:.2f}")
CELLS += ("{argmax_agrees:.3%}", "{mean_difference:.1e}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        images: Folder of photographs. Without one an image is drawn.
        size: Height and width to resize to. By default photographs keep their size.
        count: Number of photographs, the first by name.
        labels: Numbers of labels, background included.
        presets: Presets of the CRF to measure.
        batch: Copies of an image that torch computes at once. A GPU needs some.
        device: Where torch computes.
    """

    images: Path | None = None
    size: tuple[int, int] | None = flag(None, type=SIDE, nargs=2, metavar=("H", "W"))
    count: int = flag(4, type=POSITIVE, metavar="N")
    labels: list[int] = flag(lambda: [3], type=POSITIVE, metavar="L")
    presets: list[str] = flag(lambda: ["psa80", "label50", "dlv2"], choices=tuple(PRESETS))
    batch: int = flag(1, type=POSITIVE, metavar="N")
    device: str = flag("cpu", choices=("cpu", "cuda"))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table, one row per preset and number of labels."""
    command = parse_flags(Command, argv, example="--size 375 500 --labels 3 21")
    torch.set_num_threads(1)
    size = command.size or (None if command.images else DRAWN)
    if command.images:
        images = photographs(command.images, command.count, size)
    else:
        images = [structured_noise(np.random.default_rng(0), size)]
    of_size = "{}x{}".format(*size) if size else "own sizes"
    print(f"{len(images)} images of {of_size}, torch on {command.device}, batch {command.batch}")
    rows = Rows(command.json, row(*CELLS), *COLUMNS, unit="s per image", batch=command.batch)
    for name, labels in itertools.product(command.presets, command.labels):
        found = [compare(PRESETS[name], image, labels, command) for image in images]
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        speed, ratio = 1 / middle["torch"], middle["torch"] / middle["pydensecrf"]
        rows.add(preset=name, labels=labels, **middle, ratio=ratio, images_per_s=speed)


def photographs(folder: Path, count: int, size: Sequence[int] | None) -> list[np.ndarray]:
    """Return the first images of a folder by name, each (H, W, 3) uint8.

    Args:
        folder: The folder.
        count: The largest number of images.
        size: (H, W) to resize to; None keeps their own sizes.

    Raises:
        FileNotFoundError: The folder has no photographs.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)[:count]
    if not paths:
        raise FileNotFoundError(f"{folder} has no photographs")
    images = [decode(path, "RGB") for path in paths]
    return [np.asarray(image.resize(size[::-1]) if size else image) for image in images]


def energies(preset: Preset, image: np.ndarray, labels: int) -> np.ndarray:
    """Return the energies (L, H, W) of `labels` blurred blobs, in the kind of the preset."""
    score = soft_blobs(np.random.default_rng(1), labels, image.shape[:2], 0.3)
    if preset.from_labels:
        return label_unary(score.argmax(0), n_labels=labels, gt_prob=preset.gt_prob)
    return score_unary(score)


def compare(preset: Preset, image: np.ndarray, labels: int, command: Command) -> dict[str, float]:
    """Return the seconds per image of both, their agreement and their mean difference.

    Args:
        preset: The CRF.
        image: (H, W, 3) uint8.
        labels: Number of labels.
        command: Batch size and device for torch.

    Returns:
        "pydensecrf" and "torch" in seconds, "argmax_agrees" as a share of the pixels, and
        "mean_difference" of the marginals. All but "torch" are NaN if pydensecrf is not installed.
    """
    unary, crf = energies(preset, image, labels), preset.crf

    def in_torch() -> np.ndarray:
        copies = [image] * command.batch, [unary] * command.batch
        return crf.batch(*copies, device=command.device)[0]

    def in_pydensecrf() -> np.ndarray:
        return crf(image, unary, backend="pydensecrf")

    ours, times = repeated(in_torch, REPEATS, untimed=1)
    found = dict.fromkeys(("pydensecrf", "torch", "argmax_agrees", "mean_difference"), math.nan)
    found["torch"] = statistics.median(times) / command.batch
    if importlib.util.find_spec("pydensecrf") is not None:
        theirs, times = repeated(in_pydensecrf, REPEATS, untimed=1)
        found["pydensecrf"] = statistics.median(times)
        found["argmax_agrees"] = float((ours.argmax(0) == theirs.argmax(0)).mean())
        found["mean_difference"] = float(np.abs(ours - theirs).mean())
    return found


if __name__ == "__main__":
    run_stage(main)
