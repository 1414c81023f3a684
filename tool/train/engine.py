"""The training loop. It does not depend on the task: a method returns named terms and weights."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tool.bar import Bar, clock
from tool.parallel import dist
from tool.parallel.machine import keep_freed_memory, peak_memory
from tool.progress import Progress
from tool.train.batch import Batch, Trainable, part
from tool.train.history import Clock, History, grouped
from tool.train.interrupt import Interrupt, stop_requested, stopped_by
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
    keep_freed_memory(device)
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
            if step == start.step:  # now the process has taken what a step takes: decide again
                keep_freed_memory(device)
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
            ended = stop_requested(interrupt, done, settings.log_every)
            if done % settings.save_every == 0 or last or ended:
                history.fetch()
                check_finite(method, optimizer, done)
                save(done)
            if ended and not last:
                break
        # A signal of the last save counts too: the script that runs this must not go on.
        return stopped_by(interrupt)


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
            terms = model(images, now)  # the method's `losses()`
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
