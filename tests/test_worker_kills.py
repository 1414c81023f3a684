"""Commands whose workers are killed, as the memory killer does it: one line, and on they go."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import write_folder
from processes import PATIENCE, alive, children, command_of, wait_for
from runs import REPOSITORY, command, environment, run, train_flags

from tool.formats.cam import Cam, save_cam
from tool.formats.mask import load_mask

WORKERS = 2
STEPS = 30  # of a training run


@dataclasses.dataclass(frozen=True)
class Case:
    """A command with workers.

    Attributes:
        script: the command. flags: without its output folder.
        out: the flag of that folder, and what counts as an output.
        spawned: whether the workers to kill are fresh processes, or forks: loader processes.
    """

    script: str
    flags: list[object]
    out: tuple[str, str]
    spawned: bool

    def command(self, out: Path) -> list[str]:
        return command(self.script, *self.flags, self.out[0], out)

    def outputs(self, out: Path) -> dict[str, bytes]:
        """What is there whole: files under temporary names are not."""
        paths = [path for path in sorted(out.glob(self.out[1])) if path.name[0] != "."]
        return {path.name: path.read_bytes() for path in paths}

    def workers(self, pid: int) -> list[int]:
        """The workers that a command has at the moment."""
        found = [child for child in children(pid) if alive(child)]
        if self.spawned:
            return [child for child in found if b"spawn_main" in command_of(child)]
        return [child for child in found if leads_a_group(child)]  # git, which a run asks, does not


def leads_a_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


IMAGES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The flags of a dataset whose list `many` has every image five times; CAMs beside it."""
    root = write_folder(tmp_path_factory.mktemp("kills") / "dataset")
    names = (root / "lists" / "train.txt").read_text().splitlines()
    rows = dict(row.split(",") for row in (root / "labels.csv").read_text().splitlines()[1:])
    for number in range(IMAGES):
        name, copy = names[number % len(names)], f"{number:02d}"
        (path,) = (root / "images").glob(f"{name}.*")
        (root / "images" / f"{copy}{path.suffix}").write_bytes(path.read_bytes())
        rows[copy] = rows[name]
    many = [f"{number:02d}" for number in range(IMAGES)]
    (root / "lists" / "many.txt").write_text("".join(f"{name}\n" for name in many))
    text = "".join(f"{name},{classes}\n" for name, classes in rows.items())
    (root / "labels.csv").write_text(f"image_id,classes\n{text}")
    for place, name in enumerate([*names, *many]):
        truth = load_mask(root / "masks" / f"{names[place % len(names)]}.png")
        index = np.unique(truth[truth > 0])
        maps = np.stack(
            [0.9 * (truth == value) for value in index] or [np.zeros((0, *truth.shape))]
        )
        maps = maps.reshape(len(index), *truth.shape).astype(np.float32)
        save_cam(root.parent / "cam" / f"{name}.npy", Cam(index, maps))
    return ["--dataset", "folder", "--root", root]


@pytest.fixture(scope="module")
def crf(data: list[object]) -> Case:
    """`crf_postprocess.py`, a second of work for each worker."""
    flags = [*data, "--list", "many", "--cam-dir", data[-1].parent / "cam", "--iterations", 20]
    return Case("crf_postprocess.py", [*flags, "--workers", WORKERS], ("--out", "*.png"), True)


@pytest.fixture(scope="module")
def cases(data: list[object], crf: Case) -> dict[str, Case]:
    """Every command with workers; the checkpoints that they start from are made here."""
    root, folder = data[-1], data[-1].parent
    cams = ["--cam-dir", folder / "cam"]
    seeds = [*data, *cams, "--out", folder / "seed", "--seeds", 0.3, 0.05, "--workers", 1]
    assert run("crf_postprocess.py", *seeds).returncode == 0
    infer = {}
    for method, more in (("cam", []), ("irn", ["--seed-dir", folder / "seed"])):
        result = run(
            "train_fbr.py", *train_flags(root, folder / method, method=method, steps=2), *more
        )
        assert result.returncode == 0, result.stderr
        infer[method] = ["--checkpoint", folder / method / "checkpoint.pth", "--device", "cpu"]
        infer[method] += [*data, "--list", "many", "--scales", 0.5, "--num-workers"]
    train = train_flags(root, "OUT", method="cam", steps=STEPS)
    del train[train.index("--out") : train.index("OUT") + 1]
    masks = [*infer["cam"], 0, "--crf-workers", WORKERS]
    return {
        "train": Case(
            "train_fbr.py", [*train, "--num-workers", WORKERS], ("--out", "checkpoint.pth"), False
        ),
        "cam": Case("infer_cam.py", [*infer["cam"], WORKERS], ("--out", "*.npy"), False),
        "walk": Case("infer_cam.py", [*infer["irn"], WORKERS, *cams], ("--out", "*.npy"), False),
        "masks": Case("infer_cam.py", masks, ("--masks", "*.png"), True),
        "crf": crf,
    }


