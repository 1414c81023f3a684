"""Files made and written in the background, a few at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tool.parallel.processes import Pool


class BackgroundWriter:
    """A writer that runs calls on threads or in processes.

    At most `ahead` calls are running or waiting, so that memory stays constant. The end of the
    `with` block waits for all calls and raises the first error of a call. After an error in a call
    or in the block, calls that have not begun are dropped.
    """

    def __init__(self, *, threads: int = 2, processes: int = 0, ahead: int = 8) -> None:
        """Use processes if there are any, else threads.

        Args:
            threads: The number of threads.
            processes: The number of processes. If it is above 0, the submitted calls and their
                arguments must be picklable.
            ahead: The largest number of calls that may be running or waiting.
        """
        if processes:
            pool = Pool(processes, _run)
            self._submit, self._check, self._stop = pool.submit, pool.check, pool.close
        else:
            pool = ThreadPoolExecutor(threads)
            self._submit, self._check = pool.submit, lambda: None
            self._stop = functools.partial(pool.shutdown, cancel_futures=True)
        # Each call that is running or waiting holds one slot of the semaphore.
        self._ahead, self._free = ahead, threading.Semaphore(ahead)
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for all calls unless the block failed, then stop the threads or processes."""
        try:
            # All calls are done when every slot is free.
            for _slot in range(self._ahead if kind is None else 0):
                self._free.acquire()
                self._raise()
        finally:
            self._stop()

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Run `call(*arguments)` in the background; first wait until a slot is free.

        Raises:
            BaseException: The first error of an earlier call.
            ChildProcessError: A process died.
        """
        self._free.acquire()
        self._raise()
        self._submit(call, *arguments).add_done_callback(self._done)

    def _done(self, future: Future) -> None:
        """Keep the error of a call if it is the first one, and free the call's slot."""
        if not future.cancelled():
            self._error = self._error or future.exception()
        self._free.release()

    def _raise(self) -> None:
        """Raise the first error of a call, or `ChildProcessError` if a process died."""
        if self._error is not None:
            raise self._error
        self._check()


def _run(call: Callable[..., Any], *arguments: Any) -> None:
    call(*arguments)
