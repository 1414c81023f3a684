"""Show how much each term of a method pulls at the backbone: the lengths of their gradients.

On crops as in training, of trained checkpoints, each term times its weight; the mean of the
batches. In brackets the cosine of the term's gradient and that of the sum. Where a recipe limits
the length of a step, these say what share of it a term gets. No ground truth is read.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import JsonFlags, Rows
from data.colour import DeviceTransform
from data.dataset import TrainDataset
from data.loader import step_batches
from data.readable import ListFlags, open_list
from data.transforms import resize_of
from network.methods import Batch, Method
from network.weights.restore import restore
from tool.cli import positive_int, run_stage
from tool.flags import flag, parse_flags
from tool.infer.previous import PreviousOutputs
from tool.parallel.dist import pick_device
from tool.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """What the command line says.

    Attributes:
        checkpoint: Checkpoints of methods that read images, labels and saliency only.
        batches: Batches of 8 crops of the list.
        device: Where to compute, such as cpu, cuda or cuda:1.
    """

    checkpoint: tuple[Path, ...] = flag(metavar="FILE")
    batches: int = flag(8, type=positive_int, metavar="N")
    device: str = "auto"
    data: ListFlags


def main(argv: Sequence[str] | None = None) -> None:
    """Print the lengths of each checkpoint."""
    command = parse_flags(Command, argv, example="--checkpoint out/toy-fbr-seed0/checkpoint.pth")
    rows = Rows(command.json, "{name}: {lengths}")
    device = pick_device(command.device)
    for path in command.checkpoint:
        catalog, images = open_list(command.data, saliency=True)
        method, config = restore(path, class_names=catalog.class_names, report=print)
        method.to(device).train()
        found = pulls(method, crops(command, catalog, images.ids, method, config, device))
        text = ", ".join(
            f"{name} {length:.2f} ({cos:.2f})" for name, (length, cos) in found.items()
        )
        rows.add(name=str(path), lengths=text, terms=found)


def crops(
    command: Command,
    catalog: Any,
    ids: Sequence[str],
    method: Method,
    config: dict[str, Any],
    device: torch.device,
) -> Iterator[Batch]:
    """Yield batches as in the training of a checkpoint, without files of previous stages."""
    dataset = TrainDataset(
        catalog,
        ids,
        inputs=method.inputs,
        crop=config["crop"],
        resize=resize_of(config["scale"], config["long_side"]),
        seed=config["seed"],
        previous=PreviousOutputs({}),
    )
    transform = DeviceTransform(method.backbone.mean, method.backbone.std, device)
    for raw in step_batches(dataset, batch_size=8, start_step=0, steps=command.batches, seed=0):
        on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in raw.items()}
        yield transform(on_device)  # type: ignore[arg-type]


def pulls(method: Method, batches: Iterator[Batch]) -> dict[str, tuple[float, float]]:
    """Return per term the mean length of its gradient at the backbone, and its cosine to the sum.

    Terms of weight 0, and those whose gradient does not reach the backbone, are left out. The last
    entry, `sum`, is the gradient of all.
    """
    trained = [parameter for parameter in method.backbone.parameters() if parameter.requires_grad]
    weights = method.weights()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for step, batch in enumerate(batches):
        terms = method(batch, Progress(step=step, steps=10**6))
        vectors = {
            name: gradient_of(weights[name] * term, trained)
            for name, term in terms.items()
            if weights[name] and term.requires_grad
        }
        method.after_step(Progress(step=step, steps=10**6))
        vectors = {name: vector for name, vector in vectors.items() if vector.any()}
        vectors["sum"] = torch.stack(list(vectors.values())).sum(dim=0)
        for name, vector in vectors.items():
            cosine = torch.cosine_similarity(vector, vectors["sum"], dim=0)
            found[name].append((float(vector.norm()), float(cosine)))
    whole = found.pop("sum")
    means = {
        name: torch.tensor(pairs).mean(dim=0) for name, pairs in [*found.items(), ("sum", whole)]
    }
    return {name: (float(length), float(cosine)) for name, (length, cosine) in means.items()}


def gradient_of(term: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a term as one vector; 0 where it does not reach."""
    parts = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    whole = [
        torch.zeros_like(parameter) if part is None else part
        for part, parameter in zip(parts, parameters, strict=True)
    ]
    return torch.cat([part.flatten() for part in whole])


if __name__ == "__main__":
    run_stage(main)
