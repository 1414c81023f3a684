"""The report of an evaluation: the JSON document, the table, the picture of the threshold curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tool.files import atomic_path
from tool.score.evaluation import Evaluation
from tool.score.metrics import THRESHOLDS
from tool.score.truth import no_foreground

ORACLE_NOTE = "oracle: chosen on ground truth"


def document_of(evaluation: Evaluation, class_names: Sequence[str], protocol: dict) -> dict:
    """Return the JSON document of an evaluation; scores are in percent, None where undefined.

    Args:
        evaluation: The evaluation after its pass over the images.
        class_names: The K foreground names.
        protocol: Facts of the run: what was scored, and how. It has `images`, and for `table_of`
            and `write_curve` also `kind`, `threshold`, `bg_threshold`, `ground_truth` and
            `ground_truth_sha256`. The document gets a copy of it with the counts of the pass.

    Returns:
        {"miou", "iou", "precision", "recall", "images", "protocol"}, where `iou`, `precision` and
        `recall` map each name to its score. With a sweep that matters, also "sweep", the pairs of a
        threshold and its mIoU, and "oracle", the best pair.

    Raises:
        ValueError: No pixel was scored, or no ground truth has a foreground pixel.
    """
    names = ["background", *class_names]
    scores = evaluation.scores()
    if not evaluation.confusion[1:].any():
        raise ValueError(no_foreground(protocol.get("ground_truth"), len(class_names)))
    # The classes in neither truth nor prediction, which the mean leaves out.
    absent = [name for name, value in zip(names, scores.iou, strict=True) if math.isnan(value)]
    document = {
        "miou": 100 * scores.miou,
        "iou": _by_name(names, scores.iou),
        "precision": _by_name(names, scores.precision),
        "recall": _by_name(names, scores.recall),
        "images": protocol["images"],
        "protocol": {
            **protocol,
            **_rule_of_rows(evaluation, protocol),
            "ground_truth_255": "not scored",
            "pred_255": evaluation.pred_255,
            "pred_255_pixels": evaluation.unknown_pixels,
            "cams_with_background_row": evaluation.background_rows,
            "classes_in_mean": len(names) - len(absent),
            "classes_left_out": {"count": len(absent), "names": absent},
        },
    }
    # A curve is of use only if a threshold decides at least one CAM.
    if evaluation.sweep is not None and not _only_rows(evaluation):
        curve = [100 * scores.miou for scores in evaluation.sweep.scores()]
        document["sweep"] = [list(pair) for pair in zip(THRESHOLDS.tolist(), curve, strict=True)]
        document["oracle"] = document["sweep"][int(np.argmax(curve))]
        document["protocol"]["oracle"] = ORACLE_NOTE
    return document


def _only_rows(evaluation: Evaluation) -> bool:
    """Return whether every CAM with a class has a background row, so that no threshold acts."""
    return evaluation.background_rows > 0 and not evaluation.thresholded


def _rule_of_rows(evaluation: Evaluation, protocol: dict) -> dict:
    """Return the entries that replace those of the threshold if background rows decide CAMs.

    Args:
        evaluation: The evaluation.
        protocol: The protocol, whose `threshold` is text.

    Returns:
        Entries of the protocol; {} if no CAM has a background row.
    """
    if _only_rows(evaluation):
        rule = "no threshold: the CAMs have a background row, and the best row wins"
        return {"threshold": rule, "bg_threshold": None}
    if evaluation.background_rows:
        rows = f"the best row wins in {evaluation.background_rows} CAMs with a background row"
        return {"threshold": f"{protocol['threshold']}; {rows}"}
    return {}


def leak_of(evaluation: Evaluation, class_names: Sequence[str]) -> dict:
    """Return the leak score in percent: over all context pixels, and per class.

    Args:
        evaluation: The evaluation after its pass over images with context maps.
        class_names: The K foreground names.

    Returns:
        {"overall", "class": {name: percent}, "pixels", "leaked"}. A percentage is None if there are
        no context pixels.
    """
    total, leaked = evaluation.leak  # (K,) each
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN, which becomes None
        shares = leaked / total
    pixels, hits = int(total.sum()), int(leaked.sum())
    return {
        "overall": 100 * hits / pixels if pixels else None,
        "class": _by_name(class_names, shares),
        "pixels": pixels,
        "leaked": hits,
    }


def _by_name(names: Sequence[str], shares: np.ndarray) -> dict[str, float | None]:
    """Return shares in [0, 1] in percent by name, None for NaN."""
    pairs = zip(names, shares.tolist(), strict=True)
    return {name: None if math.isnan(share) else 100 * share for name, share in pairs}


def table_of(document: dict) -> str:
    """Return the table to print: one row per class, then the mean and the protocol.

    The oracle and the leak follow if the document has them.

    Args:
        document: The document as `document_of` returns it, perhaps with "leak" from `leak_of`.
    """
    width = max(len(name) for name in (*document["iou"], "class"))
    columns = ("iou", "precision", "recall")
    lines = [f"{'class':{width}}  {'IoU':>9}  {'precision':>9}  {'recall':>9}"]
    for name in document["iou"]:
        cells = [_cell(document[column][name]) for column in columns]
        lines.append(f"{name:{width}}  {'  '.join(cells)}")
    protocol = document["protocol"]
    left_out = protocol["classes_left_out"]["count"]
    lines.append(
        f"mIoU {document['miou']:.2f} over {protocol['classes_in_mean']} classes "
        f"({left_out} in neither truth nor prediction left out), {document['images']} images, "
        f"{protocol['kind']}s, {protocol['threshold']}"
    )
    digest = protocol["ground_truth_sha256"]
    lines.append(f"ground truth: {protocol['ground_truth']}, SHA-256 {digest[:16]}")
    pixels, rule = protocol["pred_255_pixels"], protocol["pred_255"]
    lines.append(f"predicted 255: {pixels} pixels, rule: {rule}")
    if "oracle" in document:
        threshold, percent = document["oracle"]
        lines.append(f"best threshold {threshold:.2f}: mIoU {percent:.2f} ({ORACLE_NOTE})")
    if "leak" in document:
        leak = document["leak"]
        lines.append(
            f"leak {_cell(leak['overall']).strip()} % of {leak['pixels']} context pixels "
            "labelled as the object"
        )
    return "\n".join(lines)


def _cell(percent: float | None) -> str:
    """Return a table cell of 9 characters, with a dash for None."""
    return f"{'-':>9}" if percent is None else f"{percent:9.2f}"


def write_curve(path: Path, document: dict) -> None:
    """Draw the mIoU over the threshold, and mark the threshold in use and the oracle.

    Args:
        path: The PNG file. A PDF for a paper is written beside it.
        document: As `document_of` returns it, with "sweep" and "oracle". The threshold in use is
            the `bg_threshold` of its protocol, a number.

    Raises:
        OSError: A file could not be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    thresholds, curve = zip(*document["sweep"], strict=True)
    axes.plot(thresholds, curve)
    threshold, best = document["oracle"]
    used = document["protocol"]["bg_threshold"]
    axes.plot([used], [document["miou"]], "s", label=f"{used:g} (in use): {document['miou']:.2f}")
    axes.plot([threshold], [best], "o", label=f"{threshold:.2f}: {best:.2f} ({ORACLE_NOTE})")
    axes.set(xlabel="background threshold", ylabel="mIoU, %", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    with atomic_path(path.with_suffix(".pdf")) as temporary:
        figure.savefig(temporary, format="pdf", metadata={"CreationDate": None})