def start(case: Case, out: Path, python: Sequence[str] = (sys.executable,)) -> subprocess.Popen:
    """The command, in a process group of its own."""
    return subprocess.Popen(
        [*python, *case.command(out)[1:]],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # the background job of a shell, which the tests may be, ignores Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def family(pid: int) -> list[int]:
    """The processes that a command has started."""
    return [child for child in children(pid) if alive(child)]


def progress(case: Case, out: Path) -> int:
    """How many outputs are there; of a run, how many steps are done."""
    if case.script == "train_fbr.py":
        log = out / "log.jsonl"
        return len(re.findall('"step"', log.read_text())) if log.exists() else 0
    return len(case.outputs(out))


def ended(process: subprocess.Popen) -> tuple[str, float]:
    """What the command says, and after how many seconds it has ended."""
    begun = time.monotonic()
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    return errors, time.monotonic() - begun


def kill_one(
    case: Case, out: Path, reached: Callable[[int], bool], which: int, *, may_finish: bool = False
) -> None:
    """Kill a worker at a moment: the command ends in one line, soon, without a child.

    Args:
        may_finish: Near the end it may have all that it needs of its workers, and succeed.
    """
    process = start(case, out)
    seen = wait_for(
        lambda: (progress(case, out), case.workers(process.pid)),
        lambda now: (reached(now[0]) and len(now[1]) > which) or process.poll() is not None,
        seconds=120,
    )
    if may_finish and process.poll() == 0:
        return
    assert process.poll() is None, (seen, process.communicate())
    left = family(process.pid)
    with contextlib.suppress(ProcessLookupError if may_finish else ()):
        os.kill(seen[1][which], signal.SIGKILL)
    errors, seconds = ended(process)
    if may_finish and process.returncode == 0:
        return
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert process.returncode == 2, (process.returncode, errors)
    assert len(lines) == 1, errors
    assert "worker process died" in lines[0], errors
    assert "Traceback" not in errors
    assert seconds < PATIENCE, errors
    assert not wait_for(lambda: [pid for pid in left if alive(pid)], lambda found: not found)


def finish(case: Case, out: Path) -> None:
    process = start(case, out)
    errors, _ = ended(process)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def undisturbed(cases, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """The outputs of a command that nobody disturbs; made once."""
    known: dict[str, dict[str, bytes]] = {}

    def outputs(name: str) -> dict[str, bytes]:
        if name not in known:
            out = tmp_path_factory.mktemp("undisturbed") / "out"
            finish(cases[name], out)
            known[name] = cases[name].outputs(out)
            assert len(known[name]) == (1 if name == "train" else IMAGES)
        return known[name]

    return outputs


MOMENTS: dict[str, Callable[[int], Callable[[int], bool]]] = {
    "start": lambda whole: lambda done: True,
    "middle": lambda whole: lambda done: done >= whole // 3,
    "late": lambda whole: lambda done: done >= whole * 7 // 10,
    "end": lambda whole: lambda done: done >= whole - 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "cam", "walk", "masks", "crf"])
def test_killed_workers_end_the_command_and_it_goes_on(cases, undisturbed, tmp_path, name) -> None:
    """Twice, of the first worker and of the last: killed at four moments, and then left alone."""
    case, whole = cases[name], undisturbed(name)
    number = STEPS if name == "train" else IMAGES
    for which in range(WORKERS):
        out = tmp_path / f"{which}"
        for moment, reached in MOMENTS.items():
            kill_one(case, out, reached(number), which, may_finish=moment in ("late", "end"))
        finish(case, out)
        assert case.outputs(out) == whole, which


@pytest.mark.parametrize("moment", ["start", "middle"])
def test_a_killed_worker_is_told_in_one_line(crf, tmp_path, moment: str) -> None:
    kill_one(crf, tmp_path / "out", MOMENTS[moment](IMAGES), 0)


def interrupt(case: Case, out: Path, delay: float) -> None:
    """Ctrl-C some time after the first worker is there: status 130, and not a word."""
    process = start(case, out)
    workers = wait_for(lambda: case.workers(process.pid), bool, seconds=120)
    time.sleep(delay)
    left = {*workers, *family(process.pid)}
    os.killpg(process.pid, signal.SIGINT)
    errors, seconds = ended(process)
    assert process.returncode == 130, (process.returncode, errors)
    assert "Traceback" not in errors
    assert "Error" not in errors
    assert seconds < PATIENCE, errors
    assert not wait_for(lambda: [pid for pid in left if alive(pid)], lambda found: not found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "cam", "masks", "crf"])
def test_ctrl_c_while_workers_start(cases, tmp_path, name: str) -> None:
    if name == "cam":  # at one scale a fast machine would be done before the last of the signals
        flags = [*cases[name].flags, "--scales", 0.5, 1, 1.5, 2]
        cases = cases | {name: dataclasses.replace(cases[name], flags=flags)}
    for number, delay in enumerate((0.0, 0.02, 0.1, 0.3)):
        interrupt(cases[name], tmp_path / f"{number}", delay)


def test_ctrl_c_while_fresh_processes_import(crf, tmp_path) -> None:
    interrupt(crf, tmp_path / "out", 0.1)


def ranks_of(torchrun: int) -> list[int]:
    """Return the ranks that torchrun has started, without its other children."""
    commands = {pid: command_of(pid) for pid in children(torchrun)}
    return [
        pid
        for pid, line in commands.items()
        if (b"--out" in line or b"--masks" in line) and b"distributed.run" not in line
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "cam", "masks", "crf"])
def test_a_killed_worker_of_one_rank_ends_all(cases, tmp_path, name: str) -> None:
    """Under torchrun, which adds words of its own."""
    case = cases[name]
    if name == "train":  # norms from scratch cannot be taken over ranks on a CPU
        start_from = ["--init", cases["cam"].flags[1]]
        case = dataclasses.replace(case, flags=[*case.flags, *start_from])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = start(case, tmp_path / "out", [sys.executable, *torchrun])
    ranks = wait_for(lambda: ranks_of(process.pid), lambda found: len(found) == 2, 60)
    workers = wait_for(lambda: case.workers(ranks[1]), bool, 120)
    left = [*ranks, *workers, *family(ranks[0])]
    os.kill(workers[0], signal.SIGKILL)
    errors, seconds = ended(process)
    assert process.returncode != 0
    assert errors.count("worker process died") == 1, errors
    assert seconds < PATIENCE, errors
    assert not wait_for(lambda: [pid for pid in left if alive(pid)], lambda found: not found)
