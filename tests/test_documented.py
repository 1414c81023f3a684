"""The documentation's commands exist: programs, flags, scripts and settings. So do its links."""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import REPOSITORY

from network.methods import method_names

PAGES = [REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
ELSEWHERE = {"top_pool"}  # a method that the README adds


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page: lines of its shell blocks, and what stands in its text."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.split(r"(?:; (?:do )?|&& )", re.sub(r"(^|\s)# .*", "", line))
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`((?:[A-Z_]+=\S+ )*(?:python|bash|torchrun) [^`]+)`", text)


def words(command: str) -> list[str]:
    """Return the words of a command, with values in place of what stands for one."""
    values = {"M": ["fbr"], "$crop": ["224"], "$batch": ["1"], "$bank": ["54"], "$size": ["1", "1"]}
    found: list[str] = []
    for word in shlex.split(command.split(" > ")[0]):
        if word == "..." and not found[-1].startswith("--"):
            break  # and so on
        found += values.get(word, [word])
    if "--config" in found:  # a file of a run, which is read while the flags are parsed
        place = found.index("--config")
        del found[place : place + 2]
    return found


def programs() -> list[tuple[str, str, list[str]]]:
    """Return page, module and arguments of each documented Python command."""
    found = []
    for page in PAGES:
        for command in commands(page):
            rest = [w for w in words(command) if not re.match(r"^[A-Z_]+=", w)]
            if rest and rest[0] == "torchrun":
                rest = ["python", *rest[3:]]
            if len(rest) < 2 or rest[0] not in ("python", "$PY", "python3"):
                continue
            if rest[1] == "-m":
                name, arguments = rest[2], rest[3:]
            else:
                name, arguments = rest[1].removesuffix(".py").replace("/", "."), rest[2:]
            if (REPOSITORY / name.replace(".", "/").split("/")[0]).exists() or "/" not in name:
                found.append((page.name, name, arguments))
    return found


def scripts() -> list[tuple[str, str, list[str]]]:
    """Return page, script and settings of each documented script."""
    found = []
    for page in PAGES:
        for command in commands(page):
            before, bash, after = command.partition("bash scripts/")
            if bash and after:
                settings = re.findall(r"\b([A-Z][A-Z_]*)=", before)
                found.append((page.name, after.split()[0].rstrip(")"), settings))
    return found


class ParsedError(Exception):
    """The arguments were parsed: what the program would do then is not of interest here."""


@pytest.fixture
def parser_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs end as soon as they have parsed their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        parse(self, *args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


PROGRAMS = [one for one in programs() if one[1] not in ("pytest", "venv", "docs.layout")]


def test_the_pages_have_commands() -> None:
    assert len(PROGRAMS) > 40
    assert len(scripts()) > 25


@pytest.mark.parametrize(
    ("module", "arguments"),
    [pytest.param(m, a, id=f"{p}: {m} {' '.join(a)}"[:90]) for p, m, a in PROGRAMS],
)
@pytest.mark.usefixtures("parser_only")
def test_a_documented_program_takes_its_arguments(module: str, arguments: list[str]) -> None:
    package = REPOSITORY / module.replace(".", "/")
    program = importlib.import_module(f"{module}.__main__" if package.is_dir() else module)
    assert callable(program.main)
    if "--help" in arguments:
        with pytest.raises(SystemExit, match=r"^0$"):
            program.main(arguments)
    elif arguments and not ELSEWHERE & set(arguments):
        with pytest.raises(ParsedError):
            program.main(arguments)


@functools.cache
def settings_of(script: str) -> set[str]:
    """Return the settings that a script reads, by its --help."""
    command = ["bash", f"scripts/{script}", "--help"]
    text = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(text.stdout.rpartition("Settings that it reads:")[2].split())


@pytest.mark.parametrize(
    ("script", "settings"),
    [pytest.param(s, v, id=f"{p}: {s} {' '.join(v)}") for p, s, v in scripts()],
)
def test_a_documented_script_reads_its_settings(script: str, settings: list[str]) -> None:
    known = settings_of(script) | {"OMP_NUM_THREADS", "PY"}
    if "SEG" in settings:
        known |= settings_of("script_seg.sh")
    assert not set(settings) - known


def test_the_table_of_methods_has_every_method() -> None:
    for name in ("README.md", "docs/methods.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        rows = re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE)
        named = {word for row in rows for word in re.findall(r"`(\w+)`", row)}
        assert set(method_names()) - {"gate"} <= named, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_one_title_and_no_heading_twice_in_a_section(page: Path) -> None:
    """As it would have if a part of the page were there twice."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    assert len(titles) == 1
    for headings in (
        re.findall(r"^## .*", text, re.MULTILINE),
        *(re.findall(r"^###+ .*", section, re.MULTILINE) for section in sections),
    ):
        assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
