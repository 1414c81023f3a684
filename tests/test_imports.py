"""Who may import whom: the layers of the design, read off the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("train_fbr", "infer_cam", "crf_postprocess", "eval_miou")
# package -> the packages of ours that it may import
ALLOWED = {
    "tool": {"tool"},
    "voc12": {"voc12", "tool"},
    "coco14": {"coco14", "tool"},
    "data": {"data", "voc12", "coco14", "tool"},
    "network": {"network", "tool"},
    "benchmarks": {"benchmarks", "data", "network", "tool", "voc12", "coco14"},
}
OURS = {*PROGRAMS, *ALLOWED}
ABOVE_METHODS = ("initialise.py", "restore.py")  # build methods, for the stages
# Programs that live in a package (`python -m tool.NAME`) and stand above it, like a stage script.
INNER_PROGRAMS = (
    "network/export.py",
    "tool/convert_cams.py",
    "tool/saliency.py",
    "tool/show.py",
    "tool/submit.py",
    "coco14/prepare.py",
    "voc12/prepare.py",
)


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports anywhere in it, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages_of_ours(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} & OURS


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


ALL_FILES = [ROOT / f"{name}.py" for name in PROGRAMS] + [
    path for package in ALLOWED for path in files_of(package)
]


def test_the_walk_sees_the_code() -> None:
    """Guards the other tests against looking at nothing."""
    assert {"data", "network", "tool"} <= packages_of_ours(ROOT / "train_fbr.py")
    assert {"tool.progress.Progress", "torch"} <= imported(ROOT / "network/nroi.py")
    for package in ("data", "network", "tool"):
        assert len(files_of(package)) > 5


@pytest.mark.parametrize("path", ALL_FILES, ids=name_of)
def test_nothing_imports_a_stage_script(path: Path) -> None:
    assert not packages_of_ours(path) & set(PROGRAMS)


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_what_lies_below_it(package: str) -> None:
    for path in files_of(package):
        if name_of(path) not in INNER_PROGRAMS:
            wrong = packages_of_ours(path) - ALLOWED[package]
            assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize("program", INNER_PROGRAMS)
def test_a_program_inside_a_package_is_run_and_never_imported(program: str) -> None:
    assert '__name__ == "__main__"' in (ROOT / program).read_text(encoding="utf-8")
    module = program.removesuffix(".py").replace("/", ".")
    for path in ALL_FILES:
        assert not any(name.startswith(module) for name in imported(path)), path


def host_methods(path: Path) -> set[str]:
    """The methods that a file of `network/` imports."""
    prefix = "network.methods."
    names = {name.removeprefix(prefix) for name in imported(path) if name.startswith(prefix)}
    methods = {file.stem for file in (ROOT / "network/methods").glob("*.py")}
    return {name.split(".")[0] for name in names} & methods


@pytest.mark.parametrize(
    "path", files_of("network/methods"), ids=lambda path: f"methods/{path.name}"
)
def test_a_method_imports_at_most_one_other(path: Path) -> None:
    assert len(host_methods(path) - {path.stem}) <= (path.stem != "__init__")


def test_what_methods_share_knows_no_method() -> None:
    for path in files_of("network"):
        if path.parent.name != "methods" and path.name not in ABOVE_METHODS:
            assert not any(name.startswith("network.methods") for name in imported(path)), path


@pytest.mark.parametrize("program", ["eval_miou", "crf_postprocess"])
def test_the_stages_behind_the_cams_do_not_import_torch(program: str) -> None:
    code = f"import sys, {program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
