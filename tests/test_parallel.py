"""Work in other processes: their death, at whatever moment, is an error and never a wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE, alive, children, wait_for

from tool.parallel.processes import FORK, Pool, map_processes
from tool.parallel.writer import BackgroundWriter

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted({"spawn", FORK})
LARGE = 50_000_000


def kill(*_: object) -> None:
    """Die as the memory killer ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_later(_: int) -> bytes:
    """Return a large result, and die while it is on the way."""
    threading.Timer(0.05, kill).start()
    return bytes(4 * LARGE)


def slow(number: int) -> int:
    """Finish in another order than begun, and fail for some."""
    time.sleep(0.01 * (number % 3))
    if number in (5, 7):
        raise ValueError(f"number {number}")
    return number


class DeadlyFunction:
    """Kills the process to which it is sent as the function."""

    def __reduce__(self) -> tuple:
        return kill, ()

    def __call__(self, _: object) -> None:
        raise AssertionError("never called")


class Odd(Exception):
    """An error that does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"odd {one} {two}")


def odd(_: int) -> None:
    raise Odd(1, 2)


def lambda_of(_: int) -> object:
    return lambda: 0


def exits(_: int) -> None:
    os._exit(7)


def signals(_: int) -> tuple:
    pending = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    return (*handlers, pending, os.getpgrp() == os.getpid())


@pytest.fixture(autouse=True)
def no_child_left() -> None:
    before = set(children(os.getpid()))
    yield
    left = [pid for pid in set(children(os.getpid())) - before if alive(pid) and not tracker(pid)]
    assert not left


def tracker(pid: int) -> bool:
    """Whether this is Python's own, which ends with this process."""
    return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [kill, kill_later, exits, DeadlyFunction()])
def test_a_death_is_an_error_at_once(method: str, function: object) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(ChildProcessError, match="worker process died") as error,
        Pool(2, function, method=method) as pool,
    ):
        list(pool.map([1] * 20, ahead=8))
    assert time.monotonic() - begun < PATIENCE
    assert ("exit status 7" if function is exits else "out of memory") in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_death_while_a_large_argument_is_on_the_way(method: str) -> None:
    with Pool(2, time.sleep, method=method) as pool:
        futures = [pool.submit(0), pool.submit(0)]
        assert [future.result() for future in futures] == [None, None]
        pids = [process.pid for process, _ in pool._workers]
        for pid in pids:  # it does not read what comes
            os.kill(pid, signal.SIGSTOP)
        waiting = [pool.submit(bytes(LARGE)) for _ in range(4)]
        time.sleep(0.2)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ChildProcessError, match="worker process died"):
            waiting[-1].result(timeout=PATIENCE)


def test_a_death_is_told_before_results_that_are_there() -> None:
    """Also that of a process with nothing to do."""
    with Pool(2, time.sleep, method=FORK) as pool:
        results = pool.map([0] * 9, ahead=6)
        next(results)
        time.sleep(0.2)
        for process, _ in pool._workers:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError):
            list(results)


def test_results_and_errors_keep_the_order() -> None:
    results = map_processes(slow, range(12), workers=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="number 5") as error:
        next(results)
    assert "in slow" in error.value.__notes__[0], "--traceback shows where in the worker"


@pytest.mark.parametrize(
    ("function", "item", "message"),
    [
        (lambda_of, 1, "lambda"),
        (str, threading.Lock(), "pickle"),
        (odd, 1, "Odd: odd 1 2"),
        (sys.exit, 3, "3"),
    ],
)
def test_what_cannot_travel_is_an_error(function: object, item: object, message: str) -> None:
    with (
        pytest.raises((AttributeError, TypeError, RuntimeError, SystemExit), match=message),
        Pool(1, function, method=FORK) as pool,
    ):
        pool.submit(item).result(timeout=PATIENCE)


