"""Show each term of a method: its value, and the length of its gradient at the backbone.

The figures are means over batches of crops as in training, for trained checkpoints. The value is
that of the term without its weight; the length is that of the gradient with it. In brackets is the
cosine between the term's gradient and that of the sum. If a recipe limits the length of a step, the
lengths show which share of it each term has. On a list that was not used in training, the values
can serve to judge a recipe. No ground truth is read.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.crops import CropFlags, open_run
from benchmarks.record import Rows
from network.methods import Batch, Method
from tool.cli import run_stage
from tool.flags import parse_flags
from tool.parallel.device import pick_device
from tool.progress import Progress


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per checkpoint, with the figures of each term."""
    command = parse_flags(
        CropFlags, argv, example="--checkpoint out/toy-fbr-seed0/checkpoint.pth", module=__name__
    )
    rows = Rows(command.json, "{name}: {lengths}")
    for path in command.checkpoint:
        method, _, batches = open_run(command, path, pick_device(command.device))
        found = pulls(method.train(), batches)
        text = ", ".join(
            f"{name} {value:.3f}: {length:.2f} ({cosine:.2f})"
            for name, (value, length, cosine) in found.items()
        )
        rows.add(name=str(path), lengths=text, terms=found)


def pulls(method: Method, batches: Iterator[Batch]) -> dict[str, tuple[float, float, float]]:
    """Return the mean value, gradient length and cosine of each term over batches.

    Args:
        method: The method, in training mode.
        batches: The batches, at least one.

    Returns:
        Name -> the value without the weight, the length of the weighted term's gradient at the
        backbone, and the cosine of that gradient to the gradient of the sum. Terms of weight 0, and
        those whose gradient does not reach the backbone, are left out. The last entry, `sum`, is
        the weighted sum.
    """
    trained = [parameter for parameter in method.backbone.parameters() if parameter.requires_grad]
    weights = method.weights()
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for step, batch in enumerate(batches):
        terms = method(batch, Progress(step=step, steps=10**6))
        # The gradient of each weighted term as one vector.
        vectors = {
            name: gradient_of(weights[name] * term, trained)
            for name, term in terms.items()
            if weights[name] and term.requires_grad
        }
        method.after_step(Progress(step=step, steps=10**6))
        # The gradient of the sum is the sum of the gradients.
        vectors = {name: vector for name, vector in vectors.items() if vector.any()}
        values = {name: float(terms[name].detach()) for name in vectors}
        values["sum"] = sum(weights[name] * value for name, value in values.items())
        vectors["sum"] = torch.stack(list(vectors.values())).sum(dim=0)
        for name, vector in vectors.items():
            cosine = torch.cosine_similarity(vector, vectors["sum"], dim=0)
            found[name].append((values[name], float(vector.norm()), float(cosine)))
    whole = found.pop("sum")
    return {
        name: tuple(torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist())
        for name, rows in [*found.items(), ("sum", whole)]
    }


def gradient_of(term: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the gradient of a term as one vector, 0 for parameters that it does not reach.

    Args:
        term: A scalar; its graph is kept.
        parameters: The parameters, in the order of the vector.
    """
    parts = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    whole = [
        torch.zeros_like(parameter) if part is None else part
        for part, parameter in zip(parts, parameters, strict=True)
    ]
    return torch.cat([part.flatten() for part in whole])


if __name__ == "__main__":
    run_stage(main)
