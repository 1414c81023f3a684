"""Delete guards of readers, saves and writers one by one, and say which tests notice.

A mutant is a copy of this folder in which a guard is gone: the condition of an `if` that raises is
False, or a call of a check is left out. For each one the tests that the table names are run. One
that passes them all has survived: no test guards that line. The tests have to pass without any
mutant first.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import ast
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tool.cli import run_stage
from tool.flags import flag, parse_flags
from tool.ranges import POSITIVE, SEED

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv", "out", "shared", "__pycache__", ".pytest_cache", ".hypothesis")
# file -> the tests that guard it, beside those of the words of refusals
WORDS = ("test_guards", "test_refusals")
TESTS = {
    "data/class_names.py": ("test_labels", "test_catalog", "test_folder"),
    "data/files.py": ("test_lists", "test_leftovers", "test_catalog"),
    "data/labels.py": ("test_labels", "test_lists", "test_catalog"),
    "tool/documents.py": ("test_documents",),
    "tool/download/archive.py": ("test_archive", "test_download_unpack", "test_leftovers"),
    "tool/files.py": ("test_leftovers", "test_full_disk", "test_lists"),
    "tool/formats/cam.py": ("test_cam", "test_malformed", "test_unpickle"),
    "tool/formats/cam_layouts.py": ("test_cam", "test_malformed", "test_unpickle"),
    "tool/formats/checkpoint.py": (
        "test_checkpoint",
        "test_hostile",
        "test_bombs",
        "test_messages",
    ),
    "tool/formats/checkpoint_content.py": ("test_checkpoint", "test_hostile", "test_bombs"),
    "tool/formats/image.py": ("test_pixels", "test_bombs", "test_dataset"),
    "tool/formats/mask.py": ("test_mask", "test_bombs"),
    "tool/formats/mxnet.py": ("test_params", "test_bombs"),
    "tool/formats/npy.py": ("test_unpickle", "test_unpickle_tensors", "test_bombs"),
    "tool/formats/npy_standins.py": ("test_unpickle", "test_unpickle_tensors", "test_bombs"),
    "tool/formats/npy_plain.py": ("test_unpickle", "test_unpickle_tensors", "test_bombs"),
    "tool/formats/pickle_cost.py": ("test_bombs",),
    "tool/formats/pixels.py": ("test_pixels", "test_bombs", "test_dataset"),
    "tool/formats/regions.py": ("test_gate", "test_gate_stage", "test_bombs", "test_documents"),
    "tool/train/engine.py": ("test_engine", "test_signals"),
    "tool/train/history.py": ("test_engine",),
    "tool/train/log.py": ("test_engine", "test_documents"),
    "tool/train/run_directory.py": (
        "test_hostile_resume",
        "test_train_stage",
        "test_state",
        "test_messages",
        "test_identity",
    ),
    "voc12/submit.py": ("test_submit",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        count: Number of mutants.
        seed: Random seed of the choice.
        files: Files to choose from, some of the table. By default all of it.
        seconds: Time after which a run of tests counts as noticing, because something hangs.
    """

    count: int = flag(30, type=POSITIVE, metavar="N")
    seed: int = flag(0, type=SEED)
    files: list[str] | None = flag(None, choices=tuple(TESTS))
    seconds: int = flag(900, type=POSITIVE, metavar="S")


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A guard to delete.

    Attributes:
        file: The file, from the root.
        line: Line of the guard.
        text: The source of the guard.
        source: The whole file without it.
    """

    file: str
    line: int
    text: str
    source: str


def main(argv: Sequence[str] | None = None) -> int:
    """Make mutants and run tests; return 1 if more than one of twenty survives."""
    command = parse_flags(Command, argv, example="--count 30")
    found = [mutant for file in command.files or TESTS for mutant in mutants_of(file)]
    chosen = random.Random(command.seed).sample(found, min(command.count, len(found)))
    print(f"{len(chosen)} of {len(found)} guards in {len({m.file for m in found})} files")
    killed = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        check_copy({mutant.file for mutant in chosen}, copy, command.seconds)
        for number, mutant in enumerate(chosen, start=1):
            told = notices(mutant, copy, command.seconds)
            killed += told is not None
            print(
                f"{number:3} {mutant.file}:{mutant.line} {mutant.text[:60]!r}: "
                + (told or "SURVIVED"),
                flush=True,
            )
    print(f"{killed} of {len(chosen)} killed, {100 * killed / len(chosen):.0f} %")
    return int(killed < 0.95 * len(chosen))


def mutants_of(file: str) -> Iterator[Mutant]:
    """Yield a mutant of each guard in a file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise):
            yield _without(file, source, node.test, "False")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func).rpartition(".")[2].lstrip("_")
            if called.startswith(("check", "refuse")):
                yield _without(file, source, node, "pass")


def _without(file: str, source: str, node: ast.expr | ast.stmt, instead: str) -> Mutant:
    """Return the mutant of a file in which other text stands in place of a node."""
    lines = source.encode().splitlines(keepends=True)  # the columns of a node count bytes
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    first = starts[node.lineno - 1] + node.col_offset
    last = starts[node.end_lineno - 1] + node.end_col_offset
    content = source.encode()
    changed = (content[:first] + instead.encode() + content[last:]).decode()
    return Mutant(file, node.lineno, ast.unparse(node), changed)


def notices(mutant: Mutant, copy: Path, seconds: int) -> str | None:
    """Return the first test that notices a mutant in a copy of the folder; None if none does."""
    path = copy / mutant.file
    path.write_text(mutant.source, encoding="utf-8")
    try:
        found = (failure(test, copy, seconds) for test in (*WORDS, *TESTS[mutant.file]))
        return next((told for told in found if told), None)
    finally:
        shutil.copy(ROOT / mutant.file, path)


def check_copy(files: Iterable[str], copy: Path, seconds: int) -> None:
    """Check that the tests of some files pass without a mutant, or their failures mean nothing.

    Raises:
        ValueError: A test fails or hangs.
    """
    for test in sorted({*WORDS} | {test for file in files for test in TESTS[file]}):
        if told := failure(test, copy, seconds):
            raise ValueError(f"without any mutant, {told} fails in a copy of this folder")


def failure(test: str, copy: Path, seconds: int) -> str | None:
    """Run a file of tests in a copy of the folder; return what fails, None if nothing does."""
    line = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    try:
        run = subprocess.run(
            [*line, f"tests/{test}.py"],
            cwd=copy,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{test} hangs"
    return test if run.returncode else None


if __name__ == "__main__":
    run_stage(main)
