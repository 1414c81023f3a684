"""`python -m benchmarks.gpu`: all that is to be measured on a GPU, each part a process of its own.

A part has a time limit. One that fails or is out of time is recorded with its last line, and the
others go on. `gpu.json` is written anew after each part; `gpu.md` holds the tables, `gpu.log` what
the parts printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from benchmarks.drawn import write_drawn
from benchmarks.gpu_table import tables
from benchmarks.record import write_record
from tool.cli import Parser, positive_float, run_stage

ROOT = Path(__file__).resolve().parents[1]
TOTAL = 460.0  # seconds of all parts together
NETWORK = ("--backbone", "resnet38d", "--output-stride", "8", "--device", "cuda", "--amp")
SLIM = ("--backbone", "resnet38d_slim", "--output-stride", "8", "--device", "cpu")


@dataclasses.dataclass(frozen=True)
class Part:
    """A measurement: `python -m benchmarks.PROGRAM FLAGS --json FILE`.

    Attributes:
        limit: seconds.
        one_thread: of torch on the CPU, for tiny sizes: more would wait for each other.
    """

    name: str
    program: str
    flags: Sequence[str]
    limit: float
    one_thread: bool = False


def gpu_parts(data: Sequence[str]) -> list[Part]:
    """What is measured on a GPU; what may take longest stands last.

    Args:
        data: flags of the drawn dataset.
    """
    step = (*NETWORK, *data, "--crop", "448", "--batch-size", "8", "--repeats", "20")
    cam = ("--size", "375", "500", "--images", "32", "--batch-size", "1", "4", "8", "16")
    crf = ("--device", "cuda", "--batch", "8", "--size", "375", "500", "--labels", "3", "21")
    return [
        Part("machine", "machine", (), 60),
        Part("train_step", "train_step", step, 90),
        Part("infer_cam", "infer_cam", (*NETWORK, *cam), 90),
        Part("crf", "crf", (*crf, "--presets", "psa80"), 60),
        Part("contrast", "contrast", ("--device", "cuda", "--classes", "20", "80"), 60),
        Part("random_walk", "random_walk", ("--device", "cuda"), 45),
        Part("short_run", "short_run", ("--device", "cuda", "--amp", "--steps", "100"), 100),
        Part("train_step_compiled", "train_step", (*step, "--compile"), 150),
    ]


def tiny_parts(data: Sequence[str]) -> list[Part]:
    """The same parts in sizes for a CPU; see `gpu_parts`."""
    step = (*SLIM, *data, "--crop", "64", "--batch-size", "2", "--repeats", "1")
    cam = ("--size", "48", "64", "--images", "4", "--batch-size", "1", "2")
    run = ("--device", "cpu", "--backbone", "resnet38d_slim")
    run += ("--steps", "20", "--crop", "64", "--batch-size", "4")
    crf = ("--batch", "2", "--size", "24", "32", "--labels", "3", "5", "--presets", "psa80")
    contrast = ("--cells", "4", "--batch-size", "2", "--repeats", "2", "--classes", "20", "80")
    parts = [
        Part("machine", "machine", (), 120),
        Part("train_step", "train_step", step, 120),
        Part("infer_cam", "infer_cam", (*SLIM, *cam), 120),
        Part("crf", "crf", crf, 120),
        Part("contrast", "contrast", contrast, 120),
        Part("random_walk", "random_walk", ("--sizes", "48x64", "--repeats", "2"), 120),
        Part("short_run", "short_run", run, 150),
        # needs no C++ compiler, and takes seconds where inductor takes a minute
        Part("train_step_compiled", "train_step", (*step, "--compile", "aot_eager"), 150),
    ]
    return [dataclasses.replace(part, one_thread=True) for part in parts]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 when one of them failed."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, open(args.out / "gpu.log", "wb") as log:
        folder = Path(name)
        size = (64, 80) if args.tiny else (375, 500)
        write_drawn(folder / "drawn", images=32, size=size, num_classes=20)
        data = ("--dataset", "folder", "--root", str(folder / "drawn"))
        parts = tiny_parts(data) if args.tiny else gpu_parts(data)
        limits = limits_of(args.limit, parts)
        parts = chosen(args.only, parts)
        record = run_parts(parts, limits, args, folder, log)
    text = tables(record)
    (args.out / "gpu.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.out / 'gpu.json'}, {args.out / 'gpu.md'}, {args.out / 'gpu.log'}")
    return int(any(part["status"] != "ok" for part in record["parts"].values()))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="store_true", help="tiny sizes, on a CPU")
    out = Path(os.environ.get("OUT") or "out")
    add("--out", type=Path, default=out, help="folder of the three files")
    add("--total", type=positive_float, default=TOTAL, help="seconds of all parts together")
    add("--only", nargs="+", metavar="PART", help="these parts; None: all of them")
    add(
        "--limit",
        action="append",
        default=[],
        metavar="PART=SECONDS",
        help="time limit of one part; may be given several times",
    )
    return parser.parse_args(argv)


def chosen(names: Sequence[str] | None, parts: Sequence[Part]) -> Sequence[Part]:
    """The parts of these names, in their own order.

    Raises:
        ValueError: an unknown part.
    """
    known = [part.name for part in parts]
    for name in names or ():
        if name not in known:
            raise ValueError(f"--only {name}: there are the parts {', '.join(known)}")
    return [part for part in parts if names is None or part.name in names]


def limits_of(given: Sequence[str], parts: Sequence[Part]) -> dict[str, float]:
    """{part: seconds}: each part's own limit, or the given one.

    Raises:
        ValueError: an unknown part, or no number of seconds above 0.
    """
    limits = {part.name: part.limit for part in parts}
    for text in given:
        name, _, seconds = text.partition("=")
        if name not in limits:
            raise ValueError(f"--limit {text}: there are the parts {', '.join(limits)}")
        try:
            limits[name] = positive_float(seconds)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"--limit {text}: give PART=SECONDS, above 0") from error
    return limits


def run_parts(
    parts: Sequence[Part],
    limits: dict[str, float],
    args: argparse.Namespace,
    folder: Path,
    log: BinaryIO,
) -> dict[str, Any]:
    """Run the parts one after the other.

    Returns:
        what `gpu.json` holds.

    Raises:
        ValueError: no GPU.
    """
    started = time.perf_counter()
    found = {part.name: {"status": "not run", "result": None} for part in parts}
    record = {"tiny": args.tiny, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "parts": found}
    for part in parts:
        left = args.total - (time.perf_counter() - started)
        if left > 1:
            found[part.name] = run_part(part, min(limits[part.name], left), folder, log)
        record["seconds"] = time.perf_counter() - started
        write_record(args.out / "gpu.json", record)
        print(one_line(part.name, found[part.name]), flush=True)
        machine = found[part.name]["result"] if part.name == "machine" else None
        if not args.tiny and machine is not None and machine["gpu"] is None:
            raise ValueError("torch sees no GPU here: --tiny runs the same parts on a CPU")
    return record


def run_part(part: Part, limit: float, folder: Path, log: BinaryIO) -> dict[str, Any]:
    """Run one part as a process group of its own, which is ended with everything in it.

    Returns:
        `status` (ok, failed or out of time), and the figures that it had written by then.
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
        env=os.environ | ({"OMP_NUM_THREADS": "1"} if part.one_thread else {}),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        status = "ok" if process.wait(limit) == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "out of time"
    finally:
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
    """The last line that is not empty, behind byte `first` of a log."""
    with open(path, "rb") as file:
        file.seek(first)
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def one_line(name: str, part: dict[str, Any]) -> str:
    """How a part ended."""
    if part["status"] == "not run":
        return f"{name}: not run, no time left"
    ended = f"{name}: {part['status']}, {part['seconds']:.1f} s"
    return ended if part["status"] == "ok" else f"{ended}: {part['last_line']}"


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that a part ends too
    run_stage(main)
