"""Nested stopwatches, also on a GPU, and functions that run under one."""

from __future__ import annotations

import contextlib
import functools
import inspect
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn


class Timer:
    """Exclusive milliseconds of named parts: the time in a part inside another is the inner one's.

    A part waits for the device when it begins and when it ends.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.laps: list[dict[str, float]] = []
        self._lap: dict[str, float] = {}
        self._inside: list[float] = []  # of each open part, the time of the parts in it

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside, under `name`; parts of one name add up within a lap."""
        self.wait()
        self._inside.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            took = 1000 * (time.perf_counter() - started)
            own = took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took
            self._lap[name] = self._lap.get(name, 0.0) + own

    def wait(self) -> None:
        """Until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def end_lap(self) -> None:
        """Close one repetition."""
        self.laps.append(self._lap)
        self._lap = {}

    def medians(self) -> dict[str, float]:
        """{name: milliseconds} over the laps, in the order of first sight; absent counts as 0."""
        names = dict.fromkeys(name for lap in self.laps for name in lap)
        return {name: statistics.median(lap.get(name, 0.0) for lap in self.laps) for name in names}


@contextlib.contextmanager
def timed_functions(
    timer: Timer, users: Iterable[ModuleType], libraries: Iterable[ModuleType]
) -> Iterator[None]:
    """Inside, every public function that `libraries` define is a part of `timer`, `MODULE.NAME`.

    The methods of their networks likewise, `MODULE.CLASS.NAME`. A function is replaced wherever
    a module of `users` or `libraries` has imported it.
    """
    libraries = list(libraries)
    names = {module.__name__ for module in libraries}
    owners: list[Any] = [*users, *libraries]
    for module in libraries:
        owners += [item for item in vars(module).values() if _is_network_of(module, item)]
    replaced: list[tuple[Any, str, Callable]] = []
    try:
        for owner in owners:
            for name, function in list(vars(owner).items()):
                if inspect.isfunction(function) and function.__module__ in names and name[0] != "_":
                    replaced.append((owner, name, function))
                    setattr(owner, name, _timed(timer, function))
        yield
    finally:
        for owner, name, function in replaced:
            setattr(owner, name, function)


def _is_network_of(module: ModuleType, item: object) -> bool:
    is_network = inspect.isclass(item) and issubclass(item, nn.Module)
    return is_network and item.__module__ == module.__name__


def _timed(timer: Timer, function: Callable) -> Callable:
    name = f"{function.__module__.split('.')[-1]}.{function.__qualname__}"

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with timer.part(name):
            return function(*args, **kwargs)

    return timed
