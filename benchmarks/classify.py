"""Score the classification of checkpoints on the image labels of a list: loss and mAP.

It reads image labels and no masks. So a recipe may be chosen by these scores, on images that were
not used in training.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import JsonFlags, Rows, row
from data.dataset import InferDataset
from data.readable import ListFlags, open_list
from network.methods import Method
from network.weights.restore import restore
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.infer.multiscale import network_input
from tool.infer.scales import Views
from tool.parallel.device import pick_device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """The flags of this command.

    Attributes:
        checkpoint: Checkpoints of methods that classify.
        device: Where to compute, such as cpu, cuda or cuda:1.
    """

    checkpoint: tuple[Path, ...] = flag(metavar="FILE")
    device: str = "auto"
    data: ListFlags


def main(argv: Sequence[str] | None = None) -> None:
    """Print the loss and the mAP of each checkpoint."""
    command = parse_flags(Command, argv, example="--checkpoint out/toy-cam-seed0/checkpoint.pth")
    catalog, images = open_list(command.data)
    device = pick_device(command.device)
    rows = Rows(
        command.json, row("{name}", "{loss:.4f}", "{map:.1f}"), "checkpoint", "loss", "mAP, %"
    )
    for path in command.checkpoint:
        method, _ = restore(path, class_names=catalog.class_names, report=print)
        method.to(device).eval()
        dataset = InferDataset(catalog, images.ids, views=Views(), inputs=("image", "label"))
        probability, label = classified(method, dataset, device)
        rows.add(name=str(path), **scores(probability, label))


@torch.inference_mode()
def classified(
    method: Method, dataset: InferDataset, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the method's probabilities and the labels, (n, K) each, of n images at scale 1.

    Args:
        method: The method in evaluation mode, on `device`.
        dataset: The images with their labels.
        device: The device that computes.

    Raises:
        ValueError: The method does not classify.
    """
    found, labels = [], []
    for sample in (dataset[index] for index in range(len(dataset))):
        eight_bit = sample["images"][0][None].to(device)
        image = network_input(eight_bit, method.backbone.mean, method.backbone.std, mirror=False)
        probability = method.classify({"image": image})
        if probability is None:
            raise ValueError("this method does not classify: give cam, eps, ppc or fbr")
        found.append(probability[0].float().cpu())
        labels.append(sample["label"])
    return torch.stack(found), torch.stack(labels)


def scores(probability: Tensor, label: Tensor) -> dict[str, float]:
    """Return the loss and the mAP in percent, over the classes that are present in any label.

    Args:
        probability: (n, K) in [0, 1].
        label: (n, K) {0, 1}.

    Returns:
        "loss", the binary cross-entropy, and "map", the mean of the classes' average precision.
    """
    there = label.any(dim=0)  # (K,)
    probability, label = probability[:, there].clamp(1e-7, 1 - 1e-7), label[:, there]
    precision = [
        average_precision(p, y) for p, y in zip(probability.T.numpy(), label.T.numpy(), strict=True)
    ]
    return {
        "loss": float(F.binary_cross_entropy(probability, label)),
        "map": 100 * float(np.mean(precision)),
    }


def average_precision(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the average precision of a ranking by score.

    It is the mean over the positives of the precision among the items that rank no lower.

    Args:
        score: (n,).
        truth: (n,), 1 for positives, of which there is at least one.
    """
    order = np.argsort(-score, kind="stable")
    hit = truth[order] > 0
    # hits / rank is the precision down to each rank.
    return float((hit.cumsum() / np.arange(1, len(hit) + 1))[hit].mean())


if __name__ == "__main__":
    run_stage(main)
