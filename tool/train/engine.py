"""The training loop. It knows no task: a method gives named terms and their weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tool.parallel import dist
from tool.progress import Progress
from tool.train.log import RunLog


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run is driven.

    Attributes:
        steps: of the whole run. batch_size: global. accumulate: micro-batches a step.
        power: of the polynomial decay of the rates. warmup: steps of a linear rise.
        log_every, save_every, picture_every: in steps, and after the last one; 0 for no
            pictures.
        amp: bf16 autocast.
    """

    steps: int
    batch_size: int
    power: float = 0.9
    warmup: int = 0
    accumulate: int = 1
    log_every: int = 20
    save_every: int = 200
    picture_every: int = 0
    amp: bool = False


class Interrupt:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


class History:
    """The terms since the last fetch, kept on the device: reading them is the only wait."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, Tensor, list[str]]] = []
        self._names: list[str] = []

    def add(self, step: int, values: dict[str, Tensor], image_ids: list[str]) -> None:
        """Remember one (micro-)step's detached scalars."""
        self._names = list(values)
        row = torch.stack([value.detach().float() for value in values.values()])
        self._rows.append((step, row, image_ids))

    def fetch(self) -> dict[str, float]:
        """The mean of each scalar since the last call, over all ranks.

        Raises:
            FloatingPointError: one of them is not finite; names the step, every term and the
                images.
        """
        if not self._rows:
            return {}
        rows = torch.stack([row for _, row, _ in self._rows])
        ranks = dist.gather(rows[None]).cpu()
        images = [image_ids for _, _, image_ids in self._rows]
        bad = (~ranks[dist.rank()].isfinite()).any(dim=1).nonzero()
        anywhere = (~ranks.isfinite()).flatten(0, 1).any()
        if len(bad):
            index = int(bad[0])
            terms = zip(self._names, ranks[dist.rank(), index].tolist(), strict=True)
            raise FloatingPointError(
                f"step {self._rows[index][0]}: the loss is not finite: "
                + ", ".join(f"{name} {value:.4g}" for name, value in terms)
                + f"; images {', '.join(images[index])}"
            )
        if anywhere:
            raise FloatingPointError("the loss is not finite on another rank")
        self._rows = []
        return dict(zip(self._names, ranks.mean(dim=(0, 1)).tolist(), strict=True))


