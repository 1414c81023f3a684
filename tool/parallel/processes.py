"""Run functions in worker processes; if a worker dies, raise an error instead of waiting.

`concurrent.futures.ProcessPoolExecutor` and torch's `DataLoader` pass work to their processes
through shared queues. If a process is killed while it holds the lock of such a queue, or in the
middle of a large message, all other processes wait for ever. Here each process has a pipe of its
own, and one thread of the parent writes to it and reads from it. When a process dies, its pipe is
closed, whatever the process was doing. The thread gets an error at once, and closes the pipes of
the other processes.
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

GRACE = 1.0  # seconds in which a process may finish its current job before it is killed
FORK = "fork" if sys.platform == "linux" else "spawn"  # Apple's libraries do not survive a fork

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_starting = threading.Lock()  # held while a process starts, see `Pool._start_one`


def cores() -> int:
    """Return the number of cores that this process may use, which may be fewer than there are."""
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
    """Yield `function(item)` in the order of `items`, computed in fresh processes.

    Args:
        function: It must be picklable, and so must its results.
        items: They must be picklable.
        workers: The number of processes, at least 1. With 1 worker or fewer than 2 items everything
            runs in this process.

    Raises:
        ChildProcessError: A process died. This ends all processes.
        Exception: The error of `function` for the first item, in order, that failed. This ends all
            processes.
    """
    # One worker would only add the cost of a process.
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    # A few items ahead keep the workers busy while the caller uses a result. The limit bounds the
    # memory of results that wait for their turn.
    with Pool(workers, function) as pool:
        yield from pool.map(items, ahead=4 * workers)


class Pool:
    """A pool of worker processes that run one function, each with one computing thread.

    Use it in a `with` block, and give it jobs by `submit` or `map`. The end of the block ends the
    processes and drops unfinished jobs. If a process dies, all waiting callers get a
    `ChildProcessError`.

    The processes start with the first jobs. They ignore Ctrl-C and leave the process group, so that
    the group's signals reach only the parent. They end when this process ends, even if it is
    killed.
    """

    def __init__(
        self, workers: int, function: Callable[..., Any], *, method: str = "spawn"
    ) -> None:
        """Store the settings; no process starts yet.

        Args:
            workers: The largest number of processes, at least 1.
            function: It must be picklable; each process gets it once. If it returns bytes, the
                caller gets them as a bytearray, which saves a copy.
            method: "spawn" for fresh processes, `FORK` for processes that start in milliseconds.
        """
        self._limit, self._method = workers, method
        # The function is sent as a message, not as an argument of the process. `Process.start`
        # writes arguments into a pipe. If they do not fit into it, `start` waits for the process to
        # read them, and that process may be dead.
        self._function = pickle.dumps(function)
        self._jobs: queue.SimpleQueue[tuple[Future, tuple] | None] = queue.SimpleQueue()
        self._workers: list[tuple[BaseProcess, socket.socket]] = []
        self._died: ChildProcessError | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, *arguments: Any) -> Future:
        """Submit `function(*arguments)` and return its future.

        If a process dies, the future raises a `ChildProcessError`.
        """
        # Processes start one per job until there are enough.
        if len(self._workers) < self._limit:
            self._start_one()
        future: Future = Future()
        self._jobs.put((future, arguments))
        return future

    def map(self, items: Iterable[Item], *, ahead: int) -> Iterator[Any]:
        """Yield `function(item)` in the order of `items`.

        Args:
            items: The items.
            ahead: The largest number of items that are submitted beyond the one whose result comes
                next.

        Raises:
            ChildProcessError: A process died. This is raised without waiting for the process's
                item to come first.
            Exception: The error of `function`, when its item comes first.
        """
        waiting: deque[Future] = deque()
        for item in items:
            waiting.append(self.submit(item))
            if len(waiting) > ahead:
                yield self._next(waiting)
        while waiting:
            yield self._next(waiting)

    def _next(self, waiting: deque[Future]) -> Any:
        """Wait for the first future and return its result; raise if a process died."""
        result = waiting.popleft().result()
        self.check()
        return result

    def check(self) -> None:
        """Raise `ChildProcessError` if a process died, even one that was idle."""
        for process, _ in self._workers:
            if process.exitcode is not None:
                raise self._bury(process)

    def _bury(self, process: BaseProcess) -> ChildProcessError:
        """Shut down all pipes after a process died; return the error for all waiting callers.

        Args:
            process: The process that died. The error of the first one is kept.
        """
        if self._died is None:
            # The pipe may close before the exit status is known, so wait for it.
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
        """End the processes; busy ones have `GRACE` seconds to finish, then they are killed."""
        # None ends a thread that waits for a job. A pipe that is shut down ends its process.
        for _ in self._workers:
            self._jobs.put(None)
        self._hang_up()
        end = time.monotonic() + GRACE  # for all processes together
        for process, _ in self._workers:
            process.join(max(0.0, end - time.monotonic()))
        for process, pipe in self._workers:
            process.kill()
            process.join()
            pipe.close()

    def _hang_up(self) -> None:
        """Shut down all pipes, which wakes the threads that wait on them; closing would not."""
        for _, pipe in self._workers:
            with contextlib.suppress(OSError):  # the other end is gone
                pipe.shutdown(socket.SHUT_RDWR)

    def _start_one(self) -> None:
        """Start a process, and the thread that talks to it.

        Processes start one at a time. Otherwise a fork in another thread would inherit the new
        process's end of the pipe, and the pipe would stay open after that process died. Signals are
        delayed meanwhile, because Ctrl-C reaches every process of the group, including one that is
        still importing.
        """
        context = multiprocessing.get_context(self._method)
        if self._method == "spawn":
            # The resource tracker starts before signals are blocked, because its start unblocks
            # them.
            multiprocessing.resource_tracker.ensure_running()
        with _starting, _one_thread_each(), _held_back(SIGNALS):
            ours, theirs = socket.socketpair()
            with theirs:
                process = context.Process(target=serve, args=(theirs,), daemon=True)
                process.start()
            self._workers.append((process, ours))
            # The thread is a daemon, so that it does not keep this process from ending.
            threading.Thread(target=self._drive, args=(process, ours), daemon=True).start()

    def _drive(self, process: BaseProcess, pipe: socket.socket) -> None:
        """Send one process its jobs, one after the other, until there is the job None."""
        with contextlib.suppress(*GONE):  # if the process is gone, the first job reports it
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
        """Send one process the arguments of a job, and return its result.

        Args:
            process: The process.
            pipe: The connection to it.
            arguments: The pickled tuple.

        Raises:
            ChildProcessError: A process died.
            Exception: The error of the function.
        """
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
    """Make processes that start in the block compute with one thread, by environment variables."""
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
    """Delay signals that arrive during the block to its end; processes that start in it block them.

    For this process blocking is not enough. Another thread may receive a signal, and Python still
    runs the handler in the main thread. An exception that the handler raises there, inside a hook
    of the fork, would be lost.
    """
    came: list[int] = []
    handlers = {}
    # Replace the handlers by one that only remembers. Only the main thread may do that. An ignored
    # signal stays ignored, also in the new process.
    if threading.current_thread() is threading.main_thread():
        for one in (s for s in signals if signal.getsignal(s) is not signal.SIG_IGN):
            handlers[one] = signal.signal(one, lambda number, _: came.append(number))
    # A new process inherits the mask, and `serve` unblocks the signals there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # Restore the mask and the handlers, then deliver the signals that arrived.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for one, handler in reversed(handlers.items()):
            signal.signal(one, handler or signal.SIG_DFL)
        for number in came:
            signal.raise_signal(number)
