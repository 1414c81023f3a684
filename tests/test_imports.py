"""Who may import whom: the layers of the design, read off the syntax trees, without exceptions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("layout", ROOT / "docs" / "layout.py")
layout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(layout)

FILES = {layout.module_of(path): path for path in layout.files()}
# package -> the packages of ours that it may import, beside itself
ALLOWED = {
    "tool": set(),
    "network": {"tool"},
    "data": {"tool", "voc12", "coco14"},
    "voc12": {"data", "tool"},
    "coco14": {"data", "tool"},
}
FACTS = ("voc12", "coco14")  # their `__init__`; the other files of those folders are commands


def packages_of_ours(path: Path) -> set[str]:
    """The top-level names of ours that a file imports."""
    ours = {*layout.STAGES, *layout.PACKAGES, "benchmarks", "tests"}
    return {name.split(".")[0] for name in layout.imported(path)} & ours


def test_the_walk_sees_the_code() -> None:
    """Guards the other tests against looking at nothing."""
    assert {"data", "network", "tool"} <= packages_of_ours(ROOT / "train_fbr.py")
    nroi = FILES["network.contrast.nroi"]
    assert {"tool.progress.Progress", "torch"} <= layout.imported(nroi)
    assert "tool.parallel.dist" in layout.file_graph()["tool.train.engine"]
    for package in ("data", "network", "tool"):
        assert sum(name.split(".")[0] == package for name in FILES) > 15


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_what_lies_below_its_package(name: str) -> None:
    package = name.split(".")[0]
    found = packages_of_ours(FILES[name]) - {package}
    if package in layout.STAGES:
        assert not found & {*layout.STAGES, "benchmarks", "tests"}
    else:
        assert found <= ALLOWED[package]


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_a_benchmark_import_nothing(name: str) -> None:
    assert not packages_of_ours(FILES[name])


def test_data_takes_the_facts_of_a_benchmark_and_no_command() -> None:
    for name, targets in layout.file_graph().items():
        if name.split(".")[0] == "data":
            wrong = {t for t in targets if t.split(".")[0] in FACTS} - set(FACTS)
            assert not wrong, f"{name} imports {wrong}"


def test_a_command_is_run_and_never_imported() -> None:
    commands = {name for name, path in FILES.items() if '"__main__"' in path.read_text()}
    assert {"data.check", "network.export", "network.predict.__main__"} < commands
    for name, targets in layout.file_graph().items():
        assert not targets & commands, name


def test_neither_files_nor_rooms_import_each_other_in_a_circle() -> None:
    layout.floors(layout.file_graph())
    layout.floors(layout.room_graph())


def test_a_circle_is_found() -> None:
    with pytest.raises(ValueError, match="cycle"):
        layout.floors({"a": {"b"}, "b": {"a"}, "c": set()})


def methods_imported(path: Path) -> set[str]:
    """The methods that a file of `network/` imports."""
    prefix = "network.methods."
    methods = {file.stem for file in (ROOT / "network/methods").glob("*.py")}
    found = {n.removeprefix(prefix) for n in layout.imported(path) if n.startswith(prefix)}
    return {name.split(".")[0] for name in found} & methods


@pytest.mark.parametrize("path", sorted((ROOT / "network/methods").glob("*.py")), ids=str)
def test_a_method_imports_at_most_one_other(path: Path) -> None:
    assert len(methods_imported(path) - {path.stem}) <= (path.stem != "__init__")


def test_nothing_else_names_a_method() -> None:
    for name, path in FILES.items():
        if not name.startswith("network.methods"):
            assert not methods_imported(path), name


@pytest.mark.parametrize("program", ["eval_miou", "crf_postprocess"])
def test_the_stages_behind_the_cams_do_not_import_torch(program: str) -> None:
    code = f"import sys, {program}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_drawing_is_up_to_date() -> None:
    assert layout.PAGE.read_text(encoding="utf-8") == layout.page(), "run python docs/layout.py"
