"""Where the project does not run, one line says where it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_POSIX = """
import runpy, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.argv = [sys.argv[1], "--help"]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "tool", "network", "data", "voc12", "coco14", "benchmarks")
    for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
    if "run_stage(main)" in path.read_text(encoding="utf-8").split("__main__")[-1]
)
QUICK = ("eval_miou.py", "train_fbr.py")


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run `scripts/setup.sh` in a copy, so that no `.venv` is at hand and none is left."""
    (folder / "scripts").mkdir()
    for name in ("scripts/setup.sh", "scripts/constraints.txt", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return subprocess.run(
        ["bash", "scripts/setup.sh"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(path: Path, version: str) -> Path:
    """A program that is an old Python as far as `setup.sh` can tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit 0\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "program",
    [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PROGRAMS],
)
def test_without_posix_a_program_says_what_it_runs_on(program: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]  # a library may have warned before it
    for word in ("Linux", "macOS", "WSL"):
        assert word in line


def test_there_are_programs() -> None:
    assert set(QUICK) < set(PROGRAMS)
    assert len(PROGRAMS) > 10


def test_an_old_python_is_one_line(tmp_path: Path) -> None:
    old = fake_python(tmp_path / "python3.10", "3.10.13")
    result = setup(tmp_path, PYTHON=str(old))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "3.11" in line
    assert "Python 3.10.13" in line
    assert not (tmp_path / ".venv").exists()


def test_another_system_is_one_line(tmp_path: Path) -> None:
    uname = tmp_path / "bin" / "uname"
    uname.parent.mkdir()
    uname.write_text("#!/bin/sh\necho MINGW64_NT-10.0\n")
    uname.chmod(0o755)
    result = setup(tmp_path, PATH=f"{uname.parent}:{os.environ['PATH']}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "WSL" in line


def test_a_python_that_has_everything_is_used_as_it_is(tmp_path: Path) -> None:
    result = setup(tmp_path, PYTHON=sys.executable)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == sys.executable
    assert not (tmp_path / ".venv").exists()


def test_an_unknown_flag_is_one_line() -> None:
    result = subprocess.run(
        ["bash", "scripts/setup.sh", "--nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "--tests" in result.stderr


def test_every_requirement_has_a_tested_version() -> None:
    """The versions that were tested are those of all that is asked for, within its bounds."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "scripts/constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    lines = (ROOT / "requirements.txt").read_text() + (ROOT / "tests/requirements.txt").read_text()
    wanted = [Requirement(x) for x in lines.splitlines() if x and not x.startswith("#")]
    assert len(wanted) > 15
    for requirement in wanted:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement
