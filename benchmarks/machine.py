"""Print the facts of this machine that a measurement depends on: GPU, CPU and package versions."""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import importlib.util
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.arithmetic import peak_tflops
from benchmarks.record import JsonFlags, write_record
from tool.cli import run_stage
from tool.flags import parse_flags
from tool.parallel.machine import cpp_compiler
from tool.provenance import commit, cpu_model, version

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "triton", "tensorboard")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the facts of this machine, one line per fact; with --json write them too."""
    command = parse_flags(JsonFlags, argv, example="--json machine.json", module=__name__)
    found = facts()
    for name, value in found.items():
        print(f"{name}: {value}")
    write_record(command.json, found)


def facts() -> dict[str, Any]:
    """Return the facts as {name: value} in plain types; a fact that is not known is None."""
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
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "cpp_compiler": cpp_compiler(),
        "commit": commit(),
    }


def output(*command: str) -> str | None:
    """Return the first line that a program prints; None if it is missing, fails or prints none."""
    try:
        ended = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in ended.stdout.splitlines()), None)


if __name__ == "__main__":
    run_stage(main)
