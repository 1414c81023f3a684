"""Run functions in worker processes; if a worker dies, raise an error instead of waiting.

`concurrent.futures.ProcessPoolExecutor` and torch's `DataLoader` hand work to their processes
through shared queues. A process that is killed while it holds the lock of such a queue, or while a
large message is on the way, makes everybody wait for ever. Here each process has a pipe of its own,
and one thread of the parent writes to it and reads from it. When a process dies, its pipe ends,
whatever the process was doing. The thread gets an error at once and hangs up on the other
processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from tool.parallel.worker import BYTES, ERROR, GONE, SIGNALS, VALUE, receive, send, serve

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 1.0  # seconds in which a process may finish what it is writing before it is killed
FORK = "fork" if sys.platform == "linux" else "spawn"  # Apple's libraries do not survive a fork

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_starting = threading.Lock()


def cores() -> int:
    """Return the number of cores that this process may use; a container may have fewer than all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """Return the default number of workers: one per core of this process's share.

    The processes that torchrun starts on this machine share its cores.
    """
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`, computed in `workers` fresh processes.

    Args:
        function: Must be picklable.
        items: Must be picklable.
        workers: At least 1. With 1, or with a single item, everything runs in this process.

    Raises:
        ChildProcessError: A process died. This ends the pool.
        Exception: What `function` raised, for the first item in order. This ends the pool.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    with Pool(workers, function) as pool:
        yield from pool.map(items, ahead=4 * workers)


class Pool:
    """A pool of worker processes that run one function, each with one computing thread.

    The processes start with the first jobs. They ignore Ctrl-C and leave the process group, so that
    its signals reach only the parent. They end with this process, even if it is killed. Leaving the
    `with` block ends them and drops unfinished jobs.
    """

    def __init__(
        self, workers: int, function: Callable[..., Any], *, method: str = "spawn"
    ) -> None:
        """Store the settings; no process starts yet.

        Args:
            workers: The number of processes, at least 1.
            function: Must be picklable; each process gets it once. Bytes that it returns arrive as
                a bytearray, uncopied.
            method: `spawn` for fresh processes, `FORK` for processes that start in milliseconds.
        """
        self._limit, self._method = workers, method
        # Not an argument of the process. `Process.start` writes arguments into a pipe. If they do
        # not fit into it, it waits for a process that may be dead.
        self._function = pickle.dumps(function)
        self._jobs: queue.SimpleQueue[tuple[Future, tuple] | None] = queue.SimpleQueue()
        self._workers: list[tuple[BaseProcess, socket.socket]] = []
        self._died: ChildProcessError | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, *arguments: Any) -> Future:
        """Return the future of `function(*arguments)`: a `ChildProcessError` if a process died."""
        if len(self._workers) < self._limit:
            self._start_one()
        future: Future = Future()
        self._jobs.put((future, arguments))
        return future

    def map(self, items: Iterable[Item], *, ahead: int) -> Iterator[Any]:
        """Yield `function(item)` in the order of `items`, at most `ahead` of them in advance.

        Raises:
            ChildProcessError: A process died. This does not wait for the turn of its item.
            Exception: What `function` raised, when the turn comes to its item.
        """
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self.submit(item))
            if len(waiting) > ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Future]) -> Any:
        """Wait for the first future and return its result, unless a process died."""
        result = waiting.popleft().result()
        self.check()
        return result

    def check(self) -> None:
        """Raise `ChildProcessError` if a process died, even one that had nothing to do."""
        for process, _ in self._workers:
            if process.exitcode is not None:
                raise self._bury(process)

    def _bury(self, process: BaseProcess) -> ChildProcessError:
        """Shut down all pipes after a worker died; return the error for all waiting callers."""
        if self._died is None:
            process.join(GRACE)
            code = process.exitcode
            why = "killed, or out of memory?"
            if code not in (None, -signal.SIGKILL):
                why = f"signal {-code}" if code < 0 else f"exit status {code}"
            self._died = ChildProcessError(
                f"a worker process died ({why}): the same command goes on where it was"
            )
            self._hang_up()
        return self._died

    def close(self) -> None:
        """End the processes. Busy ones have `GRACE` seconds to finish, then they are killed."""
        for _ in self._workers:
            self._jobs.put(None)
        self._hang_up()
        end = time.monotonic() + GRACE
        for process, _ in self._workers:
            process.join(max(0.0, end - time.monotonic()))
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()

    def _hang_up(self) -> None:
        """Shut down all pipes. Unlike closing them, this wakes the threads that wait."""
        for _, pipe in self._workers:
            with contextlib.suppress(OSError):  # the other end is gone
                pipe.shutdown(socket.SHUT_RDWR)

    def _start_one(self) -> None:
        """Start a process, and the thread that talks to it.

        Processes start one at a time. Otherwise a fork in another thread would inherit the new
        process's end of the pipe, which would then outlive that process. Signals wait meanwhile,
        because Ctrl-C reaches every process of the group, including one that is still importing.
        """
        context = multiprocessing.get_context(self._method)
        if self._method == "spawn":
            # Started first, because its start unblocks signals.
            multiprocessing.resource_tracker.ensure_running()
        with _starting, _one_thread_each(), _held_back(SIGNALS):
            ours, theirs = socket.socketpair()
            with theirs:
                process = context.Process(target=serve, args=(theirs,), daemon=True)
                process.start()
            self._workers.append((process, ours))
            # A daemon, so that the thread does not keep this process from ending.
            threading.Thread(target=self._drive, args=(process, ours), daemon=True).start()

    def _drive(self, process: BaseProcess, pipe: socket.socket) -> None:
        """Hand one process its jobs, one after the other."""
        with contextlib.suppress(*GONE):  # the first job reports the error
            send(pipe, VALUE, self._function)
        while (job := self._jobs.get()) is not None:
            future, arguments = job
            try:
                result = self._exchange(process, pipe, pickle.dumps(arguments))
            except BaseException as error:  # for the caller that waits for this future
                future.set_exception(error)
            else:
                future.set_result(result)
            del job, future, arguments  # free them while this thread waits for the next job

    def _exchange(self, process: BaseProcess, pipe: socket.socket, arguments: bytes) -> Any:
        """Send one process the arguments of a job; return or raise what it answers."""
        try:
            send(pipe, VALUE, arguments)
            kind, answer = receive(pipe)
        except GONE as error:
            raise self._bury(process) from error
        result = answer if kind == BYTES else pickle.loads(answer)
        if kind == ERROR:
            raise result
        return result


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Give processes that start inside an environment with one computing thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _held_back(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Delay signals that come inside until the end; processes that start inside block them.

    Blocking them is not enough for this process. Another thread may receive a signal, and its
    handler runs in the main thread all the same. What it raises inside a hook of the fork is lost.
    """
    came: list[int] = []
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        for one in signals:
            handlers[one] = signal.signal(one, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for one, handler in reversed(handlers.items()):
            signal.signal(one, handler or signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)
