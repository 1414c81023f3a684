"""Stage 3: CAM and image -> pseudo-mask PNG, or a confident seed PNG with 255 = unknown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.catalog import add_dataset_flags, catalog_from
from data.usable import add_skip_flag, ids_from
from tool.crf import BACKENDS, PRESETS, pick_backend, preset_of
from tool.files import locked
from tool.options import Parser, positive_int, run_stage
from tool.postprocess import PostProcess
from tool.predictions import require_files

FBR_ITERATIONS = 5  # of psa80, fbr.md section 6; any other preset brings its own


def parser() -> Parser:
    """The command line."""
    parser = Parser(description="dense CRF over CAMs: pseudo masks or confident seeds")
    add_dataset_flags(parser, list_name="train")
    add_skip_flag(parser)
    add = parser.add_argument
    add("--cam-dir", type=Path, required=True, help="folder with ID.npy, from infer_cam.py")
    add("--out", type=Path, required=True, help="folder for ID.png; masks that are there stay")
    add("--preset", choices=tuple(PRESETS), help="kernels; None: psa80, or label50 with --seed")
    add(
        "--iterations",
        type=positive_int,
        help=f"mean-field steps; None: {FBR_ITERATIONS} for psa80, else the preset's own",
    )
    add("--alpha", type=float, default=8.0, help="background score is (1 - best class)^alpha")
    add(
        "--seed",
        type=float,
        nargs=2,
        metavar=("FG", "BG"),
        help="write seeds: foreground above FG, background below BG, else 255 (IRN: 0.30 0.05); "
        "for CAMs with a background row, factors on that row (SFC: 1 0.5)",
    )
    add(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="what computes the CRF; auto: torch on a GPU, else pydensecrf where it is installed, "
        "else torch",
    )
    add("--workers", type=positive_int, default=os.cpu_count() or 1, help="processes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Post-process every image of a list."""
    args = parser().parse_args(argv)
    catalog = catalog_from(args)
    image_ids = ids_from(args, catalog)
    require_files(args.cam_dir, image_ids, ".npy", what="CAMs", stage="infer_cam.py")
    name = args.preset or ("label50" if args.seed else "psa80")
    iterations = args.iterations or (FBR_ITERATIONS if name == "psa80" else None)
    preset = preset_of(name, iterations)
    seed = tuple(args.seed) if args.seed else None
    backend, device = pick_backend(args.backend)
    work = PostProcess(
        catalog, args.cam_dir, args.out, preset, args.alpha, seed, backend=backend, device=device
    )
    with locked(args.out):
        work.claim(image_ids)
        done = work.over(image_ids, workers=args.workers)
        progress = tqdm(done, total=len(image_ids), desc="crf", unit="image", disable=None)
        written = sum(progress)
    print(f"{args.out}: {written} written, {len(image_ids) - written} were there")


if __name__ == "__main__":
    run_stage(main)
