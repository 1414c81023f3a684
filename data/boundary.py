"""Write the boundary labels that `bes` and `sbe` are trained on, from confident seeds.

The seeds are those of crf_postprocess.py --seeds; BES and SBE take --seeds 0.30 0.07. Without
--saliency the labels are those of BES, with it those of SBE. If the command is stopped and started
again, it goes on where it was; a label older than its seed is made anew.

Source: BES (L. Chen et al., ECCV 2020), boundary labels; SBE (SPL 2024), its salient boundaries.
Differs from the release: any number of classes; saliency that is 0 everywhere is no division by 0;
the contour of the saliency map lies on its pixels, where the release computes it on a smaller map
that is stretched afterwards.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.catalog import Catalog
from data.readable import ListFlags, open_list
from data.saliency_maps import require_saliency
from tool.bar import counted
from tool.cli import run_stage
from tool.files import locked, spelled
from tool.flags import flag, parse_flags
from tool.formats.boundary import (
    BACKGROUND,
    CLASSES,
    FOREGROUND,
    OBJECT,
    RULES,
    SALIENT,
    load_boundary,
    save_boundary,
)
from tool.formats.image import check_size
from tool.formats.mask import UNKNOWN, is_whole
from tool.formats.predictions import read_mask
from tool.infer.previous import PreviousOutputs
from tool.parallel.processes import default_workers, map_processes
from tool.provenance import claim, fingerprint
from tool.ranges import AMOUNT, SIDE, SOME_WORKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules that turn a seed into a boundary label.

    Attributes:
        window: Side of the square around a pixel in which seeds are counted, in pixels; odd.
        theta_s: At a boundary each of the two sides fills more than this share of the window;
            inside, one side fills more than twice this share.
        theta_d: At a boundary the shares of the two sides differ by less than this; inside, by
            twice this at least.
        tau_sobel: A pixel is on the contour of the saliency map if the Sobel gradient there is
            above this. The map is divided by its maximum; a straight step of 1 has a gradient of 4.
        salient_above: Pixels whose saliency in [0, 1] is not above this are background, unless a
            rule on the seeds in the window labels them.
    """

    window: int = flag(13, type=SIDE, metavar="PIXELS")
    theta_s: float = flag(0.30, type=AMOUNT)
    theta_d: float = flag(0.10, type=AMOUNT)
    tau_sobel: float = flag(0.5, type=AMOUNT)
    salient_above: float = flag(0.0, type=AMOUNT)

    def __post_init__(self) -> None:
        if self.window % 2 == 0:
            raise ValueError(f"--window {self.window}: an odd number of pixels")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        seed_dir: Folder of confident seeds (255 = unknown), from crf_postprocess.py --seeds.
        out: Folder that receives one ID.png per image.
        saliency: Use the dataset's saliency maps, too, as SBE does.
        workers: Processes. Give fewer if memory is short.
    """

    data: ListFlags
    seed_dir: Path
    out: Path
    saliency: bool = False
    rules: Rules = flag(title="rules")
    workers: int = flag(default_workers, type=SOME_WORKERS, metavar="N")


def main(argv: Sequence[str] | None = None) -> None:
    """Write the missing labels of a list."""
    command = parse_flags(
        Command,
        argv,
        example="--seed-dir out/sbe/1-cam/seed --saliency --out out/sbe/1-cam/boundary",
    )
    out, seeds = command.out, command.seed_dir
    if out.resolve() == seeds.resolve():
        raise ValueError(f"--out {out} is the folder of the seeds: choose another")
    catalog, images = open_list(command.data, saliency=command.saliency, who="--saliency")
    catalog.refuse_own(out, images.ids)
    PreviousOutputs({"seed": seeds}).require(("seed",), images.ids)
    if command.saliency:
        require_saliency(catalog, images.ids)
    with locked(out):
        work = BoundaryWriter(catalog, seeds, out, command.rules, with_saliency=command.saliency)
        claim(out, work.made_from())
        done = map_processes(work, images.ids, workers=command.workers)
        written = sum(counted(done, len(images.ids), "boundary", unit="image"))
    print(f"{out}: {written} boundary labels written, {len(images.ids) - written} were there")


@dataclasses.dataclass(frozen=True)
class BoundaryWriter:
    """A writer of one boundary label per image; it can be sent to another process.

    Attributes:
        catalog: Of the dataset.
        seed_dir: Folder of the seeds.
        out: Folder of the labels.
        rules: How a label is made.
        with_saliency: Use the saliency maps of the dataset.
    """

    catalog: Catalog
    seed_dir: Path
    out: Path
    rules: Rules
    with_saliency: bool

    def __call__(self, image_id: str) -> bool:
        """Write the label of an image if it is missing, broken, of another size, or out of date.

        A label is out of date if it is older than its seed or its saliency map.

        Args:
            image_id: The image.

        Returns:
            Whether the label was written.

        Raises:
            FileNotFoundError: The seed or the saliency map does not exist.
            ValueError: A file is broken, or the seed has another size than the image or a class
                above K; names it.
        """
        seed_path, path = spelled(self.seed_dir, f"{image_id}.png"), self.out / f"{image_id}.png"
        sources = [seed_path]
        if self.with_saliency:
            sources.append(self.catalog.saliency_path(image_id))
        size = self.catalog.image_size(image_id)[::-1]
        newest = max(source.stat().st_mtime_ns for source in sources)
        is_new = path.is_file() and path.stat().st_mtime_ns >= newest
        if is_new and is_whole(path, size, read=load_boundary):
            return False
        seed = read_mask(seed_path, self.catalog.num_classes)
        check_size(seed_path, seed.shape, "its image", size)
        saliency = None
        if self.with_saliency:
            saliency = np.asarray(self.catalog.read_saliency(image_id), np.float32) / 255
        save_boundary(path, boundary_label(seed, saliency, self.rules))
        return True

    def made_from(self) -> dict[str, object]:
        """Return what the labels are made from, for the note in their folder.

        Returns:
            {`RULES`: {name: value} of the rules that apply, "seeds": the fingerprint of the seeds,
            "saliency": that of the saliency maps, None for the rules of BES}.

        Raises:
            ValueError: The note in one of the folders is broken; names the file.
        """
        rules = dataclasses.asdict(self.rules)
        if not self.with_saliency:
            rules = {name: rules[name] for name in ("window", "theta_s", "theta_d")}
        saliency = fingerprint(self.catalog.saliency_root) if self.with_saliency else None
        return {RULES: rules, "seeds": fingerprint(self.seed_dir), "saliency": saliency}


def boundary_label(seed: np.ndarray, saliency: np.ndarray | None, rules: Rules) -> np.ndarray:
    """Return the boundary label of an image; a later rule overwrites an earlier one.

    Args:
        seed: (H, W) uint8 in 0..K, 255 for unknown.
        saliency: (H, W) float32 in [0, 1]; None for the rules of BES, which has none. Saliency of
            0 everywhere means that nothing is salient.
        rules: The parameters.

    Returns:
        (H, W) uint8, the values of `tool.formats.boundary`.
    """
    # How many pixels of a window are background, and of the two most frequent classes. Unknown
    # pixels belong to the window, what is outside the image does not.
    classes = np.unique(seed[(seed != 0) & (seed != UNKNOWN)])
    chosen = seed[None] == np.concatenate([[0], classes])[:, None, None].astype(np.uint8)
    count = count_in_windows(chosen, rules.window)  # (P+1, H, W)
    area = count_in_windows(np.ones((1, *seed.shape), bool), rules.window)[0]
    ground, first, second = count[0], *_two_largest(count[1:])
    share, gap = rules.theta_s * area, rules.theta_d * area

    label = np.full(seed.shape, UNKNOWN, np.uint8)
    if saliency is not None:
        label[saliency <= rules.salient_above] = BACKGROUND
    label[(ground > 2 * share) & (ground - first >= 2 * gap)] = BACKGROUND
    label[(first > 2 * share) & (first - ground >= 2 * gap)] = FOREGROUND
    label[(np.minimum(first, ground) > share) & (np.abs(first - ground) < gap)] = OBJECT
    label[(second > share) & (first - second < gap)] = CLASSES
    if saliency is not None:
        label[contour(saliency) > rules.tau_sobel] = SALIENT
    return label


def count_in_windows(chosen: np.ndarray, window: int) -> np.ndarray:
    """Count the chosen pixels in the square window around each pixel, inside the image.

    Args:
        chosen: (P, H, W) bool.
        window: Side of the window, odd.

    Returns:
        (P, H, W) int32.
    """
    height, width = chosen.shape[1:]
    total = np.zeros((len(chosen), height + 1, width + 1), np.int32)  # over all pixels before
    np.cumsum(chosen, axis=1, out=total[:, 1:, 1:])
    np.cumsum(total[:, 1:, 1:], axis=2, out=total[:, 1:, 1:])
    (top, bottom), (left, right) = (_ends(side, window) for side in (height, width))
    in_rows = total[:, bottom] - total[:, top]  # (P, H, W+1)
    return in_rows[:, :, right] - in_rows[:, :, left]


def _ends(side: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first pixel of each window along an axis, and the one after its last."""
    at = np.arange(side)
    return np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, side)


def _two_largest(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest and the second largest count per pixel, (H, W) each; 0 if P is below 1, 2.

    Args:
        count: (P, H, W), the counts of P classes.
    """
    padded = np.concatenate([np.zeros((2, *count.shape[1:]), count.dtype), count])
    second, first = np.partition(padded, (-2, -1), axis=0)[-2:]
    return first, second


def contour(saliency: np.ndarray) -> np.ndarray:
    """Return the magnitude of the Sobel gradient of a saliency map over its maximum.

    Args:
        saliency: (H, W) float32 in [0, 1]; continued beyond the border by its outermost pixels.

    Returns:
        (H, W) float32; 0 for a constant map, also for one of zeros.
    """
    s = np.pad(saliency / max(float(saliency.max()), 1e-12), 1, mode="edge")
    across = s[:, 2:] - s[:, :-2]  # (H+2, W)
    down = s[2:] - s[:-2]  # (H, W+2)
    dx = across[:-2] + 2 * across[1:-1] + across[2:]
    dy = down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]
    return np.hypot(dx, dy)


if __name__ == "__main__":
    run_stage(main)
