"""Show what `sfc` makes of a classifier's CAM. The figures read ground truth.

For trained checkpoints, on crops as in training, it shows four maps: the CAM before the pixel
correlation, after one and after both of its applications, and that of the prototypes. Per map:

- its area, the mean share of an image where a present class is above half of its maximum;
- its mIoU where the best row wins, the background's row included;
- the best mIoU over thresholds on the classes alone, and that threshold: an oracle.

The area of the objects themselves stands in the last column. The figures are for study only;
nothing in training or inference uses them.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.crops import CropFlags, open_run
from benchmarks.record import Rows, row
from network.calibration.maps import aligned, normal_cam, over_shifted_background
from network.maps import image_cells, over_maximum, with_background_label
from network.methods import Batch
from tool.cli import run_stage
from tool.flags import parse_flags
from tool.parallel.device import pick_device
from tool.score.metrics import count_confusion, scores_of

THRESHOLDS = np.arange(20) / 20


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row of figures per checkpoint and map."""
    command = parse_flags(
        CropFlags,
        argv,
        example="--checkpoint out/toy-sfc-seed0/1-sfc/checkpoint.pth",
        module=__name__,
    )
    line = (
        "{name}",
        "{map}",
        "{area:.3f}",
        "{miou:.1f}",
        "{best:.1f} ({threshold:.2f})",
        "{truth:.3f}",
    )
    rows = Rows(
        command.json,
        row(*line),
        "checkpoint",
        "map",
        "area",
        "mIoU",
        "mIoU, best",
        "area of objects",
    )
    device = pick_device(command.device)
    for path in command.checkpoint:
        for name, found in figures(command, path, device).items():
            rows.add(name=str(path), map=name, **found)


@torch.no_grad()
def figures(command: CropFlags, path: Path, device: torch.device) -> dict[str, dict[str, float]]:
    """Return {map: {figure: value}} over the crops of a checkpoint.

    Raises:
        ValueError: The checkpoint is not of `sfc`.
    """
    method, _, batches = open_run(command, path, device, masks=True, only="sfc")
    method.eval()
    counted: dict[str, Counted] = {}
    for batch in batches:
        truth, label = batch["mask"].cpu().numpy(), batch["label"]
        for name, maps in maps_of(method, batch):
            of_map = counted.setdefault(name, Counted(method.num_classes))
            whole = aligned(maps, truth.shape[-2:])  # (N, K+1, H, W)
            for i in range(len(truth)):
                shifted = over_shifted_background(whole[i], bg_shift=method.config.bg_shift)
                of_map.add(shifted, label[i], truth[i])
    return {name: one.figures() for name, one in counted.items()}


def maps_of(method: Any, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield names and maps (N, K+1, h, w), background first, 0 for absent classes.

    Args:
        method: `sfc`, in evaluation mode.
        batch: `image`, `valid` and `label`.
    """
    image, valid, label = batch["image"], batch["valid"], batch["label"]
    taps = method.backbone(image, method.side.names)
    high = taps["high"]
    size = high.shape[-2:]
    inside = image_cells(valid, size).float()
    present = inside * with_background_label(label)
    cam = normal_cam(method.classifier(high).float(), present) * present
    affinity = method.correlation.affinity(high, aligned(image, size), inside)
    once = cam.flatten(2) @ affinity
    twice = (once @ affinity).unflatten(2, size)
    yield "CAM", cam
    yield "correlated once", once.unflatten(2, size) * present
    yield "correlated twice", twice * present
    yield "prototypes", method.prototypes(method.side(taps, valid), twice, present, peaks=True)


class Counted:
    """The counts behind the figures of a map.

    Args:
        num_classes: K, without background.
    """

    def __init__(self, num_classes: int) -> None:
        side = num_classes + 1
        self.num_classes = num_classes
        self.winner = np.zeros((side, side), np.int64)
        self.above = np.zeros((len(THRESHOLDS), side, side), np.int64)
        self.areas: list[float] = []
        self.objects: list[float] = []

    def add(self, maps: Tensor, label: Tensor, truth: np.ndarray) -> None:
        """Count an image.

        Args:
            maps: (K+1, H, W) in [0, 1], background first.
            label: (K,) {0, 1}.
            truth: (H, W), 0..K, and 255 for unknown.
        """
        classes = over_maximum(maps[None, 1:])[0] * label[:, None, None]  # (K, H, W)
        best, winner = (one.cpu().numpy() for one in classes.max(dim=0))
        known = truth != 255
        self.winner += count_confusion(truth, _best_row(maps, label), self.num_classes)
        for number, threshold in enumerate(THRESHOLDS):
            mask = np.where(best > threshold, winner + 1, 0)
            self.above[number] += count_confusion(truth, mask, self.num_classes)
        for k in label.nonzero()[:, 0].tolist():
            if known.any():
                self.areas.append(float((classes[k].cpu().numpy() > 0.5)[known].mean()))
                self.objects.append(float((truth == k + 1)[known].mean()))

    def figures(self) -> dict[str, float]:
        """Return the figures by name, mIoU in percent."""
        best = [100 * scores_of(one).miou for one in self.above]
        return {
            "area": float(np.mean(self.areas)),
            "miou": 100 * scores_of(self.winner).miou,
            "best": max(best),
            "threshold": float(THRESHOLDS[int(np.argmax(best))]),
            "truth": float(np.mean(self.objects)),
        }


def _best_row(maps: Tensor, label: Tensor) -> np.ndarray:
    """Return the row (H, W) of `maps` that is largest, of the background and present classes."""
    present = torch.cat([label.new_ones(1), label])[:, None, None]
    return (maps * present).argmax(dim=0).cpu().numpy()


if __name__ == "__main__":
    run_stage(main)
