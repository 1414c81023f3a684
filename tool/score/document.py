"""The report of an evaluation: the JSON document, the table, the picture of the threshold curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tool.files import atomic_path
from tool.score.evaluation import Evaluation
from tool.score.metrics import THRESHOLDS

ORACLE_NOTE = "oracle: chosen on ground truth"


def document_of(evaluation: Evaluation, class_names: Sequence[str], protocol: dict) -> dict:
    """Return the JSON document in percent, with None (null) for what is not defined.

    Args:
        evaluation: The evaluation after its pass over the images.
        class_names: The K foreground names.
        protocol: What was scored and how. The counts of the pass are added to it.

    Raises:
        ValueError: No pixel was scored, or no ground truth has a foreground pixel.
    """
    names = ["background", *class_names]
    scores = evaluation.scores()
    if not evaluation.confusion[1:].any():
        raise ValueError(
            f"no ground truth in {protocol.get('ground_truth')} has a pixel of a class: a mask has "
            f"class indices, 0 for background, 1..{len(class_names)}, and 255 for not scored"
        )
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
    if evaluation.sweep is not None and not _only_rows(evaluation):
        curve = [100 * scores.miou for scores in evaluation.sweep.scores()]
        document["sweep"] = [list(pair) for pair in zip(THRESHOLDS.tolist(), curve, strict=True)]
        document["oracle"] = document["sweep"][int(np.argmax(curve))]
        document["protocol"]["oracle"] = ORACLE_NOTE
    return document


def _only_rows(evaluation: Evaluation) -> bool:
    """Return whether background rows decide every CAM, so that no threshold plays a part."""
    return evaluation.background_rows > 0 and not evaluation.thresholded


def _rule_of_rows(evaluation: Evaluation, protocol: dict) -> dict:
    """Return what the protocol says in place of a threshold, where background rows decide."""
    if _only_rows(evaluation):
        rule = "no threshold: the CAMs have a background row, and the best row wins"
        return {"threshold": rule, "bg_threshold": None}
    if evaluation.background_rows:
        rows = f"the best row wins in {evaluation.background_rows} CAMs with a background row"
        return {"threshold": f"{protocol['threshold']}; {rows}"}
    return {}


def leak_of(evaluation: Evaluation, class_names: Sequence[str]) -> dict:
    """Return the leak score in percent: pooled over all context pixels, and per class.

    Returns:
        {"overall", "class": {name: percent}, "pixels", "leaked"}. A percent is None if there is no
        context to score.
    """
    total, leaked = evaluation.leak
    with np.errstate(invalid="ignore"):
        shares = leaked / total
    pixels, hits = int(total.sum()), int(leaked.sum())
    return {
        "overall": 100 * hits / pixels if pixels else None,
        "class": _by_name(class_names, shares),
        "pixels": pixels,
        "leaked": hits,
    }


def _by_name(names: Sequence[str], shares: np.ndarray) -> dict[str, float | None]:
    """Return the shares in percent by name, None for NaN."""
    pairs = zip(names, shares.tolist(), strict=True)
    return {name: None if math.isnan(share) else 100 * share for name, share in pairs}


def table_of(document: dict) -> str:
    """Return the table to print: one row per class, the mean, the protocol, the oracle, the leak.

    The oracle and the leak are there only if the document has them.
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
    """Write the threshold curve, with the threshold in use and the oracle marked.

    Args:
        path: The picture, a PNG. A PDF for a paper goes beside it.
        document: With its sweep.
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
