"""Repeated runs, and nested stopwatches and functions that run under one, also on a GPU."""

from __future__ import annotations

import contextlib
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import nn

Run = Callable[[], Any]


def clock() -> float:
    """Return the time in seconds, after the GPU, if this process uses one, has done all its work.

    (`torch.utils.benchmark.timer` is the same, but importing it takes setuptools and a second.)
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def repeated(
    call: Run, repeats: int, *, untimed: int = 0, prepare: Run = lambda: None
) -> tuple[Any, list[float]]:
    """Return what the last of some runs of `call` returned, and the seconds of each.

    Args:
        call: What is timed.
        repeats: Number of runs.
        untimed: Number of runs before them, which do not count.
        prepare: Is called before each run, and not timed.
    """
    seconds = []
    for _ in range(untimed + repeats):
        prepare()
        started = clock()
        result = call()
        seconds.append(clock() - started)
    return result, seconds[untimed:]


def spread(values: Sequence[float], *, unit: float = 1.0) -> dict[str, float]:
    """Return the median, the fastest and the slowest of some times, each times `unit`."""
    found = {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}
    return {name: unit * value for name, value in found.items()}


class Timer:
    """Exclusive milliseconds of named parts: the time in a part inside another is the inner one's.

    A part waits for the device when it begins and when it ends.
    """

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._lap: dict[str, float] = {}
        self._inside: list[float] = []  # of each open part, the time of the parts in it

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside, under `name`; parts of one name add up within a lap."""
        self._inside.append(0.0)
        started = clock()
        try:
            yield
        finally:
            took = 1000 * (clock() - started)
            own = took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took
            self._lap[name] = self._lap.get(name, 0.0) + own

    def end_lap(self) -> None:
        """Close one repetition."""
        self.laps.append(self._lap)
        self._lap = {}

    def medians(self) -> dict[str, float]:
        """Return {name: milliseconds} over the laps, in the order of first sight; absent is 0."""
        names = dict.fromkeys(name for lap in self.laps for name in lap)
        return {name: statistics.median(lap.get(name, 0.0) for lap in self.laps) for name in names}


@contextlib.contextmanager
def timed_functions(
    timer: Timer, users: Sequence[ModuleType], libraries: Sequence[ModuleType]
) -> Iterator[None]:
    """Make every public function that `libraries` define a part `MODULE.NAME` of `timer`, inside.

    So are the methods of their networks, `MODULE.CLASS.NAME`. A function is replaced wherever a
    module of `users` or `libraries` has imported it.
    """
    names = {module.__name__ for module in libraries}
    owners: list[Any] = [*users, *libraries]
    for module in libraries:
        owners += [item for item in vars(module).values() if _is_network_of(module, item)]
    with contextlib.ExitStack() as replaced:
        for owner in owners:
            for name, function in list(vars(owner).items()):
                if inspect.isfunction(function) and function.__module__ in names and name[0] != "_":
                    module = function.__module__.split(".")[-1]
                    timed = timer.part(f"{module}.{function.__qualname__}")(function)
                    replaced.enter_context(mock.patch.object(owner, name, timed))
        yield


def _is_network_of(module: ModuleType, item: object) -> bool:
    """Return whether `item` is a class of networks that the module defines."""
    is_network = inspect.isclass(item) and issubclass(item, nn.Module)
    return is_network and item.__module__ == module.__name__