def test_few_jobs_wait() -> None:
    drawn = []

    def items() -> object:
        for number in range(50):
            drawn.append(number)
            yield number

    with Pool(2, abs, method=FORK) as pool:
        for done, result in enumerate(pool.map(items(), ahead=4)):
            assert result == done
            assert len(drawn) <= done + 5
            assert len(pool._workers) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_process_leaves_signals_to_its_parent(method: str) -> None:
    """Also one that was born with the handlers of a run that saves."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Pool(1, signals, method=method) as pool:
            found = pool.submit(0).result(timeout=PATIENCE)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == (signal.SIG_IGN, signal.SIG_DFL, set(), True)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C; the background job of a shell, as tests may be, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_is_not_lost_while_a_process_starts() -> None:
    """Whichever thread receives it, and also in a hook of the fork, where errors are ignored."""
    hooks = []
    os.register_at_fork(before=lambda: hooks and os.kill(os.getpid(), signal.SIGINT))
    idle = threading.Thread(target=time.sleep, args=(1,))
    idle.start()
    with Pool(1, abs, method="fork") as pool:
        hooks.append(True)
        try:
            with pytest.raises(KeyboardInterrupt):
                pool.submit(1)
        finally:
            hooks.clear()
        assert len(pool._workers) == 1, "so that leaving ends it"
    idle.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_leaving_ends_processes_at_work() -> None:
    begun = time.monotonic()
    with Pool(2, time.sleep, method=FORK) as pool:
        futures = [pool.submit(10 * PATIENCE) for _ in range(5)]
        time.sleep(0.1)
    assert time.monotonic() - begun < PATIENCE
    for future in futures:
        assert isinstance(future.exception(timeout=PATIENCE), ChildProcessError)


def test_a_process_may_finish_what_it_writes(tmp_path: Path) -> None:
    with Pool(1, write_slowly, method=FORK) as pool:
        pool.submit(tmp_path / "file")
        wait_for(lambda: list(tmp_path.iterdir()), bool)
    assert (tmp_path / "file").read_text() == "begun, ended"


def write_slowly(path: Path) -> None:
    path.write_text("begun")
    time.sleep(0.3)
    path.write_text("begun, ended")


IDLE_AND_BUSY = """
import os, sys, time
from tool.parallel.processes import Pool

if __name__ == "__main__":
    pool = Pool(2, time.sleep, method=sys.argv[1])
    idle, busy = pool.submit(0), pool.submit(600)
    idle.result()
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("method", METHODS)
def test_processes_end_with_their_parent(method: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", IDLE_AND_BUSY, method], cwd=ROOT, stdout=subprocess.PIPE
    )
    parent.stdout.readline()
    parent.stdout.close()
    found = children(parent.pid)
    assert len(found) >= 2
    parent.kill()
    parent.wait()
    assert wait_for(lambda: [pid for pid in found if alive(pid)], lambda left: not left) == []


def test_a_process_that_is_forked_later_does_not_hide_a_death() -> None:
    """It inherits what is open; so may a loader's process that starts beside others."""
    with Pool(1, time.sleep) as pool:
        pool.submit(0).result(timeout=PATIENCE)
        with Pool(2, time.sleep, method=FORK) as other:
            for future in (other.submit(0), other.submit(0)):
                assert future.result(timeout=PATIENCE) is None
            job = pool.submit(10 * PATIENCE)
            os.kill(pool._workers[0][0].pid, signal.SIGKILL)
            with pytest.raises(ChildProcessError):
                job.result(timeout=PATIENCE)


@pytest.mark.parametrize("processes", [0, 1])
def test_the_writer_bounds_what_waits_and_tells_the_first_error(processes: int) -> None:
    with BackgroundWriter(processes=processes, threads=1, ahead=2) as writer:
        begun = time.monotonic()
        for _ in range(5):
            writer.submit(time.sleep, 0.2)
        assert time.monotonic() - begun > 0.35, "at most two of the five are left"
    assert time.monotonic() - begun > 0.95, "all are done"
    with pytest.raises(ValueError, match="number 5"):
        submit([(slow, 4), (slow, 5), (slow, 6)], processes=processes, threads=1, ahead=3)


def submit(calls: list[tuple], *, error: Exception | None = None, **settings: int) -> None:
    """Submit calls to a writer, then raise an error, if any."""
    with BackgroundWriter(**settings) as writer:
        for call in calls:
            writer.submit(*call)
        if error is not None:
            raise error


@pytest.mark.parametrize("processes", [0, 1])
def test_after_an_error_of_the_caller_the_writer_does_not_go_on(processes: int) -> None:
    begun = time.monotonic()
    calls, error = [(time.sleep, 0.5)] * (4 * PATIENCE), OSError("the caller's")
    with pytest.raises(OSError, match="the caller's"):
        submit(calls, error=error, processes=processes, threads=1, ahead=len(calls))
    assert time.monotonic() - begun < PATIENCE


def test_a_dead_process_of_the_writer_is_told() -> None:
    with pytest.raises(ChildProcessError, match="worker process died"):
        submit([(kill,)] * 1000, processes=2, ahead=3)
