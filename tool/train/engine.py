"""The training loop. It does not depend on the task: a method returns named terms and weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tool.bar import Bar, clock
from tool.parallel import dist
from tool.parallel.machine import peak_memory
from tool.parallel.worker import SIGNALS
from tool.progress import Progress
from tool.train.batch import Batch, Trainable, part
from tool.train.log import RunLog


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of the training loop.

    Logging, saving and drawing also happen after the last step.

    Attributes:
        steps: Optimizer steps of the whole run.
        batch_size: Images per step, of all ranks together.
        lr: The learning rate, as a line of the log shows it. The optimizer's groups have multiples
            of it.
        power: Exponent of the polynomial decay of the learning rates.
        warmup: Number of steps in which the rates rise linearly.
        clip: Largest norm of a step's gradient; None for no limit.
        accumulate: Micro-batches per step.
        log_every: Steps between rows of the log.
        save_every: Steps between checkpoints.
        picture_every: Steps between pictures; 0 for no pictures.
        amp: Use bf16 autocast.
    """

    steps: int
    batch_size: int
    lr: float = 0.0
    power: float = 0.9
    warmup: int = 0
    clip: float | None = None
    accumulate: int = 1
    log_every: int = 20
    save_every: int = 200
    picture_every: int = 0
    amp: bool = False


