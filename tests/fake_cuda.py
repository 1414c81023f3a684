"""Fake tensors on an accelerator: shapes, types and devices without data and without a GPU.

An operation on tensors of two devices raises there, and so does every read-back to the host that a
test has not allowed: on a real GPU it would wait for all the work that is queued.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tool.progress import Progress

# A torch without CUDA cannot name a CUDA tensor in a graph. What our code asks is the same of both:
# whether the device is the CPU.
CUDA = torch.device("cuda:0" if torch.backends.cuda.is_built() else "meta")
META = torch.device("meta")  # autograd's engine runs on it without a driver
aten = torch.ops.aten


class ReadBack(AssertionError):
    """The host asked the device for a value."""


class Watch(TorchDispatchMode):
    """Sees every operation; a read-back that is not allowed raises `ReadBack`.

    Args:
        answers: kind of read-back -> what the host is told, as if it had been read: for "nonzero"
            the number of rows, for "item" a number, for "mask" (an index of booleans) a function
            from the mask's shape to the number of rows.

    Attributes:
        reads: the kinds of the read-backs, in their order.
    """

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.reads: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func, args)
        if kind is None:
            result = func(*args, **kwargs)
            if copies_to_host(func, args, result):
                raise ReadBack(f"{func} copies to the host")
            return result
        if kind not in self.answers:
            raise ReadBack(f"{func} reads the device back ({kind})")
        self.reads.append(kind)
        answer = self.answers[kind]
        if kind == "item":
            return answer
        value = args[0]
        if kind == "nonzero":
            return torch.empty((answer, value.dim()), dtype=torch.long, device=value.device)
        mask = args[1][0]
        return value.new_empty((answer(mask.shape), *value.shape[mask.dim() :]))


def kind_of(func: Any, args: tuple) -> str | None:
    """Which kind of read-back an operation on the device is; None for no such thing."""
    if not args or not on_device(args[0]):
        return None
    if func is aten.nonzero.default:
        return "nonzero"
    if func in (aten._local_scalar_dense.default, aten.item.default):  # the latter in inference
        return "item"
    if func is aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
        return "mask"
    return None


def on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type != "cpu"


def copies_to_host(func: Any, args: tuple, result: Any) -> bool:
    """Whether a tensor of the device went in and one of the CPU came out."""
    if not (isinstance(result, Tensor) and result.device.type == "cpu"):
        return False
    makes_anew = func.__name__.startswith("new_") or "_like" in func.__name__
    return any(map(on_device, args)) and not makes_anew


@contextlib.contextmanager
def watched(**answers: int | float | Callable[[torch.Size], int]) -> Iterator[Watch]:
    """Inside, tensors are fake; yields what was read back. See `Watch` for `answers`."""
    one_thread = torch.autograd.set_multithreading_enabled(False)  # a fake device has none
    with FakeTensorMode(), one_thread, Watch(answers) as watch:
        yield watch


def fake(value: Any, device: torch.device) -> Any:
    """A fake copy of a tensor on a device, with its shape, strides and type; all else as it is."""
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy


def fake_batch(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on the device."""
    return {name: fake(value, device) for name, value in batch.items()}


def fake_module(module: nn.Module, device: torch.device) -> nn.Module:
    """The module, its parameters and buffers replaced by fake ones, as `.to` would move them.

    A tensor that is neither stays real, and raises where it meets a fake one.
    """
    copies: dict[int, Any] = {}
    for inner in module.modules():
        for table in (inner._parameters, inner._buffers):
            for name, value in table.items():
                if value is not None:
                    table[name] = copies.setdefault(id(value), fake(value, device))
    return module


def no_generator(progress: Progress, name: str, device: torch.device) -> None:
    """In place of `Progress.generator`: a fake draw has no state, and torch no CUDA generator."""
    assert device.type != "cpu", f"{name} is drawn on the CPU"


def all_of(shape: torch.Size) -> int:
    """For `watched(mask=...)`: every value is chosen."""
    return math.prod(shape)
