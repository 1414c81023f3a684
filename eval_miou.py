"""Stage 4: masks or CAMs and ground truth -> IoU of each class, mIoU, curve, leak score."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.catalog import Catalog, add_dataset_flags, catalog_from
from data.usable import add_skip_flag, ids_from
from tool.cli import Parser, run_stage
from tool.crf.post import Post, post_of
from tool.files import write_json
from tool.formats.predictions import Predictions, read_mask, require_files
from tool.parallel import dist
from tool.score.document import document_of, hash_of_ids, leak_of, table_of, write_curve
from tool.score.evaluation import PRED_255, Evaluation
from tool.score.metrics import Sweep


def parser() -> Parser:
    """Return the command line."""
    parser = Parser(description="mIoU of pseudo masks (.png) or CAMs (.npy)")
    add_dataset_flags(parser, list_name="train", auto=("train",))
    add_skip_flag(parser)
    add = parser.add_argument
    add("--pred-dir", type=Path, required=True, help="folder with ID.png masks or ID.npy CAMs")
    add(
        "--bg-threshold",
        type=float,
        help="a CAM is foreground above this score; by default the threshold of the method that "
        "made the CAMs, 0.22 for most and for foreign CAMs",
    )
    add("--sweep", action="store_true", help="also score CAMs at 0.00, 0.01, ... 0.99")
    add("--pred-255", choices=PRED_255, default="background", help="what a predicted 255 counts as")
    add(
        "--context",
        type=Path,
        help="folder of context PNGs: adds the leak score (toy: ROOT/context)",
    )
    add("--json", type=Path, help="file for the result; with --sweep a .png of the curve beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Score a folder of predictions; under torchrun each rank counts its share."""
    args = parser().parse_args(argv)
    with dist.ranks():
        with dist.agreed():
            catalog = catalog_from(args)
            image_ids = ids_from(args, catalog, masks=True)
            predictions = Predictions.find(args.pred_dir, image_ids)
            if args.bg_threshold is None:
                is_cam = predictions.kind == "cam"
                args.bg_threshold = (post_of(args.pred_dir) if is_cam else Post()).threshold
            evaluation = evaluation_from(args, catalog, image_ids, predictions)
            mine, quiet = dist.share(image_ids), None if dist.is_main() else True
            seen = tqdm(mine, desc="eval", unit="image", disable=quiet)
            for image_id in dist.watched(seen):
                score_image(image_id, catalog, predictions, evaluation, args.context)
        evaluation.sum_up(dist.sum_over_ranks)
        if dist.is_main():
            protocol = protocol_of(args, catalog, image_ids, predictions)
            report(args, catalog, evaluation, protocol)


def evaluation_from(
    args: argparse.Namespace, catalog: Catalog, image_ids: Sequence[str], predictions: Predictions
) -> Evaluation:
    """Return the counts that the flags want; raise if the files for them are missing."""
    if args.sweep and predictions.kind == "mask":
        raise ValueError(f"--sweep needs CAMs: {args.pred_dir} holds masks")
    if args.context is not None:
        require_files(args.context, image_ids, ".png", what="context masks", stage="data.toy")
    sweep = Sweep.empty(catalog.num_classes) if args.sweep else None
    return Evaluation(catalog.num_classes, args.bg_threshold, args.pred_255, sweep)


def report(
    args: argparse.Namespace, catalog: Catalog, evaluation: Evaluation, protocol: dict
) -> None:
    """Print the table; write the JSON document and the curve if the flags say so."""
    document = document_of(evaluation, catalog.class_names, protocol)
    if args.context is not None:
        document["leak"] = leak_of(evaluation, catalog.class_names)
    print(table_of(document))
    if args.json is not None:
        write_json(args.json, document)
        if args.sweep:
            write_curve(args.json.with_suffix(".png"), document)


def score_image(
    image_id: str,
    catalog: Catalog,
    predictions: Predictions,
    evaluation: Evaluation,
    context: Path | None,
) -> None:
    """Add one image to `evaluation`; a `ValueError` names its prediction."""
    label = functools.partial(catalog.label, image_id)
    truth = catalog.read_mask(image_id)
    prediction = predictions.read(image_id, num_classes=catalog.num_classes, label=label)
    try:
        mask = evaluation.add(truth, prediction)
    except ValueError as error:
        raise ValueError(f"{predictions.path(image_id)}: {error}") from error
    if context is not None:
        around = read_mask(context / f"{image_id}.png", catalog.num_classes)
        evaluation.add_context(around, mask, label())


def protocol_of(
    args: argparse.Namespace, catalog: Catalog, image_ids: Sequence[str], predictions: Predictions
) -> dict:
    """Return what was scored and by which rules, for the JSON document."""
    rule = f"foreground above the background threshold {args.bg_threshold:g}"
    return {
        "dataset": catalog.name,
        "list": args.list,
        "list_sha256": hash_of_ids(image_ids),
        "images": len(image_ids),
        "kind": predictions.kind,
        "bg_threshold": args.bg_threshold if predictions.kind == "cam" else None,
        "threshold": rule if predictions.kind == "cam" else "no threshold: masks as they are",
    }


if __name__ == "__main__":
    run_stage(main)
