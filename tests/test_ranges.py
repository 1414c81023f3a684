"""Every number on a command line has a range; a value beyond it is one line that names both."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math

import pytest
from method_cases import METHODS
from test_flags import COMMANDS, parser_of

import train_fbr
from network.methods import Recipe, find_method
from network.options import check_option, inference_options
from tool.cli import Parser
from tool.ranges import DEFAULTS, Range

BAD = ("nan", "inf", "-inf", "-1", "1e300", "-1e-9", str(2**64), "9" * 5000, "", "x", "0x10")
# What train_fbr.py accepted, or met with a traceback or without an end.
SEEN = [
    ("--lr", "nan"),
    ("--lr", "-0.1"),
    ("--momentum", "inf"),
    ("--momentum", "1"),
    ("--weight-decay", "nan"),
    ("--warmup", "-5"),
    ("--quantile", "2"),
    ("--scale", "1e9"),
    ("--crop", "100000"),
    ("--crop", "1"),
    ("--batch-size", "1000000000"),
    ("--batch-size", "1e9"),
    ("--epochs", "1e300"),
    ("--output-stride", "3"),
    ("--output-stride", "7"),
    ("--output-stride", "1000"),
    ("--clip", "nan"),
    ("--seed", "-1"),
    ("--temperature", "inf"),
    ("--num-workers", "-1"),
]
SEEN_ELSEWHERE = [
    ("infer_cam", "--scales", "1e9"),
    ("infer_cam", "--scales", "0"),
    ("infer_cam", "--alpha", "inf"),
    ("infer_cam", "--cam-stride", "33"),
    ("crf_postprocess", "--alpha", "0"),
    ("crf_postprocess", "--threshold", "1.5"),
    ("crf_postprocess", "--workers", "0"),
    ("eval_miou", "--bg-threshold", "nan"),
]


def numbers(parser: Parser) -> list[argparse.Action]:
    """The flags that take a number."""
    return [action for action in parser._actions if isinstance(action.type, Range)]


def refusal(parser: Parser, argv: list[str], capsys) -> str:
    """The one line with which a parser ends."""
    with pytest.raises(SystemExit) as end:
        parser.parse_args(argv)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def walk(parser: Parser, capsys) -> int:
    """Give every number every bad value; return how many were given."""
    given = 0
    for action in parser._actions:
        assert action.type not in (int, float), f"{action.dest} has no range"
    for action in numbers(parser):
        flag = action.option_strings[-1]
        values = action.nargs if isinstance(action.nargs, int) else 1
        for bad in BAD:
            one = [f"{flag}={bad}"] if values == 1 else [flag, *[bad] * values]
            line = refusal(parser, one, capsys)
            assert flag in line, line
            assert len(line) < 400
            dash = values > 1 and bad.startswith("-") and bad != "-1"  # it looks like a flag
            assert dash or str(action.type) in line, line
            given += 1
    return given


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_takes_a_bad_number(name: str, monkeypatch, capsys) -> None:
    walk(parser_of(importlib.import_module(name), monkeypatch), capsys)


@pytest.mark.parametrize("method", METHODS)
def test_no_method_takes_a_bad_number(method: str, monkeypatch, capsys) -> None:
    parser = parser_of(train_fbr, monkeypatch, "--method", method)
    assert walk(parser, capsys) > 10 * len(BAD)


@pytest.mark.parametrize(("flag", "value"), SEEN)
def test_what_was_seen_is_refused_by_training(flag, value, monkeypatch, capsys) -> None:
    line = refusal(parser_of(train_fbr, monkeypatch), [f"{flag}={value}"], capsys)
    assert flag in line
    assert any(word in line for word in (" from ", " above ", " of at least ", "choose from"))


@pytest.mark.parametrize(("command", "flag", "value"), SEEN_ELSEWHERE)
def test_what_was_seen_is_refused(command, flag, value, monkeypatch, capsys) -> None:
    module = importlib.import_module(command)
    assert flag in refusal(parser_of(module, monkeypatch), [f"{flag}={value}"], capsys)


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_are_in_the_ranges(method: str, monkeypatch) -> None:
    for short in ([], ["--short"]):
        parser = parser_of(train_fbr, monkeypatch, "--method", method, *short)
        for action in numbers(parser):
            value = getattr(action, "shown", action.default)
            for one in value if isinstance(value, list | tuple) else (value,):
                assert one is None or one in action.type, f"--{action.dest} {one}"


def test_a_range_says_what_it_is() -> None:
    assert str(Range(1, 2**31 - 1, whole=True)) == "a whole number from 1 to 2147483647"
    assert str(Range(0, 1)) == "a number from 0 to 1"
    assert str(Range(0, 16, above=True)) == "a number above 0 and at most 16"
    assert str(Range(0, 1, below=True)) == "a number of at least 0 and below 1"


def test_the_ends_of_a_range() -> None:
    closed, opened = Range(0, 1), Range(0, 1, above=True, below=True)
    assert all(one in closed for one in (0, 0.5, 1))
    assert [one for one in (0, 0.5, 1) if one in opened] == [0.5]
    for one in (closed, opened, *DEFAULTS.values()):
        assert math.isfinite(one.high)
        assert not any(value in one for value in (math.nan, math.inf, -math.inf))
    assert Range(1, 9, whole=True)("7") == 7
    assert closed("0.25") == 0.25
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 1 to 9"):
        Range(1, 9, whole=True)("2.5")


def test_a_range_of_an_option_holds_however_it_is_given() -> None:
    fields = {field.name: field for field in dataclasses.fields(find_method("fbr").Config)}
    check_option(fields["quantile"], 1)
    with pytest.raises(ValueError, match="quantile is 2: it must be a number from 0 to 1"):
        check_option(fields["quantile"], 2)
    assert inference_options(find_method("irn").Config, ["beta=5"]) == {"beta": 5.0}


def test_recipes_are_in_the_ranges_of_their_flags() -> None:
    for field in dataclasses.fields(Recipe):
        within = field.metadata.get("type")
        for method in METHODS:
            for short in (False, True):
                value = getattr(find_method(method).recipe.chosen(short), field.name)
                values = value if isinstance(value, tuple) else (value,)
                for one in values if within is not None else ():
                    assert one is None or one in within, (method, field.name, one)
