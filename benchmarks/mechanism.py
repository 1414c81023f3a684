"""Show on which cells the terms of `fbr` and the gate act. The figures read ground truth.

For trained checkpoints, on crops as in training, it shows:

- the share of object cells among the cells of a pseudo class, its confident cells, its hard cells
  and the queries;
- for the hard cells, the area under the ROC curve (AUC) of three scores: the cosine to the class's
  prototype and the gate, which should be high on the object, and the cosine to NROIs, which should
  be high on the background. Each is computed in Z_fg, in the features f, and in both, the two unit
  vectors concatenated;
- for every cell of the images that have a class, the AUC of the CAM, of the gate in f and of their
  product. Only these can compare runs, because the hard cells differ between runs.

The figures are for study only; nothing in training or inference uses them.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.crops import CropFlags, open_run
from benchmarks.record import Rows, row
from network.contrast.cells import Cells, class_ids_of, l2_normalize, view_cells
from network.contrast.gate import NroiGate, RegionCollector
from network.contrast.queries import hard_cells
from network.maps import image_cells, over_maximum, resize, resize_area
from network.methods import Batch
from tool.cli import run_stage
from tool.flags import parse_flags
from tool.formats.regions import Regions
from tool.parallel.device import pick_device
from tool.progress import Progress

SHARES = ("pseudo", "confident", "hard", "queries")
CURVES = ("prototype", "NROI", "gate")
SPACES = ("Z_fg", "f", "both")
EVERY = ("CAM, every", "gate, every", "product, every")
NEAREST = 8  # number of NROIs whose cosines are averaged


@dataclasses.dataclass(frozen=True)
class Seen:
    """The first view of a batch, with P classes and T cells on the contrast grid.

    Attributes:
        ids: Ids of the images, each with the number of the batch.
        label: (N, K) {0, 1}.
        cam: (N, K, h, w) in [0, 1], 0 for absent classes.
        feature: Per space the features (N, D, h, w).
        cells: Per space the cells, on the contrast grid.
        hard: (P, T) bool, the hard cells of each class.
        may: (T,) bool, the cells that may be queries.
        object: (P, T), the share of each cell that shows the class; NaN if most of the cell is
            unknown.
        class_ids: (P,) int64, the classes present in the batch, 0..K-1.
        nroi: (R, D), the NROIs that training takes from the batch.
    """

    ids: list[str]
    label: Tensor
    cam: Tensor
    feature: dict[str, Tensor]
    cells: dict[str, Cells]
    hard: Tensor
    may: Tensor
    object: Tensor
    class_ids: Tensor
    nroi: Tensor


def main(argv: Sequence[str] | None = None) -> None:
    """Print one row of figures per checkpoint."""
    command = parse_flags(
        CropFlags, argv, example="--checkpoint out/toy-fbr-seed0/checkpoint.pth", module=__name__
    )
    names = [*SHARES, *(f"{curve}, {space}" for curve in CURVES for space in SPACES), *EVERY]
    line = row("{name}", *("{" + name + ":.3f}" for name in names))
    rows = Rows(command.json, line, "checkpoint", *names)
    device = pick_device(command.device)
    for path in command.checkpoint:
        batches = list(seen_batches(command, path, device))
        rows.add(name=str(path), **figures(batches, device))


@torch.no_grad()
def seen_batches(command: CropFlags, path: Path, device: torch.device) -> Iterator[Seen]:
    """Yield the first view of each batch.

    Args:
        command: The flags.
        path: The checkpoint.
        device: The device that computes.

    Raises:
        ValueError: The checkpoint is not of `fbr`.
    """
    method, _, batches = open_run(command, path, device, masks=True, only="fbr")
    method.eval()
    for number, batch in enumerate(batches):
        yield seen(method, batch, number)


def seen(method: Any, batch: Batch, number: int) -> Seen:
    """Run `fbr` on a batch, and return its first view.

    Args:
        method: `fbr`, in evaluation mode.
        batch: A batch with the dataset's own masks.
        number: The number of the batch.
    """
    # Run the contrast as in training. It leaves the NROIs of the batch as pending values.
    views = method.views(batch)
    label, first = batch["label"], views[0]
    background = [method.project_background(view.high).float() for view in views]
    embeddings, cells = method.cells(views, batch["valid"])
    grid = embeddings[0].shape[-2:]
    method.contrast(views, background, batch["valid"], Progress(step=number, steps=10**6))
    pending = [vector[valid] for vector, valid in method._pending]
    # Make the same cells in f and in both, with prototypes of these spaces.
    inside = image_cells(batch["valid"], grid)
    score = method.pseudo_score(first, grid)
    high = resize(first.high.float(), grid)
    settings = {"bg_score": method.config.bg_score, "background": False}
    in_f = view_cells(high, score, label, inside, **settings)
    both = side_by_side(first.embedding, first.high)
    in_both = view_cells(resize(both, grid), score, label, inside, **settings)
    # Find the hard cells, and the share of each cell that shows each class.
    class_ids = class_ids_of(label)
    config = method.config
    hard = hard_cells(cells[0], class_ids, quantile=config.quantile, floor=config.floor)
    salient = resize_area(first.saliency, grid).flatten()  # (T,)
    known = resize_area((batch["mask"] != 255)[:, None].float(), grid).flatten()  # (T,)
    shown = [
        resize_area((batch["mask"] == k + 1)[:, None].float(), grid).flatten() for k in class_ids
    ]
    share = torch.stack(shown) / known.clamp(min=1e-6)  # (P, T)
    return Seen(
        [f"{number} {image_id}" for image_id in batch["image_id"]],
        label,
        over_maximum(first.score.softmax(dim=1)[:, 1:]) * label[:, :, None, None],
        {"Z_fg": first.embedding, "f": first.high.float(), "both": both},
        {"Z_fg": cells[0], "f": in_f, "both": in_both},
        hard,
        salient > config.query_saliency if config.query_saliency > 0 else salient >= 0,
        share.masked_fill(known < 0.5, torch.nan),
        class_ids,
        torch.cat(pending),
    )


def side_by_side(embedding: Tensor, high: Tensor) -> Tensor:
    """Return the unit vectors of Z_fg (N, D, h, w) and f (N, C, h, w) together, (N, D+C, h, w)."""
    return torch.cat([F.normalize(one.float(), dim=1) for one in (embedding, high)], dim=1)


@torch.no_grad()
def figures(batches: Sequence[Seen], device: torch.device) -> dict[str, float]:
    """Return the shares and the AUCs over all batches, by name.

    Args:
        batches: The first view of each batch.
        device: The device that computes.
    """
    values: dict[str, list[Tensor]] = defaultdict(list)
    # The gate of inference needs the regions of all images.
    regions = {
        space: NroiGate(collected(batches, space), device, seed=0, has_background=False)
        for space in SPACES
    }
    nroi = l2_normalize(torch.cat([one.nroi for one in batches]))
    for one in batches:
        # The share of object among four kinds of cells.
        cells = one.cells["Z_fg"]
        own = cells.pseudo[None] == one.class_ids[:, None] + 1  # (P, T)
        kinds = {"pseudo": own, "confident": own & ~one.hard, "hard": one.hard}
        kinds["queries"] = one.hard & one.may
        for name, chosen in kinds.items():
            values[name].append(one.object[chosen & one.object.isfinite()])
        # The three scores on the hard cells, in each space.
        chosen = one.hard & one.object.isfinite()
        values["truth"].append(one.object[chosen] > 0.5)
        for space in SPACES:
            cells = one.cells[space]
            vector = l2_normalize(cells.embedding)  # (T, D)
            positive = l2_normalize(cells.prototype[one.class_ids + 1])
            values[f"prototype, {space}"].append((positive @ vector.T)[chosen])
            rows = nroi if space == "Z_fg" else regions[space].region
            nearest = (vector @ rows.T).topk(min(NEAREST, len(rows)), dim=1).values.mean(dim=1)
            # Negative, because a cell near NROIs should be background.
            values[f"NROI, {space}"].append(-nearest.expand_as(chosen)[chosen])
            gate = gates(one, space, regions[space])  # (P, T)
            values[f"gate, {space}"].append(gate[chosen])
        # The scores on every cell of the images that have the class, with the gate in f.
        gate = gates(one, "f", regions["f"])
        present = one.label[:, one.class_ids].bool().T  # (P, N)
        chosen = present.repeat_interleave(gate.shape[1] // len(one.ids), dim=1)
        chosen &= one.object.isfinite()
        cam = on_cells(one, one.cam)
        values["truth of every"].append(one.object[chosen] > 0.5)
        for name, score in zip(EVERY, (cam, gate, cam * gate), strict=True):
            values[name].append(score[chosen])
    # Compute the figures over the cells of all batches.
    joined = {name: torch.cat(found).cpu().numpy() for name, found in values.items()}
    found = {name: float((joined[name] > 0.5).mean()) for name in SHARES}
    for curve in CURVES:
        for space in SPACES:
            name = f"{curve}, {space}"
            found[name] = area_under_curve(joined[name], joined["truth"])
    return found | {
        name: area_under_curve(joined[name], joined["truth of every"]) for name in EVERY
    }


def collected(batches: Sequence[Seen], space: str) -> Regions:
    """Return the regions of all images in one of `SPACES`."""
    collector = RegionCollector(batches[0].label.shape[1], seed=0, has_background=False)
    for one in batches:
        for i, image_id in enumerate(one.ids):
            collector(image_id, [one.feature[space][i]], {"cam": one.cam[i]}, one.label[i])
    return collector.regions(sorted(collector.found))


def gates(one: Seen, space: str, gate: NroiGate) -> Tensor:
    """Return the gate of each class at the cells of a batch, (P, T); 0 if an image lacks it.

    Args:
        one: The batch.
        space: The space of the features, one of `SPACES`.
        gate: A gate with the regions of that space.
    """
    whole = torch.zeros_like(one.cam)
    for i, image_id in enumerate(one.ids):
        whole[i, present_of(one, i)] = gate.gate(
            image_id, [one.feature[space][i]], one.cam[i], one.label[i]
        )[0]
    return on_cells(one, whole)


def present_of(one: Seen, image: int) -> Tensor:
    """Return the classes that are present in the image of this index, (P,) int64 in 0..K-1."""
    return one.label[image].nonzero()[:, 0]


def on_cells(one: Seen, maps: Tensor) -> Tensor:
    """Return the maps (N, K, h, w) of the batch's classes on the contrast grid, (P, T)."""
    grid = round((one.hard.shape[1] / len(one.ids)) ** 0.5)  # the grid is square
    small = F.adaptive_avg_pool2d(maps, (grid, grid))
    return small.transpose(0, 1).flatten(1)[one.class_ids]


def area_under_curve(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of (positive, negative) pairs in which the positive scores higher.

    Ties count half.

    Args:
        score: (n,).
        truth: (n,) bool, True for positives.

    Returns:
        In [0, 1]; NaN if there are no positives or no negatives.
    """
    # Count negatives and positives per distinct score, in ascending order.
    values, place = np.unique(score, return_inverse=True)
    counts = np.zeros((2, len(values)))
    np.add.at(counts, (truth.astype(int), place), 1)
    negative, positive = counts
    below = negative.cumsum() - negative  # number of negatives that score lower
    pairs = negative.sum() * positive.sum()
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else float("nan")


if __name__ == "__main__":
    run_stage(main)
