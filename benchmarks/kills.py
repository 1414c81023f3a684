"""Kill every command at random moments, start it again, and compare what it makes.

A signal goes to the command, or to one of its workers. The command must end within a minute,
without a traceback, and not with status 0 unless it has finished. The same command then goes on.
Its files must equal, byte for byte, those of a command that nobody disturbed, and no temporary file
may be left. Linux only.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from data.toy import write_toy
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import POSITIVE, SEED

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT")
PATIENCE = 60  # seconds within which a command ends after its signal
LONGEST = 1800  # seconds of a command that nobody disturbs
COMPARED = (".pth", ".safetensors", ".npy", ".npz", ".png", ".jpg", ".txt", ".csv", ".zip")
STEPS = ("--steps", "12", "--save-every", "2", "--log-every", "2", "--picture-every", "6")
BACKBONE = ("--backbone", "resnet38d_slim", "--weights", "none")
CONFORMER = ("--backbone", "conformer_s", "--weights", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        count: Number of kills, over all commands in turn.
        seed: Random seed of the moments.
        only: Commands to kill; by default all.
        signals: Signals to send: each command once with the first, then with the next.
    """

    count: int = flag(60, type=POSITIVE, metavar="N")
    seed: int = flag(0, type=SEED)
    only: list[str] | None = flag(None, metavar="NAME")
    signals: tuple[str, ...] = flag(SIGNALS, choices=SIGNALS)


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that makes files in one folder.

    Attributes:
        name: Its name in the table.
        line: The command; `OUT` stands for the folder.
        whole: The files that it makes undisturbed: name -> content.
        seconds: How long it takes undisturbed.
    """

    name: str
    line: tuple[str, ...]
    whole: dict[str, bytes]
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and compare; return 1 if anything differs."""
    command = parse_flags(Command, argv, example="--count 60")
    draw, bad = random.Random(command.seed), 0
    with tempfile.TemporaryDirectory() as name:
        known = list(lines_in(Path(name)))
        wanted = command.only or known
        if not set(wanted) <= set(known):
            raise ValueError(f"--only: there are {', '.join(known)}")
        last = max(map(known.index, wanted))  # what comes before it makes what it reads
        jobs = [job for job in undisturbed(Path(name), last + 1) if job.name in wanted]
        for number in range(command.count):
            job, turn = jobs[number % len(jobs)], number // len(jobs)
            sent = signal.Signals[command.signals[turn % len(command.signals)]]
            moment, worker = draw.uniform(0.02, 0.98), draw.random() < 0.3
            wrong = kill(job, Path(name) / "killed", sent, moment * job.seconds, worker=worker)
            bad += bool(wrong)
            who = "worker" if worker else "command"
            print(
                f"{number + 1:3} {job.name:8} {sent.name:8} {who:8} at {moment:4.0%}: "
                + ("; ".join(wrong) or "equal"),
                flush=True,
            )
    print(f"{command.count - bad} of {command.count} kills left equal results")
    return int(bad > 0)


