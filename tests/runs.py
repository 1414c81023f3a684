"""Helpers of the tests that run whole stages as a user does."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path

from tool.cli import run_stage

REPOSITORY = Path(__file__).resolve().parents[1]
SMALL = ["--backbone", "resnet38d_slim", "--weights", "none", "--crop", "64", "--batch-size", "4"]
SMALL += ["--picture-every", "0", "--num-workers", "0", "--device", "cpu"]
FORK = multiprocessing.get_context("forkserver")  # torch is imported once, not once a rank
FORK.set_forkserver_preload(["torch.distributed", "matplotlib.figure"])


def command(script: str, *flags: object) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, str(REPOSITORY / script), *map(str, flags)]


def environment() -> dict[str, str]:
    """One thread: the machine that tests is small."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished stage left, named as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def run(script: str, *flags: object) -> Result:
    """Run a stage to its end as a program, but in this process: importing torch takes seconds."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, [script, *map(str, flags)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_stage(module.main)
    except SystemExit as end:
        return Result(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("run_stage always exits")


@dataclasses.dataclass(frozen=True)
class RanksResult:
    """What the ranks of a stage left: the exit status of each, and their texts together."""

    returncodes: list[int | None]
    stdout: str
    stderr: str

    @property
    def returncode(self) -> int | None:
        """The one that they agree on."""
        assert len(set(self.returncodes)) == 1, (self.returncodes, self.stderr)
        return self.returncodes[0]


def _rank(rank: int, ranks: int, port: int, folder: Path, script: str, flags: list[str]) -> None:
    """One rank: the stage as a program, in the environment that torchrun makes."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), number)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(REPOSITORY)
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


def run_ranks(ranks: int, folder: Path, script: str, *flags: object) -> RanksResult:
    """Run a stage in `ranks` processes."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (ranks, port, folder, script, [str(flag) for flag in flags])
    processes = [FORK.Process(target=_rank, args=(rank, *arguments)) for rank in range(ranks)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()  # where it still runs
        process.join()
    texts = [
        "".join((folder / f"{n}{r}").read_text() for r in range(ranks)) for n in ("out", "err")
    ]
    return RanksResult([process.exitcode for process in processes], *texts)


def train_flags(root: Path, out: Path, *, method: str = "fbr", steps: int = 4) -> list[object]:
    """A tiny run on a `folder` dataset."""
    flags = ["--method", method, "--dataset", "folder", "--root", root, "--list", "train"]
    if method == "fbr":
        flags += ["--bank-size", 300, "--num-negatives", 16]
    return [*flags, "--out", out, "--steps", steps, "--save-every", 1, "--log-every", 1, *SMALL]


def assert_refused(result: Result | RanksResult, *words: str) -> None:
    """Exit status 2, one line of error, no traceback, and these words in it."""
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
