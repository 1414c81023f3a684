"""Time repeated runs, nested parts of a program, and functions of modules, on a CPU or a GPU."""

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
    """Return the time in seconds; if this process uses a GPU, first wait for its work to finish.

    `torch.utils.benchmark.timer` does the same, but importing it needs setuptools and takes a
    second.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def repeated(
    call: Run, repeats: int, *, untimed: int = 0, prepare: Run = lambda: None
) -> tuple[Any, list[float]]:
    """Return the result of the last run of `call`, and the seconds of each timed run.

    Args:
        call: The function to time.
        repeats: Number of timed runs, at least 1.
        untimed: Number of runs before them that do not count.
        prepare: A function that is called before each run and is not timed.
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
    """Timer of the exclusive milliseconds of named parts.

    The time of a part inside another one counts for the inner part only. A part waits for the
    device when it begins and when it ends.

    Attributes:
        laps: Per lap, name -> milliseconds.
    """

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._lap: dict[str, float] = {}
        self._inside: list[float] = []  # per open part, the time of the parts inside it

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block under `name`; the times of parts with the same name add up in a lap."""
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
        """End a lap, that is, one repetition; the next part begins a new one."""
        self.laps.append(self._lap)
        self._lap = {}

    def medians(self) -> dict[str, float]:
        """Return name -> median of its milliseconds over the laps, in the order of first use.

        A part that is absent from a lap counts as 0 there.
        """
        names = dict.fromkeys(name for lap in self.laps for name in lap)
        return {name: statistics.median(lap.get(name, 0.0) for lap in self.laps) for name in names}


@contextlib.contextmanager
def timed_functions(
    timer: Timer, users: Sequence[ModuleType], libraries: Sequence[ModuleType]
) -> Iterator[None]:
    """Time every public function of some modules as a part of `timer` during the block.

    The part of a function is called `MODULE.NAME`. Methods of the networks in the modules are timed
    too, as `MODULE.CLASS.NAME`.

    Args:
        timer: The timer.
        users: Modules that may have imported the functions. They are replaced there too.
        libraries: The modules that define the functions.
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
    """Return whether `item` is a subclass of `nn.Module` that the module itself defines."""
    is_network = inspect.isclass(item) and issubclass(item, nn.Module)
    return is_network and item.__module__ == module.__name__
