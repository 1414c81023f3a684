"""Stage 3: CAM and image -> pseudo-mask PNG, or a confident seed PNG with 255 = unknown."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.catalog import add_dataset_flags, catalog_from
from data.usable import add_skip_flag, ids_from
from tool.cli import Parser, positive_int, run_stage
from tool.crf.post import check_noted, post_of
from tool.crf.stage import PostProcess, add_crf_flags, crf_settings
from tool.files import locked
from tool.formats.predictions import require_files
from tool.parallel import dist
from tool.parallel.processes import default_workers


def parser() -> Parser:
    """Return the command line."""
    parser = Parser(description="dense CRF over CAMs: pseudo masks or confident seeds")
    add_dataset_flags(parser)
    add_skip_flag(parser)
    add = parser.add_argument
    add("--cam-dir", type=Path, required=True, help="folder with ID.npy, from infer_cam.py")
    add("--out", type=Path, required=True, help="folder for ID.png; masks that are there stay")
    add_crf_flags(parser)
    add("--workers", type=positive_int, default=default_workers(), help="processes a rank")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Post-process every image of a list; under torchrun each rank its share."""
    args = parser().parse_args(argv)
    with dist.ranks(), contextlib.ExitStack() as held:
        with dist.agreed():
            catalog = catalog_from(args)
            image_ids = ids_from(args, catalog)
            require_files(args.cam_dir, image_ids, ".npy", what="CAMs", stage="infer_cam.py")
            if args.seed == []:
                check_noted(args.cam_dir)
            settings = crf_settings(args, post_of(args.cam_dir))
            work = PostProcess(catalog, args.cam_dir, args.out, **settings)
            if settings["threshold"] is not None and args.no_crf is None and dist.is_main():
                limit = settings["threshold"]
                print(f"no CRF, as these CAMs' method has none: foreground is above {limit:g}")
            if dist.is_main():
                held.enter_context(locked(args.out))
                work.claim(image_ids)
        with dist.agreed():
            mine = dist.share(image_ids)
            done = dist.watched(work.over(mine, workers=args.workers))
            quiet = None if dist.is_main() else True
            written = sum(tqdm(done, total=len(mine), desc="crf", unit="image", disable=quiet))
        written = int(dist.sum_over_ranks(np.array(written)))
        if dist.is_main():
            print(f"{args.out}: {written} written, {len(image_ids) - written} were there")


if __name__ == "__main__":
    run_stage(main)