def lines_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the commands, each of which reads what the ones before it made in `folder`."""
    data = ("--dataset", "toy", "--root", str(folder / "data"), "--list", "train")
    cpu = ("--device", "cpu", "--num-workers", "2")
    small = (*STEPS, "--crop", "64", "--batch-size", "4", *cpu, "--out", "OUT", "--method")
    train = ("train_fbr.py", *data, *BACKBONE, *small)
    conformer = ("train_fbr.py", *data, *CONFORMER, *small)
    cams, seeds, masks = (str(folder / part) for part in ("infer", "seeds", "crf"))
    stage_2 = ("infer_cam.py", *data, *cpu, "--checkpoint")
    infer = (*stage_2[:-1], "--out", "OUT", "--checkpoint")
    two = ("--scales", "0.5", "1")
    crf = ("crf_postprocess.py", *data, "--cam-dir", cams, "--workers", "2", "--out", "OUT")
    borders = ("-m", "data.boundary", *data, "--seed-dir", seeds)
    masks_to = ("-m", "data.masks_to", "cvat", *data)
    photographs = sorted(map(str, (folder / "data").rglob("JPEGImages/*")))[:3]
    predict = ("-m", "network.predict", *photographs, "--out", "OUT", "--checkpoint")

    def run(name: str) -> str:
        return str(folder / name / "checkpoint.pth")

    return {
        "toy": ("-m", "data.toy", "--root", "OUT/data", "--train", "12", "--val", "4"),
        "train": (*train, "fbr", "--bank-size", "300", "--num-negatives", "16"),
        "infer": (*infer, run("train"), *two, "--gate", "nroi"),
        "crf": crf,
        "seeds": (*crf, "--seeds", "0.3", "0.05"),
        "borders": (*borders, "--no-saliency", "--workers", "2", "--out", "OUT"),
        "amn": (*train, "amn", "--seed-dir", seeds),
        "irn": (*train, "irn", "--seed-dir", seeds),
        "walk": (*infer, run("irn"), *two, "--seed-dir", seeds, "--cam-dir", cams),
        "sbe": (*train, "sbe", "--boundary-dir", str(folder / "borders")),
        "sbewalk": (*infer, run("sbe"), *two, "--cam-dir", cams),
        "sfc": (*train, "sfc"),
        "sfcmaps": (*infer, run("sfc"), *two, "--gate", "nroi", "--keep-plain"),
        "transcam": (*conformer, "transcam"),
        "bao": (*train, "bao"),
        "baomaps": (*infer, run("bao"), "--sides", "64", "96"),
        "seg": (*train, "deeplab1", "--mask-dir", masks),
        "segment": (*stage_2, run("seg"), *two, "--argmax", "OUT/mask"),
        "predict": (*predict, run("seg")),
        "export": ("-m", "network.export", run("seg"), "--out", "OUT/model.safetensors"),
        "masks_to": (*masks_to, "--pred-dir", masks, "--out", "OUT/masks.zip"),
        "fill": ("-m", "data.fill", *data, "--out", "OUT"),
    }


def undisturbed(folder: Path, count: int) -> list[Job]:
    """Run the first commands once; what a later one reads stays in `folder`."""
    write_toy(folder / "data", train=12, val=4)
    jobs = []
    for name, line in list(lines_in(folder).items())[:count]:
        began = time.monotonic()
        run = subprocess.run(in_place(line, folder / name), timeout=LONGEST, **_settings())
        if run.returncode:
            raise ValueError(f"{name}: {run.stderr.strip().splitlines()[-1]}")
        seconds = time.monotonic() - began
        jobs.append(Job(name, line, files_in(folder / name), seconds))
        print(f"{name}: {seconds:.0f} s, {len(jobs[-1].whole)} files", flush=True)
    return jobs


def in_place(line: Sequence[str], out: Path) -> list[str]:
    """Return the command with its folder."""
    return [sys.executable, *(word.replace("OUT", str(out)) for word in line)]


def _settings() -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {
        "cwd": ROOT,
        "env": environment,
        "text": True,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
    }


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the files to compare: those without times, and temporary ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix in COMPARED or path.name.startswith(".part"))
    }


def kill(job: Job, out: Path, sent: signal.Signals, after: float, *, worker: bool) -> list[str]:
    """Kill a command some seconds after its start, finish it, and return what is wrong."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    wrong = []
    process = subprocess.Popen(
        in_place(job.line, out),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **_settings(),
    )
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        target = (workers_of(process.pid) if worker else []) or [process.pid]
        os.kill(target[0], sent)
        try:
            _, errors = process.communicate(timeout=PATIENCE)
            wrong += ["a traceback"] if "Traceback" in errors else []
        except subprocess.TimeoutExpired:
            wrong.append("it hangs")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.wait() == 0 and files_in(out) != job.whole:
        wrong.append("status 0, but not finished")
    run = subprocess.run(in_place(job.line, out), timeout=LONGEST, check=False, **_settings())
    if run.returncode:
        return [*wrong, f"it does not go on: {run.stderr.strip().splitlines()[-1:]}"]
    found = files_in(out)
    differ = [name for name in {**found, **job.whole} if found.get(name) != job.whole.get(name)]
    return wrong + [f"{name} differs" for name in differ[:3]]


def workers_of(pid: int) -> list[int]:
    """Return the ids of the child processes of a process, highest first; of Linux's /proc."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found, reverse=True)


if __name__ == "__main__":
    run_stage(main)
