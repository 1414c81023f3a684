"""Where the project does not run, one line says where it does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY, environment

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


# Stands for a Python without packages: it notes what is to be installed, and has it from then on.
STAND_IN = """#!/bin/bash
here="$(dirname "$0")"
case "$1 $2" in
  "-V "*) echo "Python $VERSION" ;;
  "-m venv")
    mkdir -p .venv/bin
    rm -f .venv/bin/python
    cp "$0" .venv/bin/python
    echo "venv ${*:3}" >>"$NOTES" ;;
  "-m pip")
    [ "$3" = --version ] && exit 0
    echo "pip $0 ${*:3}" >>"$NOTES"
    for word in "$@"; do
      [[ "$word" == */constraints.txt && "$PINS_FIT" = 0 ]] && exit 1
      [[ "$word" == */constraints.txt || "$word" == */torch.txt ]] &&
        cp "$word" "$NOTES.constraints"
    done
    touch "$here/installed" ;;
  *find_spec*) [ -e "$here/installed" ] ;;
  *sys.base_prefix*) [ "$VIRTUAL" = 1 ] ;;
  *least*) [ "$TORCH" = 1 ] ;;
  *version_info*) [ "${VERSION#3.}" -ge 11 ] ;;
  *) exit 1 ;;
esac
"""


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


def stand_in(path: Path) -> Path:
    """Write `STAND_IN` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return path


def installed(folder: Path, **environment: str) -> tuple[str, list[str], list[str]]:
    """Set up with the stand-in as Python, in a folder with a space in its name.

    Returns:
        The Python that was chosen, the notes of the stand-in, and the constraints that it got.
    """
    python = stand_in(folder / "a python" / "python")
    notes = folder / "notes"
    facts = {"PYTHON": str(python), "NOTES": str(notes), "VERSION": "3.12"}
    result = setup(folder, **facts | {"TORCH": "0", "VIRTUAL": "0", "NEWEST": "0"} | environment)
    assert result.returncode == 0, result.stderr
    constraints = Path(f"{notes}.constraints")
    pins = constraints.read_text().splitlines() if constraints.exists() else []
    return result.stdout.strip(), notes.read_text().splitlines(), pins


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
    result = setup(tmp_path, PYTHON=str(stand_in(tmp_path / "python3.10")), VERSION="3.10")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "3.11" in line
    assert "Python 3.10" in line
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


def test_a_new_venv_gets_the_tested_versions(tmp_path: Path) -> None:
    python, notes, pins = installed(tmp_path)
    assert python == ".venv/bin/python"
    assert notes[0] == "venv --clear .venv"
    assert all(note.startswith("pip .venv/bin/python install") for note in notes[1:])
    assert pins == (ROOT / "scripts/constraints.txt").read_text().splitlines()


def test_a_python_that_the_tested_versions_do_not_fit_gets_newer_ones(tmp_path: Path) -> None:
    python, notes, pins = installed(tmp_path, PINS_FIT="0")
    assert python == ".venv/bin/python"
    assert ["constraints.txt" in note for note in notes[1:]] == [True, False, False]
    names = [pin.partition("==")[0] for pin in pins]
    assert names == ["torch", "torchvision"], "each torch needs its own torchvision"


def test_the_newest_versions_have_no_constraints(tmp_path: Path) -> None:
    _, notes, pins = installed(tmp_path, NEWEST="1")
    assert len(notes) == 3
    assert pins == []


def test_a_torch_that_is_there_stays(tmp_path: Path) -> None:
    stand_in(tmp_path / ".venv" / "bin" / "python")
    python, notes, pins = installed(tmp_path, TORCH="1")
    assert python == ".venv/bin/python"
    assert not any(note.startswith("venv") for note in notes)
    names = {pin.partition("==")[0] for pin in pins}
    assert names.isdisjoint({"torch", "torchvision"})
    assert "timm" in names


def test_a_venv_sees_the_torch_of_its_system(tmp_path: Path) -> None:
    _, notes, pins = installed(tmp_path, TORCH="1")
    assert notes[0] == "venv --clear --system-site-packages .venv"
    assert not any(pin.startswith("torch=") for pin in pins)


def test_a_virtual_environment_with_torch_gets_what_it_lacks(tmp_path: Path) -> None:
    python, notes, pins = installed(tmp_path, TORCH="1", VIRTUAL="1")
    assert python == str(tmp_path / "a python" / "python")
    assert not any(note.startswith("venv") for note in notes)
    assert pins == []


def test_a_venv_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    python, notes, _ = installed(tmp_path)
    assert python == ".venv/bin/python"
    assert notes[0] == "venv --clear .venv"


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
            name, version = line.partition(";")[0].split("==")
            pins[canonicalize_name(name)] = version
    lines = (ROOT / "requirements.txt").read_text() + (ROOT / "tests/requirements.txt").read_text()
    wanted = [Requirement(x) for x in lines.splitlines() if x and not x.startswith("#")]
    assert len(wanted) > 15
    for requirement in wanted:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_a_command_of_a_package_is_named_after_its_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "network.predict", "no.jpg", "--checkpoint", "no.pth"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("python -m network.predict: error: ")
    assert done.stderr.count("\n") == 1
