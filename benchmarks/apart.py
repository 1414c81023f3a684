"""Time the parts of a training step, waiting for the device at the boundary of every part."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arithmetic import Call
from benchmarks.timing import Timer, timed_functions
from network import heads, losses, maps, pixel_correlation
from network.contrast import background, cells, info_nce, nroi, prototypes, queries
from network.methods import Method
from tool.progress import Progress
from tool.train.engine import to_device, total_loss

LIBRARIES = (background, cells, heads, info_nce, losses, maps, nroi, pixel_correlation)
LIBRARIES += (prototypes, queries)
UNTIMED = 3  # first steps: the second is the first with a filled bank
STEPS = 1000  # the length of the run to which the steps pretend to belong


@dataclasses.dataclass
class Bench:
    """The objects that a training step consists of, and how it is measured.

    Attributes:
        method: The method, on the device.
        optimizer: The optimizer of its parameters.
        batches: Batches of the loader, at least 2 * (`repeats` + `UNTIMED`).
        transform: A function that finishes a batch on the device for the method.
        device: The device that computes.
        amp: Whether to use bf16 autocast.
        repeats: Number of timed steps per measurement.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    batches: Iterator[dict[str, Any]]
    transform: Callable[[dict[str, Any]], dict[str, Any]]
    device: torch.device
    amp: bool
    repeats: int


class Detached(nn.Module):
    """A backbone whose taps are leaves of the graph, so that its backward can be timed by itself.

    It has the children of the backbone as its own. So all tensors keep their names, by which a
    target network finds them.

    Attributes:
        taps: The taps that the backbone declares.
        real: The backbone's maps since `begin`.
        leaves: The leaves that were returned in place of these maps, in the same order.
        calls: The calls since `begin`.
    """

    def __init__(self, backbone: nn.Module, timer: Timer) -> None:
        super().__init__()
        for kind in ("_parameters", "_buffers", "_modules"):
            self.__dict__[kind] = backbone.__dict__[kind]
        object.__setattr__(self, "backbone", backbone)  # not registered: it would be a child
        self.timer, self.taps = timer, backbone.taps
        self.begin()

    def begin(self) -> None:
        """Forget the last step."""
        self.real: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.calls: list[Call] = []

    def forward(self, image: Tensor, names: Sequence[str] = ("high",)) -> dict[str, Tensor]:
        """Return the taps as leaves; see `Backbone.forward`."""
        with self.timer.part("backbone forward"):
            taps = self.backbone(image, names)
        # Cut the graph here. `one_step` continues the backward from the leaves' gradients.
        leaves = {name: tap.detach().requires_grad_() for name, tap in taps.items()}
        self.calls.append(Call(tuple(image.shape), tuple(names)))
        self.real += taps.values()
        self.leaves += leaves.values()
        return leaves


def apart(bench: Bench) -> tuple[Timer, list[Call]]:
    """Return the times of the parts of the timed steps, and the backbone's calls in a step."""
    method, timer = bench.method, Timer()
    cut = Detached(method.backbone, timer)
    users = [sys.modules[item.__module__] for item in type(method).__mro__]
    method.backbone = cut
    try:
        with timed_functions(timer, users, LIBRARIES):
            for step in range(bench.repeats + UNTIMED):
                cut.begin()
                one_step(bench, cut, Progress(step=step, steps=STEPS))
                timer.end_lap()
    finally:
        method.backbone = cut.backbone
    del timer.laps[:UNTIMED]
    return timer, cut.calls


def one_step(bench: Bench, cut: Detached, progress: Progress) -> None:
    """Take a step as the engine does, and compute the backward of each term by itself too.

    Args:
        bench: The objects of the step.
        cut: The detached backbone, which is the method's.
        progress: The position of the step in the run.
    """
    method, timer = bench.method, cut.timer
    # The batch.
    with timer.part("load"):
        batch = next(bench.batches)
    with timer.part("to device"):
        batch = to_device(batch, bench.device)
    with timer.part("finish"):
        batch = bench.transform(batch)
    bench.optimizer.zero_grad(set_to_none=True)
    # The forward. The backbone's time in it is a part of its own.
    with (
        timer.part("method"),
        torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.amp),
    ):
        terms = method(method.before_losses(batch, progress), progress)
    # The backward of each term by itself, down to the taps and the heads.
    inputs = cut.leaves + head_parameters(method, cut)
    for name, term in terms.items():
        with timer.part(f"backward of {name}"):
            torch.autograd.grad(term, inputs, retain_graph=True, allow_unused=True)
    # The step's own backward: that of the sum down to the taps, then that of the backbone from the
    # gradients of the leaves.
    with timer.part("backward of all terms"):
        total_loss(terms, method.weights()).backward()
    pairs = [(tap, leaf.grad) for tap, leaf in zip(cut.real, cut.leaves, strict=True)]
    reached = [(tap, grad) for tap, grad in pairs if grad is not None and tap.requires_grad]
    with timer.part("backbone backward"):
        if reached:  # irn's backbone is frozen whole
            torch.autograd.backward(*map(list, zip(*reached, strict=True)))
    with timer.part("optimizer"):
        bench.optimizer.step()
    with timer.part("bank"):
        method.after_step(progress)


def head_parameters(method: Method, cut: Detached) -> list[nn.Parameter]:
    """Return the trained parameters outside the backbone."""
    inside = {id(parameter) for parameter in cut.backbone.parameters()}
    return [p for p in method.parameters() if p.requires_grad and id(p) not in inside]
