"""The command lines: every flag of every command explains itself, and dataclasses make flags."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from method_cases import METHODS
from runs import REPOSITORY

import train_fbr
from tool.cli import Parser, command_of
from tool.flags import add_flags, attribute_texts, flag, flags_as, given, parse_flags
from tool.ranges import SEED


def commands() -> list[str]:
    """The modules that are programs, by name."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [
        name.removesuffix(".py").replace("/", ".")
        for name in files
        if not name.startswith("tests/")
        and (REPOSITORY / name).is_file()
        and "    run_stage(main)\n" in (REPOSITORY / name).read_text()
    ]


COMMANDS = commands()


class Captured(Exception):
    """Holds the parser of a command."""


def parser_of(module: ModuleType, monkeypatch, *flags: str) -> Parser:
    """The parser that a command makes, caught before it parses."""

    def capture(parser: Parser, *_: object) -> None:
        raise Captured(parser)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_known_args", capture)
        with pytest.raises(Captured) as caught:
            module.main(list(flags))
    return caught.value.args[0]


def check(parser: Parser, command: str) -> None:
    """Every flag has help that is a sentence of its own, and the example at the end works."""
    assert parser.prog == command
    seen: set[str] = set()
    for action in parser._actions:
        text = action.help
        if text == argparse.SUPPRESS:
            continue
        where = f"{command} {'/'.join(action.option_strings) or action.dest}: {text!r}"
        assert text, where
        assert not text[0].islower() or not text.split()[0].isalpha(), where
        assert text.endswith("."), where
        assert len(text.split()) >= 3, where
        assert not re.match(r"[A-Z]\w+: ", text), f"{where}: begins with whose flag it is"
        assert "Field of" not in text, f"{where}: not documented"
        assert text not in seen, f"{where}: said of two flags"
        seen.add(text)
    shown = parser.format_help()
    assert not re.search(r"\bNone\b|\(default", shown), shown
    *_, title, example = shown.strip().split("\n")
    assert title == "Example:"
    assert example.startswith(f"  {command} ")
    parser.parse_args(shlex.split(example.removeprefix(f"  {command}")))


def test_all_commands_are_found() -> None:
    assert {"train_fbr", "infer_cam", "crf_postprocess", "eval_miou"} < set(COMMANDS)
    assert {"data.toy.__main__", "tool.download.__main__", "network.export"} < set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_to_choose(name: str, monkeypatch) -> None:
    module = importlib.import_module(name)
    check(parser_of(module, monkeypatch), command_of(name))


@pytest.mark.parametrize("method", METHODS)
def test_help_is_that_of_the_method(method: str, monkeypatch, capsys) -> None:
    parser = parser_of(train_fbr, monkeypatch, "--method", method)
    check(parser, "python train_fbr.py")
    titles = [group.title for group in parser._action_groups if group._group_actions]
    wanted = ["method", "data", "network", "recipe", "run"]
    assert [title for title in titles if title in wanted] == wanted
    config = train_fbr.find_method(method).Config
    assert (f"options of {method}" in titles) == bool(dataclasses.fields(config))
    with pytest.raises(SystemExit) as end:
        train_fbr.main(["--help", "--method", method])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(config):
        assert f"--{field.name.replace('_', '-')} " in shown


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("crf_postprocess", ["--no-crf", "0.25"], "--threshold"),
        ("crf_postprocess", ["--seed", "0.3", "0.05"], "--seeds"),
        ("infer_cam", ["--option", "beta=5"], "--set"),
        ("infer_cam", ["--no-crf", "0.25"], "--threshold"),
    ],
)
def test_an_old_flag_names_the_new_one(command: str, old: list[str], new: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        importlib.import_module(command).main(old)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{old[0]} is now called {new} " in line


def test_seed_is_the_random_seed_wherever_it_is_a_flag(monkeypatch) -> None:
    for name in COMMANDS:
        for action in parser_of(importlib.import_module(name), monkeypatch)._actions:
            if "--seed" in action.option_strings and action.help != argparse.SUPPRESS:
                assert action.type is SEED, name
                assert "andom seed" in action.help, name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    """A group of flags.

    Attributes:
        sides: Sides of squares,
            in pixels.
        mirror: Whether to mirror.
    """

    sides: tuple[int, ...] | None = flag(None, exclusive="size")
    scales: list[float] = flag(lambda: [1.0], exclusive="size")
    mirror: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    """A command.

    Attributes:
        image: The photograph.
        out: Where to write, 50 % of the time.
    """

    image: Path = flag(positional=True)
    out: Path
    name: str | None = flag(None, choices=lambda: ("a", "b"), renamed="--label")
    inner: Inner = flag(title="copies")


def parse(*argv: str) -> Outer:
    return parse_flags(Outer, list(argv), example="i --out o")


def test_a_dataclass_is_a_command_line() -> None:
    plain = Outer(image=Path("i"), out=Path("o"), inner=Inner())
    assert parse("i", "--out", "o") == plain
    found = parse("i", "--out", "o", "--name", "b", "--sides", "3", "4", "--no-mirror")
    inner = Inner(sides=(3, 4), mirror=False)
    assert found == dataclasses.replace(plain, name="b", inner=inner)
    assert found.inner.scales == [1.0]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["i"], "--out"),
        (["i", "--out", "o", "--name", "c"], "'a', 'b'"),
        (["i", "--out", "o", "--sides", "x"], "--sides"),
        (["i", "--out", "o", "--sides", "3", "--scales", "2"], "not allowed with"),
        (["i", "--out", "o", "--label", "a"], "--label is now called --name"),
    ],
)
def test_a_bad_command_line_is_one_line(argv: list[str], reason: str, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*argv)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python test_flags.py: error: ")
    assert reason in line


def test_help_comes_from_the_docstrings(capsys) -> None:
    assert attribute_texts(Inner)["sides"] == "Sides of squares, in pixels."
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Where to write, 50 % of the time." in shown
    assert "copies: --sides" in shown
    assert "Whether to mirror. Default: on." in shown
    assert shown.endswith("Example: python test_flags.py i --out o")


def test_an_error_of_the_dataclass_is_one_of_the_command_line(capsys) -> None:
    @dataclasses.dataclass(frozen=True)
    class Checked:
        count: int = 1

        def __post_init__(self) -> None:
            if self.count < 1:
                raise ValueError(f"--count {self.count} is too small")

    with pytest.raises(SystemExit):
        parse_flags(Checked, ["--count", "0"], example="")
    assert "python test_flags.py: error: --count 0 is too small" in capsys.readouterr().err


def test_only_flags_that_were_given_change_a_recipe() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Inner, explicit=True, only=("sides", "mirror"))
    assert given(parser.parse_args([]), ("sides", "mirror")) == {}
    args = parser.parse_args(["--sides", "5", "--no-mirror"])
    assert given(args, ("sides", "mirror")) == {"sides": (5,), "mirror": False}
    assert flags_as(Inner, parser.parse_args([])) == Inner()
    assert "--scales" not in parser.format_help()
