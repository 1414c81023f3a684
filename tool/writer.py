"""Files made and written in the background, a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tool.parallel import one_thread_each, process_pool


class BackgroundWriter:
    """Runs calls on threads, or in processes; at most `ahead` wait, so that memory stays flat.

    Leaving the `with` block waits for all of them. The first error of a call is raised in the
    caller.
    """

    def __init__(self, *, threads: int = 2, processes: int = 0, ahead: int = 8) -> None:
        """Use `processes` where there are any; what is submitted must then be picklable."""
        self._pool = process_pool(processes) if processes else ThreadPoolExecutor(threads)
        self._slots = threading.Semaphore(ahead)
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self._raise()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Run `call(*arguments)` soon; waits while too many are under way."""
        self._raise()
        self._slots.acquire()
        try:
            with one_thread_each():
                self._pool.submit(call, *arguments).add_done_callback(self._done)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process died (killed, or out of memory?): run again to go on"
            ) from error

    def _done(self, future: Future) -> None:
        self._slots.release()
        self._error = self._error or future.exception()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
