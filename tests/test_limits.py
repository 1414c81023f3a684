"""The machine's limits: one line that names what is short and the flags that help."""

from __future__ import annotations

import errno
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, assert_refused, command, environment, run, train_flags

from data.readable import complaint
from tool.formats.image import decode
from tool.formats.mask import load_mask
from tool.limits import CHANGES, LIMITS, is_out_of_memory, limit_of, raise_if_limit

TORCH = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory"
SHM = "unable to write to file </torch_1_2_0>: No space left on device (28)"
BUS = (
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit."
)
FILES = "unable to open shared memory object </torch_1_2_0> in read-write mode: Too many open files"
KILLED = "a worker process died (killed, or out of memory?): the same command goes on where it was"
# error -> what the line begins with
ERRORS = [
    (MemoryError(), "too little memory"),
    (RuntimeError(f"{TORCH}: you tried to allocate 99 bytes."), "too little memory"),
    (RuntimeError("could not create a primitive"), "too little memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to"), "too little GPU memory"),
    (RuntimeError("CUDA error: out of memory"), "too little GPU memory"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "too little GPU memory"),
    (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "too many open files"),
    (OSError(errno.ENFILE, "Too many open files in system"), "too many open files"),
    (RuntimeError("received 0 items of ancdata"), "too many open files"),
    (RuntimeError(FILES), "too many open files"),
    (RuntimeError(SHM), "too little shared memory"),
    (RuntimeError(BUS), "too little shared memory"),
    (ChildProcessError("a worker process died (signal 7): again"), "too little shared memory"),
    (RuntimeError("can't start new thread"), "too many processes"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "too many processes"),
    (ChildProcessError(KILLED), KILLED),
]
NO_LIMIT = [
    ValueError("out of memory"),  # a message of ours
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    FileNotFoundError(errno.ENOENT, "No such file", "too many open files.jpg"),
    OSError("cannot identify image file '/data/out of memory.jpg'"),
    ChildProcessError("another rank is gone (timed out): run again to go on"),
    AssertionError("MemoryError"),
]
# stage -> a function that it calls after its flags are read, and flags that help it
STAGES = {
    "train_fbr.py": ("data.readable.catalog_from", "--batch-size", "--crop", "--num-workers"),
    "infer_cam.py": ("infer_cam.network_from", "--batch-size", "--scales", "--max-side"),
    "crf_postprocess.py": ("data.readable.catalog_from", "--workers"),
    "eval_miou.py": ("data.readable.catalog_from",),
}


def some_flags(stage: str, root: Path, folder: Path) -> list[object]:
    """Flags that a stage accepts."""
    if stage == "train_fbr.py":
        return train_flags(root, folder, method="cam")
    flags = ["--dataset", "folder", "--root", root]
    if stage == "eval_miou.py":
        return [*flags, "--pred-dir", folder]
    if stage == "crf_postprocess.py":
        return [*flags, "--cam-dir", folder, "--out", folder / "mask"]
    return [*flags, "--checkpoint", folder / "checkpoint.pth", "--out", folder / "cam"]


@pytest.mark.parametrize("error", NO_LIMIT, ids=str)
def test_other_errors_are_no_limit(error: Exception) -> None:
    assert limit_of(error) is None
    raise_if_limit(error)


@pytest.mark.parametrize(("error", "begin"), ERRORS, ids=lambda value: str(value)[:40])
def test_every_limit_is_told_in_one_line(error, begin) -> None:
    limit = limit_of(error)
    assert limit is not None
    line = limit.line(error, ["--batch-size", "--num-workers", "--help"])
    assert line.startswith(begin)
    assert "\n" not in line
    assert "--batch-size" in line or "--num-workers" in line
    assert is_out_of_memory(error) == (begin in ("too little memory", "too little GPU memory"))
    wrapped = RuntimeError("in a worker")
    wrapped.__cause__ = error
    assert limit_of(wrapped) is limit


def test_torch_raises_what_the_table_has() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_the_flags_of_a_limit_are_in_the_table_of_changes() -> None:
    assert {flag for limit in LIMITS for flag in limit.flags} <= set(CHANGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_its_own_flags(stage, folder_root, tmp_path, monkeypatch) -> None:
    function, *helpful = STAGES[stage]
    flags = some_flags(stage, folder_root, tmp_path)
    for error in (MemoryError(), RuntimeError(BUS), OSError(errno.EMFILE, "Too many open files")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(function, fail)
        result = run(stage, *flags)
        if isinstance(error, MemoryError):
            assert_refused(result, "too little memory", *helpful)
        else:
            assert_refused(result, "too little shared" if error.args[0] == BUS else "ulimit -n")
        named = set(re.findall(r"--[a-z][a-z-]+", result.stderr.replace("--shm-size", "")))
        assert named <= set(run(stage, "--help").stdout.split())


def test_errors_of_ours_keep_their_traceback(folder_root, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr("data.readable.catalog_from", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        run("crf_postprocess.py", *some_flags("crf_postprocess.py", folder_root, tmp_path))


def test_a_file_is_not_called_broken_when_no_more_can_be_open(folder_root) -> None:
    """With --skip-bad-images, whole images would be left out."""
    from data.catalog import open_catalog

    catalog = open_catalog("folder", folder_root)
    image, mask = catalog.image_path("a1"), catalog.mask_path("a1")
    _, hard = soft = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    found: list[int | None] = []
    try:
        for call, what in ((decode, (image, "RGB")), (load_mask, (mask,))):
            try:
                call(*what)
            except OSError as error:
                found.append(error.errno)
        try:
            complaint(catalog, "a1", saliency=False, masks=False)
        except OSError as error:
            found.append(error.errno)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)
    assert found == [errno.EMFILE] * 3


LIMITED = """
import resource, runpy, sys
which, limit = getattr(resource, sys.argv[1]), int(sys.argv[2])
sys.argv = sys.argv[3:]
hard = resource.getrlimit(which)[1]
import torch, numpy, cv2, tool.cli  # what the limit is not about
resource.setrlimit(which, (limit, hard))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_lack_of_open_files_ends_in_one_line(workers, folder_root, tmp_path) -> None:
    flags = train_flags(folder_root, tmp_path / "out", method="cam")
    flags[flags.index("--num-workers") + 1] = workers
    code = [sys.executable, "-c", LIMITED, "RLIMIT_NOFILE", "6"]
    code += command("train_fbr.py", *flags)[1:]
    found = subprocess.run(
        code, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False
    )
    lines = [line for line in found.stderr.splitlines() if "error:" in line]
    assert found.returncode == 2, found.stderr
    assert "Traceback" not in found.stderr
    assert len(lines) == 1
    assert "too many open files" in lines[0]
    assert "--num-workers" in lines[0]


def test_a_link_to_itself_is_one_line(folder_root, tmp_path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    flags = ["--dataset", "folder", "--root", folder_root, "--list", "val", "--cam-dir", tmp_path]
    assert_refused(run("crf_postprocess.py", *flags, "--out", tmp_path / "loop"), "loop")
