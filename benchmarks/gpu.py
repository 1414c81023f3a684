"""Run all benchmarks that need a GPU, each part in a process of its own.

Each part has a time limit. If a part fails or exceeds its limit, its last line is recorded and the
other parts still run. `gpu.json` is written anew after each part. `gpu.md` holds the tables, and
`gpu.log` the output of the parts.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.drawn import write_drawn
from benchmarks.gpu_table import ended, tables
from benchmarks.record import write_record
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import SOME

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 460.0  # seconds of all parts together
NETWORK = "--backbone resnet38d --output-stride 8 --device cuda --amp"
STEP = f"{NETWORK} --crop 448 --batch-size 8 --repeats 20"
SLIM = "--backbone resnet38d_slim --output-stride 8 --device cpu"
TINY_STEP = f"{SLIM} --crop 64 --batch-size 2 --repeats 1"
PARTS = {  # name -> time limit in seconds, and flags; the part that may take longest comes last
    "machine": (60, ""),
    "train_step": (90, STEP),
    "infer_cam": (90, f"{NETWORK} --batch-size 1 4 8 16"),
    "crf": (60, "--device cuda --batch 8 --size 375 500 --labels 3 21 --presets psa80"),
    "contrast": (60, "--device cuda --classes 20 80"),
    "random_walk": (45, "--device cuda"),
    "short_run": (100, "--device cuda --amp --steps 100"),
    "train_step_compiled": (150, f"{STEP} --compile"),
}
TINY_PARTS = {  # the same parts in sizes for a CPU
    "machine": (120, ""),
    "train_step": (120, TINY_STEP),
    "infer_cam": (120, f"{SLIM} --images 4 --batch-size 1 2"),
    "crf": (120, "--batch 2 --size 24 32 --labels 3 5 --presets psa80"),
    "contrast": (120, "--cells 4 --batch-size 2 --repeats 2 --classes 20 80"),
    "random_walk": (120, "--sizes 48x64 --repeats 2"),
    "short_run": (150, f"{SLIM} --steps 20 --crop 64 --batch-size 4"),
    # aot_eager needs no C++ compiler, and takes seconds while inductor takes a minute.
    "train_step_compiled": (150, f"{TINY_STEP} --compile aot_eager"),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement: `python -m benchmarks.PROGRAM FLAGS --json FILE`.

    Attributes:
        name: Its name in the record.
        program: Name of the command.
        flags: Flags of the command.
        limit: Time limit in seconds.
    """

    name: str
    program: str
    flags: Sequence[str]
    limit: float


def parts_of(data: Sequence[str] = (), *, tiny: bool) -> list[Part]:
    """Return the parts for a GPU, or the same parts in sizes for a CPU.

    Args:
        data: Flags of the drawn dataset.
        tiny: Whether to take the sizes for a CPU.
    """
    parts = []
    for name, (limit, flags) in (TINY_PARTS if tiny else PARTS).items():
        program = name.removesuffix("_compiled")
        on_data = data if program in ("train_step", "infer_cam") else ()
        parts.append(Part(name, program, (*flags.split(), *on_data), limit))
    return parts


