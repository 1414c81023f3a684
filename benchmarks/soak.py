"""Send many images through stages 2, 3 and 4, and show that memory and open files stay flat.

The images are small, drawn ones, and the network has random weights. CAMs, gated and plain ones,
become masks by the CRF, and the masks are scored. The memory of a stage is that of the command and
its workers together, in which what they share counts once, and files that are mapped do not. The
open files are those of the process that has most of them. Linux only.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.drawn import write_drawn
from benchmarks.kills import ROOT, workers_of
from benchmarks.record import JsonFlags, Rows
from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import POSITIVE

SIZES = ((64, 64), (64, 80), (80, 64), (48, 96), (65, 63))  # (H, W), so that sizes vary
PAUSE = 0.5  # seconds between two looks at the processes
NETWORK = ("--backbone", "resnet38d_slim", "--output-stride", "8", "--weights", "none")
KEPT = ("Pss_Anon:", "Pss_Shmem:")  # of /proc/PID/smaps_rollup, in KiB; a shared page in parts
PARTS = ("first quarter", "second", "third", "last quarter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(JsonFlags):
    """What the command line says.

    Attributes:
        count: Number of images.
        classes: Number of classes, of which each image shows one or two.
        workers: Number of loader processes, and of CRF processes.
    """

    count: int = flag(3000, type=POSITIVE, metavar="N")
    classes: int = flag(20, type=POSITIVE, metavar="K")
    workers: int = flag(2, type=POSITIVE, metavar="N")


@dataclasses.dataclass(frozen=True)
class Look:
    """What is seen of a command at one moment.

    Attributes:
        done: Number of files that it has written, or 0 if it writes none.
        memory: Resident memory of all its processes, in MiB, that is no file's.
        files: The most open files of one process.
    """

    done: int
    memory: float
    files: int


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages, and print what they took in each quarter of their work."""
    command = parse_flags(Command, argv, example="--count 3000")
    line = "| {stage} | {part} | {memory_mib:.0f} | {open_files} |"
    rows = Rows(command.json, line, "stage", "of its images", "MiB", "open files")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_drawn(folder / "data", images=command.count, sizes=SIZES, num_classes=command.classes)
        for stage, (words, out) in stages(folder, command).items():
            looks = watched(words, out)
            if stage == "train":
                continue
            for part, some in zip(PARTS, quarters(looks), strict=True):
                memory = statistics.median(look.memory for look in some)
                files = max(look.files for look in some)
                rows.add(stage=stage, part=part, memory_mib=memory, open_files=files)


def stages(folder: Path, command: Command) -> dict[str, tuple[list[str], Path]]:
    """Return the commands, and the folder that each fills."""
    data = ["--dataset", "folder", "--root", str(folder / "data"), "--list", "train"]
    cpu = ["--device", "cpu", "--num-workers", str(command.workers)]
    run, cam, mask = (folder / name for name in ("run", "cam", "mask"))
    short = ["--method", "cam", "--steps", "2", "--batch-size", "4", "--crop", "64", *NETWORK]
    infer = ["--checkpoint", str(run / "checkpoint.pth"), "--gate", "nroi", "--keep-plain"]
    crf = ["--cam-dir", str(cam), "--workers", str(command.workers)]
    return {
        "train": (["train_fbr.py", *data, *cpu, *short, "--out", str(run)], run),
        "infer": (["infer_cam.py", *data, *cpu, *infer, "--scales", "1", "--out", str(cam)], cam),
        "crf": (["crf_postprocess.py", *data, *crf, "--out", str(mask)], mask),
        "score": (
            ["eval_miou.py", *data, "--pred-dir", str(mask), "--json", str(folder / "miou.json")],
            folder / "none",
        ),
    }


def watched(line: Sequence[str], out: Path) -> list[Look]:
    """Run a command, and return what was seen of it at each moment.

    Raises:
        ValueError: It failed; has its last line.
    """
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    looks = []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, *line],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        while process.poll() is None:
            if found := look_at(process.pid, out):
                looks.append(found)
            time.sleep(PAUSE)
        if process.returncode:
            errors.seek(0)
            raise ValueError(f"{line[0]}: {(errors.read().splitlines() or ['no word'])[-1]}")
    return looks


def look_at(pid: int, out: Path) -> Look | None:
    """Return what is seen of a process and its workers now; None if it has just ended."""
    memory, files = 0.0, 0
    for one in (pid, *workers_of(pid)):
        try:
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            files = max(files, len(os.listdir(f"/proc/{one}/fd")))
        except OSError:
            continue
        kept = (line.split() for line in text.splitlines() if line.startswith(KEPT))
        memory += sum(int(words[1]) for words in kept) / 1024
    done = sum(1 for _ in out.iterdir()) if out.is_dir() else 0
    return Look(done, memory, files) if memory else None


def quarters(looks: Sequence[Look]) -> list[list[Look]]:
    """Return the looks at each quarter of a command's work: of its files, or else of its time."""
    most = looks[-1].done
    working = [look for look in looks if look.done] if most else list(looks)
    parts: list[list[Look]] = [[] for _ in PARTS]
    for number, look in enumerate(working):
        share = look.done / (most + 1) if most else number / len(working)
        parts[int(share * len(PARTS))].append(look)
    # A quarter may pass between two looks.
    return [part or [working[-1]] for part in parts]


if __name__ == "__main__":
    run_stage(main)
