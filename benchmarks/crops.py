"""The flags and the crops of commands that examine the batches of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import JsonFlags
from data.colour import DeviceTransform
from data.dataset import TrainDataset
from data.fields import TRUTH
from data.loader import step_batches
from data.readable import ListFlags, open_list
from data.transforms import resize_of
from network.methods import Batch, Method
from network.weights.restore import restore
from tool.flags import flag
from tool.infer.previous import PreviousOutputs
from tool.ranges import POSITIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropFlags(JsonFlags):
    """The flags of commands that examine the batches of a training run.

    Attributes:
        checkpoint: Checkpoints of methods that read images, labels and saliency only.
        batches: Number of batches, of 8 crops each.
        device: Where to compute, such as cpu, cuda or cuda:1.
    """

    checkpoint: tuple[Path, ...] = flag(metavar="FILE")
    batches: int = flag(8, type=POSITIVE, metavar="N")
    device: str = "auto"
    data: ListFlags


def open_run(
    command: CropFlags,
    path: Path,
    device: torch.device,
    *,
    masks: bool = False,
    only: str | None = None,
) -> tuple[Method, Mapping[str, Any], Iterator[Batch]]:
    """Open a checkpoint and the crops on which its terms are examined.

    Args:
        command: The flags. They name the image list and the number of batches.
        path: The checkpoint.
        device: The device of the method and the batches.
        masks: Whether each batch has the ground-truth masks, under the key `mask`.
        only: The only method whose checkpoints are taken; None for any.

    Returns:
        The method with its weights; the configuration of its run; and an iterator over
        `command.batches` batches of 8 crops. Crop, resize and seed of the augmentation are those
        of the run, and the colour jitter is on. The images are in the order of a run with seed 0,
        whatever the checkpoint.

    Raises:
        FileNotFoundError: The checkpoint, the list, an image or one of its maps is missing.
        ValueError: The checkpoint cannot be read, is not of the method `only`, or its classes are
            not those of the dataset.
    """
    catalog, images = open_list(command.data, saliency=True, masks=masks)
    method, config = restore(path, class_names=catalog.class_names, report=print)
    if only not in (None, config["method"]):
        raise ValueError(f"{path} is of {config['method']}: give checkpoints of {only}")
    method.to(device)
    dataset = TrainDataset(
        catalog,
        images.ids,
        inputs=(*method.inputs, "mask") if masks else method.inputs,
        crop=config["crop"],
        resize=resize_of(config["scale"], config["long_side"]),
        seed=config["seed"],
        previous=PreviousOutputs({"mask": TRUTH} if masks else {}),
    )
    transform = DeviceTransform(method.backbone.mean, method.backbone.std, device)

    def batches() -> Iterator[Batch]:
        for raw in step_batches(dataset, batch_size=8, start_step=0, steps=command.batches, seed=0):
            on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in raw.items()}
            yield transform(on_device)  # type: ignore[arg-type]

    return method, config, batches()