def part_limit(text: str) -> tuple[str, float]:
    """Return the part and the seconds in the text PART=SECONDS, as a type of `argparse`.

    Raises:
        argparse.ArgumentTypeError: The part is unknown, or SECONDS is not a number above 0.
    """
    name, _, seconds = text.partition("=")
    if name in PARTS:
        with contextlib.suppress(ValueError, argparse.ArgumentTypeError):
            return name, SOME(seconds)
    raise argparse.ArgumentTypeError(
        f"{text}: give PART=SECONDS, above 0; there are the parts {', '.join(PARTS)}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of this command.

    Attributes:
        tiny: Take tiny sizes, on a CPU.
        out: Folder of the three files. The environment variable OUT names another one.
        total: Seconds of all parts together.
        only: The parts to run.
        limit: Time limit of one part; may be given several times.
    """

    tiny: bool = False
    out: Path = flag(lambda: Path(os.environ.get("OUT") or "out"))
    total: float = flag(TOTAL, type=SOME, metavar="SECONDS")
    only: tuple[str, ...] = flag(tuple(PARTS), choices=tuple(PARTS), metavar="PART")
    limit: list[tuple[str, float]] = flag(
        list, type=part_limit, nargs=None, action="append", metavar="PART=SECONDS"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 if all of them succeeded, else 1."""
    command = parse_flags(Command, argv, example="--tiny --out out/gpu")
    if command.tiny:  # more threads would wait for each other
        os.environ["OMP_NUM_THREADS"] = "1"
    command.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, open(command.out / "gpu.log", "wb") as log:
        root = Path(name) / "drawn"
        size = (64, 80) if command.tiny else (375, 500)
        write_drawn(root, images=32, sizes=[size], num_classes=20)
        parts = parts_of(("--dataset", "folder", "--root", str(root)), tiny=command.tiny)
        record = run_parts(parts, command, Path(name), log)
    text = tables(record)
    (command.out / "gpu.md").write_text(text, encoding="utf-8")
    print(
        f"\n{text}\n{command.out / 'gpu.json'}, {command.out / 'gpu.md'}, {command.out / 'gpu.log'}"
    )
    return int(any(part["status"] != "ok" for part in record["parts"].values()))


def run_parts(
    parts: Sequence[Part], command: Command, folder: Path, log: BinaryIO
) -> dict[str, Any]:
    """Run the parts that the flags choose, one after the other.

    Args:
        parts: All parts.
        command: The flags.
        folder: Folder for the parts' JSON files.
        log: The open `gpu.log`.

    Returns:
        The content of `gpu.json`.

    Raises:
        ValueError: There is no GPU.
    """
    started = time.perf_counter()
    parts = [part for part in parts if part.name in command.only]
    found = {part.name: {"status": "not run", "result": None} for part in parts}
    record = {"tiny": command.tiny, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "parts": found}
    for part in parts:
        # Parts for which no time is left keep the status "not run".
        remaining = command.total - (time.perf_counter() - started)
        if remaining > 1:
            limit = dict(command.limit).get(part.name, part.limit)
            found[part.name] = run_part(part, min(limit, remaining), folder, log)
        record["seconds"] = time.perf_counter() - started
        write_record(command.out / "gpu.json", record)
        print(ended(part.name, found[part.name]), flush=True)
        machine = found[part.name]["result"] if part.name == "machine" else None
        if not command.tiny and machine is not None and machine["gpu"] is None:
            raise ValueError("torch sees no GPU here: --tiny runs the same parts on a CPU")
    return record


def run_part(part: Part, limit: float, folder: Path, log: BinaryIO) -> dict[str, Any]:
    """Run one part in a process group of its own, and kill the whole group at the end.

    Args:
        part: The part.
        limit: Time limit in seconds.
        folder: Folder for the part's JSON file.
        log: The open log, which receives the part's output.

    Returns:
        `status` (ok, failed or out of time), facts of the run, and as `result` the figures that the
        part wrote before it ended, or None.
    """
    result = folder / f"{part.name}.json"
    flags = (*part.flags, "--json", str(result))
    command = [sys.executable, "-m", f"benchmarks.{part.program}", *flags]
    shown = " ".join(("python", *command[1:-2]))
    log.write(f"\n$ {shown}\n".encode())
    log.flush()
    first, started = log.tell(), time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        status = "ok" if process.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "out of time"
    finally:
        # A part may have started processes that outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        returncode = process.wait()
    seconds = time.perf_counter() - started
    log.seek(0, os.SEEK_END)
    return {
        "status": status,
        "seconds": seconds,
        "limit_s": limit,
        "returncode": returncode,
        "command": shown,
        "last_line": last_line(Path(log.name), first),
        "result": json.loads(result.read_text(encoding="utf-8")) if result.exists() else None,
    }


def last_line(path: Path, first: int) -> str:
    """Return the last line that is not empty, after byte `first` of a log."""
    text = path.read_bytes()[first:].decode(errors="replace").rstrip()
    return re.split(r"[\r\n]", text)[-1].strip()


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that a part ends too
    run_stage(main)
