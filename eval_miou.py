"""Stage 4: masks or CAMs and ground truth -> IoU of each class, mIoU, curve, leak score."""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.catalog import Catalog
from data.readable import ImageList, ListFlags, open_list
from tool.bar import counted
from tool.cli import printable, run_stage
from tool.crf.post import Post, post_of
from tool.files import spelled, write_json
from tool.flags import flag, parse_flags
from tool.formats.predictions import Predictions, colour_warning, read_mask, require_files
from tool.parallel import dist
from tool.ranges import UNIT
from tool.score.board import write_board
from tool.score.document import document_of, leak_of, table_of, write_curve
from tool.score.evaluation import PRED_255, Evaluation
from tool.score.metrics import Sweep
from tool.score.truth import TruthFiles


class TrainListFlags(ListFlags):
    """The flags of the list, which is train by default."""

    auto = ("train",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        pred_dir: Folder of the predictions: ID.png masks or ID.npy CAMs.
        bg_threshold: Count a CAM as foreground above T. By default T is the threshold of the method
            that made the CAMs, 0.22 for most and for foreign CAMs.
        sweep: Score CAMs at 0.00, 0.01, ... 0.99 too. The best of them is an oracle, chosen on
            ground truth: report it as such. CAMs with a background row have no threshold.
        pred_255: What a predicted 255 counts as. Choose ignore for seeds, whose 255 is unknown.
        context: Folder of context PNGs, which adds the leak score. Of the toy dataset it is
            ROOT/context.
        json: Write the result to this file too, and if it lies in a run directory, to the run's
            TensorBoard. With --sweep the curve is drawn beside it, as .png and .pdf.
    """

    data: TrainListFlags
    pred_dir: Path
    bg_threshold: float | None = flag(None, type=UNIT, metavar="T")
    sweep: bool = False
    pred_255: str = flag("background", choices=PRED_255)
    context: Path | None = None
    json: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Score a folder of predictions; under torchrun each rank counts its share."""
    command = parse_flags(
        Command,
        argv,
        example="--pred-dir out/toy-fbr-seed0/mask --json out/toy-fbr-seed0/miou.json",
        defaults={"list": "train"},
    )
    with dist.ranks():
        with dist.all_or_none():
            catalog, images = open_list(command.data, masks=True)
            predictions = Predictions.find(command.pred_dir, images.ids)
            evaluation = evaluation_from(command, catalog, images.ids, predictions)
            truth = TruthFiles(catalog.root, catalog.layout.masks)
            warn_of_colours(catalog, images.ids, predictions)
            mine, quiet = dist.share(images.ids), not dist.is_main()
            progress = counted(mine, len(mine), "eval", unit="image", quiet=quiet)
            for image_id in dist.until_a_rank_fails(progress):
                score_image(image_id, catalog, predictions, evaluation, command.context)
                truth.add(image_id, catalog.mask_path(image_id))
        evaluation.sum_up(dist.sum_over_ranks)
        truth.sum_up(dist.sum_over_ranks)
        if dist.is_main():
            protocol = protocol_of(catalog, images, predictions, evaluation.bg_threshold)
            protocol |= truth.note()
            report(command, catalog, evaluation, protocol)


def evaluation_from(
    command: Command, catalog: Catalog, image_ids: Sequence[str], predictions: Predictions
) -> Evaluation:
    """Return an empty `Evaluation` with the threshold and the sweep that the flags choose.

    Raises:
        FileNotFoundError: With --context, a context mask does not exist.
        ValueError: --sweep is given with masks, or its curve would overwrite the JSON file.
    """
    if command.sweep and command.json and command.json.suffix in (".png", ".pdf"):
        raise ValueError(f"--json {command.json}: --sweep writes its curve there; name it .json")
    if command.sweep and predictions.kind == "mask":
        raise ValueError(f"--sweep needs CAMs: {command.pred_dir} holds masks")
    if command.context is not None:
        require_files(command.context, image_ids, ".png", what="context masks", stage="data.toy")
    threshold = command.bg_threshold
    if threshold is None:
        post = post_of(command.pred_dir) if predictions.kind == "cam" else Post()
        threshold = post.threshold
    sweep = Sweep.empty(catalog.num_classes) if command.sweep else None
    return Evaluation(catalog.num_classes, threshold, command.pred_255, sweep)


def warn_of_colours(catalog: Catalog, image_ids: Sequence[str], predictions: Predictions) -> None:
    """Print a warning if the palette of a mask has the benchmark's colours at other class indices.

    Such a mask has other classes than it seems to have in a viewer.
    """
    if not dist.is_main():
        return
    warnings = [colour_warning(map(catalog.mask_path, image_ids))]
    if predictions.kind == "mask":
        warnings.append(colour_warning(map(predictions.path, image_ids)))
    for warning in filter(None, warnings):
        print(printable(warning), file=sys.stderr)


def score_image(
    image_id: str,
    catalog: Catalog,
    predictions: Predictions,
    evaluation: Evaluation,
    context: Path | None,
) -> None:
    """Read the prediction and the ground truth of an image, and count them in `evaluation`.

    Args:
        image_id: The image.
        catalog: The dataset, which has the ground truth.
        predictions: The masks or CAMs to score.
        evaluation: Receives the counts.
        context: The folder of context masks, for the leak score; None to compute no leak.

    Raises:
        FileNotFoundError: The ground truth or the prediction does not exist, or labels are needed
            and missing.
        ValueError: A file is broken or does not fit the image; names the file.
    """
    label = functools.partial(catalog.label, image_id)
    truth = catalog.read_mask(image_id)
    around = None
    if context is not None:
        around = read_mask(spelled(context, f"{image_id}.png"), catalog.num_classes)
    prediction = predictions.read(image_id, num_classes=catalog.num_classes, label=label)
    try:
        mask = evaluation.add(truth, prediction)
        if around is not None:
            evaluation.add_context(around, mask, label())
    except ValueError as error:
        raise ValueError(f"{predictions.path(image_id)}: {error}") from error


def protocol_of(
    catalog: Catalog, images: ImageList, predictions: Predictions, threshold: float
) -> dict[str, Any]:
    """Return the entries of the JSON document that tell what was scored, and by which rules."""
    rule = f"foreground above the background threshold {threshold:g}"
    return {
        "dataset": catalog.name,
        "list": images.name,
        "list_sha256": images.sha256,
        "images": len(images.ids),
        "kind": predictions.kind,
        "bg_threshold": threshold if predictions.kind == "cam" else None,
        "threshold": rule if predictions.kind == "cam" else "no threshold: masks as they are",
    }


def report(
    command: Command, catalog: Catalog, evaluation: Evaluation, protocol: dict[str, Any]
) -> None:
    """Print the table of scores, and write the files that the flags name.

    With --json these are the JSON document and, in a run directory, TensorBoard's scores. With
    --sweep a PNG of the threshold curve follows, beside the JSON file.

    Args:
        command: The flags.
        catalog: The dataset, which names the classes.
        evaluation: The counts of all images.
        protocol: Further entries of the document; see `protocol_of`.
    """
    document = document_of(evaluation, catalog.class_names, protocol)
    if command.context is not None:
        document["leak"] = leak_of(evaluation, catalog.class_names)
    print(table_of(document))
    if not evaluation.confusion[:, 1:].any():
        where = command.pred_dir
        print(f"warning: no prediction in {where} has a pixel of a class", file=sys.stderr)
    if command.json is not None:
        write_json(command.json, document)
        write_board(command.json, document)
        if "sweep" in document:
            write_curve(command.json.with_suffix(".png"), document)


if __name__ == "__main__":
    run_stage(main)
