"""What the project asks of the machine's C library."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import train_flags

import train_fbr
from tool.parallel import machine
from tool.train import engine

# Trains a small network on blocks of up to 64 MB; prints how many pages the kernel has mapped in
# the last three steps.
AGAIN = """
import resource, sys
import torch
from torch import nn
from tool.parallel.machine import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(torch.device("cpu"))
network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2))
image, faults = torch.ones(4, 3, 512, 512), []
for _ in range(5):
    network(image).sum().backward()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_kept_memory_is_not_mapped_again() -> None:
    pages = {}
    for kind in ("keep", "give back"):
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, kind], check=True, capture_output=True, text=True
        )
        pages[kind] = int(done.stdout)
    assert pages["keep"] < 1000
    assert pages["give back"] > 100000


def test_it_is_kept_only_if_a_third_of_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    device, asked = torch.device("cpu"), []
    monkeypatch.setattr(machine, "peak_memory", lambda device: 9.0)
    library = SimpleNamespace(mallopt=lambda *numbers: asked.append(numbers))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: library)
    for left, kept in ((3.1, [(-4, 0), (-1, -1)]), (2.9, [(-4, 65536), (-1, 128 * 1024)])):
        monkeypatch.setattr(machine, "available_memory", lambda left=left: left)
        assert machine.keep_freed_memory(device) is (left > 3)
        assert asked == kept
        asked.clear()
    machine.keep_freed_memory(torch.device("cuda"))
    assert asked == []


def test_available_memory_is_that_of_a_machine() -> None:
    assert 0.1 < machine.available_memory() < 1e5


def test_training_asks_at_its_start_and_after_its_first_step(
    tmp_path: Path, folder_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(engine, "keep_freed_memory", asked.append)
    train_fbr.main([*map(str, train_flags(folder_root, tmp_path / "run", steps=3))])
    assert asked == [torch.device("cpu")] * 2
