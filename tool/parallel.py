"""A function over many items in several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_work: Callable | None = None


def default_workers() -> int:
    """A process a core, of the cores that torchrun's processes on this machine leave to each."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`, computed in `workers` fresh processes.

    The processes are spawned, run one computing thread each, get `function` once, ignore Ctrl-C
    (it is this process that ends them) and end when this process does.

    Args:
        function: can be pickled.
        items: can be pickled.
        workers: at least 1; with 1, or with a single item, everything runs in this process.

    Raises:
        ChildProcessError: a worker died.
        Exception: what `function` raises is raised here. Either ends the pool.
    """
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    pool = process_pool(min(workers, len(items)), function)
    try:
        with one_thread_each():
            futures = [pool.submit(_call, item) for item in items]
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died (killed, or out of memory?): run again to go on, "
            "if need be with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def process_pool(workers: int, function: Callable | None = None) -> ProcessPoolExecutor:
    """Fresh processes that leave Ctrl-C to this one and end when it does.

    What is submitted inside `one_thread_each` starts them with one computing thread.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(function,),
    )


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes that start inside inherit an environment with one computing thread."""
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


def _start(function: Callable | None) -> None:
    global _work
    _work = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call(item: Item) -> Result:
    assert _work is not None
    return _work(item)
