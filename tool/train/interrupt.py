"""Signals that end a run early: remembered until a step is done, so that it can be saved."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from tool.parallel import dist
from tool.parallel.worker import SIGNALS


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


def stop_requested(interrupt: Interrupt, done: int, log_every: int) -> bool:
    """Return whether to stop now; several ranks agree on it every `log_every` steps."""
    if dist.world_size() == 1:
        return interrupt.signal is not None
    return done % log_every == 0 and dist.any_rank(interrupt.signal is not None)


def stopped_by(interrupt: Interrupt) -> int | None:
    """Return the signal that came to any rank; None if there was none."""
    if dist.world_size() == 1 or not dist.any_rank(interrupt.signal is not None):
        return interrupt.signal
    return interrupt.signal or signal.SIGTERM
