"""Stage 3: CAM and image -> pseudo-mask PNG, or a confident seed PNG with 255 = unknown.

Masks that exist and are newer than their CAM stay as they are.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.catalog import Catalog
from data.readable import ListFlags, open_list
from tool.bar import counted
from tool.cli import run_stage
from tool.crf.area import BINS, Areas, threshold_of
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.post import check_noted, max_side_of, post_of
from tool.crf.stage import PostProcess
from tool.files import locked, spelled
from tool.flags import flag, parse_flags
from tool.formats.cam import load_cam
from tool.formats.predictions import require_files
from tool.parallel import dist
from tool.parallel.processes import default_workers, map_processes
from tool.ranges import SIDE, SOME_WORKERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        cam_dir: Folder of the CAMs: ID.npy, from infer_cam.py or in a layout of the field.
        out: Folder that receives one ID.png per image.
        threshold_from: Folder of masks. Make masks without a CRF, at the threshold at which all
            CAMs of the list together have the share of foreground of these masks.
        max_side: Reduce a larger photograph and its CAM first, so that its longer side has this
            many pixels; the mask has the photograph's size. By default as infer_cam.py did. For
            other CAMs 1024 if the photographs are your own (--dataset folder), else no limit.
        workers: Processes per rank; on a GPU, threads that read. Give fewer if memory is short.
    """

    data: ListFlags
    crf: CrfFlags = flag(title="masks")
    cam_dir: Path
    out: Path
    threshold_from: Path | None = flag(None, metavar="MASKS")
    max_side: int | None = flag(None, type=SIDE, metavar="PIXELS")
    workers: int = flag(default_workers, type=SOME_WORKERS, metavar="N")

    def __post_init__(self) -> None:
        self.crf.refuse_unused()
        if self.out.resolve() == self.cam_dir.resolve():
            raise ValueError(f"--out {self.out} is the folder of the CAMs: choose another")


def main(argv: Sequence[str] | None = None) -> None:
    """Post-process every image of a list; under torchrun each rank its share."""
    command = parse_flags(
        Command,
        argv,
        example="--cam-dir out/toy-fbr-seed0/cam --out out/toy-fbr-seed0/mask --list train",
    )
    with dist.ranks(), contextlib.ExitStack() as held:
        with dist.all_or_none():
            catalog, images = open_list(command.data)
            require_files(command.cam_dir, images.ids, ".npy", what="CAMs", stage="infer_cam.py")
            warn_of_threshold(command, catalog, images.ids)
            counts = count_areas(command, catalog, images.ids)
        counts = dist.sum_over_ranks(counts)
        with dist.all_or_none():
            image_ids = images.ids
            work = prepare(command, catalog, image_ids, counts)
            if dist.is_main():
                held.enter_context(locked(command.out))
                work.claim(image_ids)
        with dist.all_or_none():
            mine = dist.share(image_ids)
            done = dist.until_a_rank_fails(work.write_all(mine, workers=command.workers))
            quiet = not dist.is_main()
            written = sum(counted(done, len(mine), "crf", unit="image", quiet=quiet))
        written = int(dist.sum_over_ranks(np.array(written)))
        if dist.is_main():
            print(f"{command.out}: {written} written, {len(image_ids) - written} were there")


def warn_of_threshold(command: Command, catalog: Catalog, image_ids: Sequence[str]) -> None:
    """Print a warning if --threshold has no effect."""
    if command.crf.threshold is None or not dist.is_main():
        return
    if rows_win(command, catalog, image_ids):
        print(
            f"warning: --threshold has no effect: the CAMs in {command.cam_dir} have a "
            "background row, and the best row wins",
            file=sys.stderr,
        )


def rows_win(command: Command, catalog: Catalog, image_ids: Sequence[str]) -> bool:
    """Return whether the first CAM with a class has a background row, so that no threshold acts."""
    for image_id in image_ids:
        path = spelled(command.cam_dir, f"{image_id}.npy")
        cam = load_cam(path, label=functools.partial(catalog.label, image_id))
        if cam.class_index.size:
            return cam.has_background
    return False


def count_areas(command: Command, catalog: Catalog, image_ids: Sequence[str]) -> np.ndarray:
    """Return the counts of `--threshold-from` over this rank's share of the images, else zeros."""
    total = np.zeros(BINS + 2, np.int64)
    masks = command.threshold_from
    if masks is None:
        return total
    if command.crf.threshold is not None or command.crf.seeds is not None:
        raise ValueError("--threshold-from: not with --threshold or --seeds")
    require_files(masks, image_ids, ".png", what="masks", stage="crf_postprocess.py")
    areas = Areas(catalog, command.cam_dir, masks)
    for counts in map_processes(areas, dist.share(image_ids), workers=command.workers):
        total += counts
    return total


def prepare(
    command: Command, catalog: Catalog, image_ids: Sequence[str], counts: np.ndarray
) -> PostProcess:
    """Return the writer of the masks.

    Args:
        command: The command.
        catalog: The dataset.
        image_ids: The images.
        counts: Those of `count_areas`, of all ranks.
    """
    crf = command.crf
    if command.threshold_from is not None:
        crf = dataclasses.replace(crf, threshold=threshold_of(counts))
    if crf.seeds == []:
        check_noted(command.cam_dir)
    settings = crf_settings(crf, post_of(command.cam_dir))
    noted = max_side_of(command.cam_dir)
    max_side = command.max_side or noted or catalog.layout.max_side
    work = PostProcess(catalog, command.cam_dir, command.out, max_side=max_side, **settings)
    if work.threshold is not None and command.crf.threshold is None and dist.is_main():
        why = "as these CAMs' method has none"
        if command.threshold_from is not None:
            why = f"with as much foreground as {command.threshold_from}"
        rule = f"foreground is above {work.threshold:g}"
        if rows_win(command, catalog, image_ids):
            rule = "the CAMs have a background row, and the best row wins"
        print(f"no CRF, {why}: {rule}")
    return work


if __name__ == "__main__":
    run_stage(main)