class Interrupt:
    """A context that remembers a SIGINT, SIGTERM or SIGHUP instead of ending the process.

    A second signal of the same kind ends the process as usual. A SIGHUP that is ignored, as nohup
    has it, stays ignored.

    Attributes:
        signal: The last signal that was remembered; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


class History:
    """The values of the terms since the last fetch, kept on the device.

    Only `fetch` waits for the device.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, Tensor, list[str]]] = []
        self._names: list[str] = []

    def add(self, step: int, values: dict[str, Tensor], image_ids: list[str]) -> None:
        """Remember the scalars of one step, or of one micro-batch of it, without gradient.

        Args:
            step: The optimizer step.
            values: The scalars by name, with the same names in each call.
            image_ids: The images of the batch, for an error message.
        """
        self._names = list(values)
        row = torch.stack([value.detach().float() for value in values.values()])
        self._rows.append((step, row, image_ids))

    def fetch(self) -> dict[str, float]:
        """Return the mean of each scalar since the last call, over all ranks.

        Raises:
            FloatingPointError: A scalar of any rank is not finite. On a rank that has such a
                scalar, the message names the step, every term and the images.
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
    """Return the weighted sum of the terms.

    Raises:
        ValueError: `terms` and `weights` have different names.
    """
    if set(terms) != set(weights):
        raise ValueError(
            f"terms and weights differ: {', '.join(sorted(set(terms) ^ set(weights)))}"
        )
    return functools.reduce(torch.add, (weights[name] * term for name, term in terms.items()))


def set_rates(optimizer: torch.optim.Optimizer, progress: Progress, settings: Settings) -> float:
    """Set the learning rate of each group to its initial rate times a factor.

    Returns:
        The factor, which depends on the step alone: (1 - step / steps) ** power, times
        (step + 1) / warmup during the warm-up.
    """
    factor = (1 - progress.step / progress.steps) ** settings.power
    if progress.step < settings.warmup:
        factor *= (progress.step + 1) / settings.warmup
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return factor


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on `device`."""
    moved = {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    return cast(Batch, moved)


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Yield `parts` equal micro-batches in image order."""
    size = len(batch["image_id"]) // parts
    for first in range(0, size * parts, size):
        yield part(batch, slice(first, first + size))


def fit(
    method: Trainable,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    start: Progress,
    settings: Settings,
    device: torch.device,
    transform: Callable[[Batch], Batch],
    log: RunLog | None,
    save: Callable[[int], object],
) -> int | None:
    """Train from `start.step` to the end of `batches`.

    Args:
        method: The model, on `device`; obeys the contract of `network.methods`.
        optimizer: The optimizer of the method's parameters.
        batches: The batches of this rank, one per step, beginning at `start.step`.
        start: The first step.
        settings: The settings of the loop.
        device: The device that computes.
        transform: Turns a batch on the device into one that the method expects.
        log: The log on rank 0; None on the other ranks.
        save: Takes the number of steps done, and writes a checkpoint.

    Returns:
        None, or the last signal that came, be it in the last step or its save. A checkpoint is
        saved in both cases.

    Raises:
        FloatingPointError: A loss is not finite, or what would be saved is not. The last checkpoint
            stays as it is.
    """
    model = distributed(method) if dist.world_size() > 1 else method
    method.train()
    history, pace = History(), Clock(settings.batch_size, start.step)
    bar = Bar(
        settings.steps, "train", unit="step", initial=start.step, quiet=log is None, lines=False
    )
    with Interrupt() as interrupt, bar:
        for step, batch in enumerate(batches, start=start.step):
            progress = dataclasses.replace(start, step=step)
            batch = transform(to_device(batch, device))
            factor = set_rates(optimizer, progress, settings)
            take_step(model, method, optimizer, batch, progress, settings, history)
            done = step + 1
            last = done == settings.steps
            if done % settings.log_every == 0 or last:
                values = grouped(history.fetch(), method.weights())
                speed, memory = pace.rate(done), peak_memory(device)
                values["run"] = {"lr_factor": factor, "images_per_s": speed, "memory_gb": memory}
                if log:
                    log.scalars(done, values)
                    show(bar, done, values, settings)
            if log and settings.picture_every and (done % settings.picture_every == 0 or last):
                log.picture(done, method)
            bar.update()
            ended = stop_requested(interrupt, done, settings)
            if done % settings.save_every == 0 or last or ended:
                history.fetch()
                check_finite(method, optimizer, done)
                save(done)
            if ended and not last:
                break
        # A signal of the last save counts too: the script that runs this must not go on.
        return stopped_by(interrupt)


def grouped(means: dict[str, float], terms: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return the values of the log by group: the loss and its terms, then what else is measured."""
    names = {"loss", *terms}
    loss = {name: value for name, value in means.items() if name in names}
    return {"loss": loss, "contrast": {n: v for n, v in means.items() if n not in names}}


def show(bar: Bar, done: int, values: dict[str, dict[str, float]], settings: Settings) -> None:
    """Show the values of the log: beside the bar on a terminal, else as a line."""
    loss, run = values["loss"]["loss"], values["run"]
    speed, remaining = run["images_per_s"], (settings.steps - done) * settings.batch_size
    if bar.on_terminal:
        bar.note(loss=f"{loss:.3f}", img_s=f"{speed:.1f}")
        return
    rate = settings.lr * run["lr_factor"]
    bar.line(
        f"step {done}/{settings.steps}  loss {loss:.3g}  lr {rate:.2g}  {speed:.1f} img/s  "
        f"{run['memory_gb']:.1f} GB  eta {clock(remaining / speed)}"
    )


def distributed(method: Trainable) -> DistributedDataParallel:
    """Wrap a method so that its gradients are averaged over all ranks.

    Buffers are not synchronised during training, because each rank computes the same bank. The
    strides of a 1x1 weight are not unique for one layout in memory, and DDP compares them
    literally. Each gradient therefore takes its parameter's strides.
    """
    for parameter in method.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(functools.partial(_with_strides, stride=parameter.stride()))
    # The first name exists since torch 2.14, where the second one causes a warning.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    flag = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in names)
    settings: dict[str, Any] = {flag: False}
    return DistributedDataParallel(cast(nn.Module, method), **settings)


def _with_strides(gradient: Tensor, *, stride: tuple[int, ...]) -> Tensor:
    """Return `gradient` with these strides if they describe the same layout in memory."""
    pairs = zip(gradient.shape, gradient.stride(), stride, strict=True)
    if all(size == 1 or one == other for size, one, other in pairs):
        return gradient.as_strided(gradient.shape, stride)
    return gradient


def take_step(
    model: Trainable | DistributedDataParallel,
    method: Trainable,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    progress: Progress,
    settings: Settings,
    history: History,
) -> None:
    """Take one optimizer step over a batch.

    Args:
        model: The method, or its DDP wrapper.
        method: The method itself.
        optimizer: The optimizer of the method's parameters.
        batch: The batch of the step, on the device.
        progress: The step.
        settings: The settings of the loop.
        history: Receives the loss, the terms and the metrics of each micro-batch.
    """
    optimizer.zero_grad(set_to_none=True)
    for micro, images in enumerate(split(batch, settings.accumulate)):
        now = dataclasses.replace(progress, micro=micro)
        images = method.before_losses(images, now)
        with torch.autocast(batch["image"].device.type, torch.bfloat16, enabled=settings.amp):
            terms = model(images, now)
        loss = total_loss(terms, method.weights())
        (loss / settings.accumulate).backward()
        history.add(progress.step, {"loss": loss, **terms, **method.metrics()}, images["image_id"])
    if settings.clip is not None:
        trained = [parameter for parameter in method.parameters() if parameter.grad is not None]
        nn.utils.clip_grad_norm_(trained, settings.clip)
    optimizer.step()
    method.after_step(progress)


def check_finite(method: Trainable, optimizer: torch.optim.Optimizer, done: int) -> None:
    """Check what a checkpoint would hold: the step after the last loss may have diverged.

    Ranks have equal weights, so all of them find the same.

    Raises:
        FloatingPointError: A parameter or the optimizer's state is not finite; names the step.
    """
    tensors: list[Tensor] = [*method.parameters()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    if tensors and not torch.stack([value.detach().isfinite().all() for value in tensors]).all():
        raise FloatingPointError(
            f"step {done}: the weights are not finite any more, and are not saved: what helps is a "
            "smaller --lr, a --warmup, or --clip"
        )


def stop_requested(interrupt: Interrupt, done: int, settings: Settings) -> bool:
    """Return whether to stop now; several ranks agree on it every `log_every` steps."""
    if dist.world_size() == 1:
        return interrupt.signal is not None
    return done % settings.log_every == 0 and dist.any_rank(interrupt.signal is not None)


def stopped_by(interrupt: Interrupt) -> int | None:
    """Return the signal that came to any rank; None if there was none."""
    if dist.world_size() == 1 or not dist.any_rank(interrupt.signal is not None):
        return interrupt.signal
    return interrupt.signal or signal.SIGTERM


class Clock:
    """A clock that measures images per second.

    Args:
        batch_size: Images per step.
        step: Number of steps done at the start.
    """

    def __init__(self, batch_size: int, step: int) -> None:
        self.batch_size = batch_size
        self._time, self._step = time.perf_counter(), step

    def rate(self, step: int) -> float:
        """Return the images per second since the last call, or since the start.

        Args:
            step: Number of steps done now.
        """
        now = time.perf_counter()
        rate = (step - self._step) * self.batch_size / (now - self._time)
        self._time, self._step = now, step
        return rate
