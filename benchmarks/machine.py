"""`python -m benchmarks.machine`: what machine and which versions the figures are from."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic import peak_tflops
from benchmarks.record import add_json_flag, write_record
from tool.cli import Parser, run_stage
from tool.parallel.machine import cpp_compiler

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "triton", "tensorboard")


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each fact."""
    parser = Parser(prog="benchmarks.machine", description=__doc__)
    add_json_flag(parser)
    args = parser.parse_args(argv)
    found = facts()
    for name, value in found.items():
        print(f"{name}: {value}")
    write_record(args.json, found)


def facts() -> dict[str, Any]:
    """Return plain values; None for what the machine does not tell."""
    gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return {
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "gpu_memory_gib": properties.total_memory / 2**30 if properties else None,
        "peak_tflops": peak_tflops(torch.device("cuda:0"), None) if gpu else None,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "opencv": importlib.util.find_spec("cv2") is not None,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "cpp_compiler": cpp_compiler(),
        "commit": output("git", "describe", "--always", "--dirty"),
    }


def output(*command: str) -> str | None:
    """Return the first line that a program prints; None if it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = ended.stdout.splitlines()
    return lines[0].strip() if ended.returncode == 0 and lines else None


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the model of the CPU as Linux names it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    run_stage(main)