def total_loss(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum of the terms.

    Raises:
        ValueError: the two do not name the same terms.
    """
    if set(terms) != set(weights):
        raise ValueError(
            f"terms and weights differ: {', '.join(sorted(set(terms) ^ set(weights)))}"
        )
    return sum(weights[name] * term for name, term in terms.items())


def set_rates(optimizer: torch.optim.Optimizer, progress: Progress, settings: Settings) -> float:
    """Each group's rate is its initial one times a factor of the step alone; that factor.

    (1 - step / steps) ** power, times (step + 1) / warmup during the warm-up.
    """
    factor = (1 - progress.step / progress.steps) ** settings.power
    if progress.step < settings.warmup:
        factor *= (progress.step + 1) / settings.warmup
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return factor


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def split(batch: dict[str, Any], parts: int) -> Iterator[dict[str, Any]]:
    """`parts` equal micro-batches in image order."""
    size = len(batch["image_id"]) // parts
    for first in range(0, size * parts, size):
        yield {key: value[first : first + size] for key, value in batch.items()}


def fit(
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict[str, Any]],
    *,
    start: Progress,
    settings: Settings,
    device: torch.device,
    finish: Callable[[dict[str, Any]], dict[str, Any]],
    log: RunLog | None,
    save: Callable[[int], None],
) -> int | None:
    """Train from `start.step` to the end of `batches`.

    Args:
        method: on `device`; obeys the contract of `network.methods`.
        batches: this rank's, one a step, beginning at `start.step`.
        finish: makes the batch, on the device, what the method expects.
        log: rank 0's; None elsewhere.
        save: writes a checkpoint that says how many steps are done.

    Returns:
        None when the run is complete, else the signal that ended it; the checkpoint is saved either
        way.

    Raises:
        FloatingPointError: a loss is not finite; the last checkpoint stays as it is.
    """
    model = method
    if dist.world_size() > 1:
        model = distributed(method)
    method.train()
    history, clock = History(), Clock(settings.batch_size, start.step)
    bar = tqdm(total=settings.steps, initial=start.step, disable=log is None, mininterval=1.0)
    with Interrupt() as interrupt, bar:
        for step, batch in enumerate(batches, start=start.step):
            progress = dataclasses.replace(start, step=step)
            batch = finish(to_device(batch, device))
            factor = set_rates(optimizer, progress, settings)
            take_step(model, method, optimizer, batch, progress, settings, history)
            done = step + 1
            last = done == settings.steps
            if done % settings.log_every == 0 or last:
                means = history.fetch() | {"lr_factor": factor, "images_per_s": clock.rate(done)}
                if log:
                    log.scalars(done, means)
                    bar.set_postfix(
                        loss=f"{means['loss']:.3f}", img_s=f"{means['images_per_s']:.1f}"
                    )
            if log and settings.picture_every and (done % settings.picture_every == 0 or last):
                log.picture(done, batch, method)
            bar.update()
            ended = stop_requested(interrupt, done, settings)
            if done % settings.save_every == 0 or last or ended:
                history.fetch()
                save(done)
            if ended and not last:
                return interrupt.signal or signal.SIGTERM
    return None


def distributed(method: nn.Module) -> DistributedDataParallel:
    """Wrap a method so that its gradients are averaged over all ranks.

    Buffers are not synchronised during training: each rank computes the same bank. A 1x1 weight has
    several strides for one layout in memory, and DDP compares them literally; each gradient
    therefore takes its parameter's strides.
    """
    for parameter in method.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(functools.partial(_with_strides, stride=parameter.stride()))
    # the first is the name since torch 2.14, where the second one warns
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    flag = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in names)
    return DistributedDataParallel(method, **{flag: False})


def _with_strides(gradient: Tensor, *, stride: tuple[int, ...]) -> Tensor:
    """Return `gradient` with these strides if they describe the same layout in memory."""
    pairs = zip(gradient.shape, gradient.stride(), stride, strict=True)
    if all(size == 1 or one == other for size, one, other in pairs):
        return gradient.as_strided(gradient.shape, stride)
    return gradient


def take_step(
    model: nn.Module,
    method: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, Any],
    progress: Progress,
    settings: Settings,
    history: History,
) -> None:
    """One optimizer step over a batch on the device; `model` is the method or its DDP wrapper."""
    optimizer.zero_grad(set_to_none=True)
    for micro, part in enumerate(split(batch, settings.accumulate)):
        now = dataclasses.replace(progress, micro=micro)
        part = method.before_losses(part, now)
        with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=settings.amp):
            terms = model(part, now)
        loss = total_loss(terms, method.weights())
        (loss / settings.accumulate).backward()
        history.add(progress.step, {"loss": loss, **terms, **method.metrics()}, part["image_id"])
    optimizer.step()
    method.after_step(progress)


def stop_requested(interrupt: Interrupt, done: int, settings: Settings) -> bool:
    """Whether to stop now; several ranks agree on it every `log_every` steps."""
    if dist.world_size() == 1:
        return interrupt.signal is not None
    return done % settings.log_every == 0 and dist.agree(interrupt.signal is not None)


class Clock:
    """Images a second since the last question."""

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self._time, self._step = time.perf_counter(), step

    def rate(self, step: int) -> float:
        """Images a second between the last call (or the start) and `step` steps done."""
        now = time.perf_counter()
        rate = (step - self._step) * self.batch_size / (now - self._time)
        self._time, self._step = now, step
        return rate
