"""Signals: a run saves and ends with the signal's status; Ctrl-C elsewhere ends without a word."""

from __future__ import annotations

import ast
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, wait_for
from runs import REPOSITORY, command, environment
from test_engine import Line, batches

from tool.parallel.processes import FORK, Pool
from tool.parallel.worker import SIGNALS
from tool.progress import Progress
from tool.train.engine import Settings, fit
from tool.train.interrupt import Interrupt

PROGRAMS = sorted(
    path
    for folder in (".", "benchmarks", "coco14", "data", "network", "tool", "voc12")
    for path in (REPOSITORY.glob("*.py") if folder == "." else (REPOSITORY / folder).rglob("*.py"))
    if "    run_stage(main)\n" in path.read_text(encoding="utf-8")
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of a terminal's program, whatever the tests run under; put back at the end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(
    raise_in_step: int | None, save: Callable[[int], object], *, steps: int = 3
) -> int | None:
    """A run in which `SIGNALS[0]` comes in a step, counted from 1; None for in no step."""
    method = Line()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]

    def transform(batch: dict) -> dict:
        if batch["image_id"][0] == f"image {(raise_in_step or 0) - 1}.0":
            signal.raise_signal(signal.SIGINT)
        return batch

    return fit(
        method,
        optimizer,
        batches(3),
        start=Progress(steps=3),
        settings=Settings(steps=3, batch_size=4, save_every=1),
        device=torch.device("cpu"),
        transform=transform,
        log=None,
        save=save,
    )


def test_a_run_that_no_signal_reaches_is_complete() -> None:
    saved: list[int] = []
    assert train(None, saved.append) is None
    assert saved == [1, 2, 3]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_signal_in_a_step_is_told_also_of_the_last_one(step: int) -> None:
    """A script that sees exit status 0 would go on with its next stage."""
    saved: list[int] = []
    assert train(step, saved.append) == signal.SIGINT
    assert saved[-1] == step


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_signal_in_a_save_lets_it_end_and_is_told(number: signal.Signals, at: int) -> None:
    saved: list[int] = []

    def save(done: int) -> None:
        if done == at:
            signal.raise_signal(number)
        saved.append(done)

    assert train(None, save) == number
    assert saved == list(range(1, min(at + 1, 3) + 1)), "the step after the save ends the run"


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGHUP)
    assert interrupt.signal is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_second_signal_ends_the_process_as_usual() -> None:
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def hang_up_handler(_: int) -> object:
    return signal.getsignal(signal.SIGHUP)


@pytest.mark.parametrize("own", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_worker_of_a_run_has_no_handler_of_the_hang_up(own: signal.Handlers) -> None:
    signal.signal(signal.SIGHUP, own)
    with Interrupt(), Pool(1, hang_up_handler, method=FORK) as pool:
        assert pool.submit(0).result(timeout=PATIENCE) == own


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_program_is_quiet_before_it_imports_anything(path: Path) -> None:
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    imports = [node for node in nodes if not isinstance(node, ast.Expr)][1:]  # after __future__
    assert ast.unparse(imports[0]) == "if __name__ == '__main__':\n    import tool.starting"


def interrupted(process: subprocess.Popen, ready: Callable[[], object]) -> tuple[int, str]:
    """Ctrl-C when it is ready: the exit status, and what it said."""
    wait_for(lambda: process.poll() is not None or ready(), bool)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def started(*flags: object, code: str | None = None) -> subprocess.Popen:
    line = command(*flags) if code is None else [*command("")[:1], "-c", code]
    return subprocess.Popen(
        line, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_while_a_program_imports_says_nothing() -> None:
    assert PROGRAMS
    process = started("eval_miou.py", "--help")
    maps = Path(f"/proc/{process.pid}/maps")

    def imports() -> bool:
        return "_multiarray_umath" in maps.read_text()

    assert interrupted(process, imports) == (-signal.SIGINT, "")


STAGE = """
import tool.starting
import atexit, time
from tool.cli import run_stage
def wait():
    open({mark!r}, "w").close()
    time.sleep(60)
def main(argv):
    {main}
run_stage(main)
"""


@pytest.mark.parametrize(
    ("main", "status"), [("wait()", 130), ("atexit.register(wait)", -signal.SIGINT)]
)
def test_ctrl_c_at_work_and_at_the_very_end_says_nothing(main: str, status: int, tmp_path) -> None:
    process = started(code=STAGE.format(mark=str(tmp_path / "mark"), main=main))
    assert interrupted(process, (tmp_path / "mark").exists) == (status, "")
