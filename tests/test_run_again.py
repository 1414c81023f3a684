"""`train_fbr.py --config FILE`: the same run again, and files that are no config.json of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run
from runs import assert_refused, run, train_flags

from tool.documents import read_dict

OPTIONS = ["--momentum", 0.9, "--warmup", 2, "--no-jitter", "--clip", 0, "--scale", 0.5, 1, 1.5]
OF_LIST = ("list_sha256", "photographs_sha256", "labels_sha256", "saliency_sha256")
CPU = ["--num-workers", 0]


@pytest.fixture(scope="module")
def first(folder_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fbr with flags of every kind."""
    out = tmp_path_factory.mktemp("again") / "first"
    result = run("train_fbr.py", *train_flags(folder_root, out, steps=2), *OPTIONS, "--seed", 3)
    assert result.returncode == 0, result.stderr
    return out


def again(config: Path, out: Path, *flags: object) -> Any:
    return run("train_fbr.py", "--config", config, "--out", out, *CPU, *flags)


def config_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "config.json").read_text())["config"]


@pytest.mark.usefixtures("one_thread")
def test_a_run_started_from_the_config_of_another_gives_equal_bytes(first, tmp_path) -> None:
    result = again(first / "config.json", tmp_path / "second")
    assert result.returncode == 0, result.stderr
    assert f"as {first / 'config.json'}\n" in result.stdout
    # The config.json of the second run starts it as well.
    assert again(tmp_path / "second" / "config.json", tmp_path / "third").returncode == 0
    bytes_of = {(out / "checkpoint.pth").read_bytes() for out in (first, *tmp_path.iterdir())}
    assert len(bytes_of) == 1


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--lr", 0.5, "--steps", 1], {"lr": 0.5, "steps": 1}),
        (["--epochs", 0.5, "--method", "fbr"], {"steps": 1}),
        (["--long-side", 64, 70], {"long_side": [64, 70], "scale": None}),
        (["--clip", 2, "--jitter", "--steps", 1], {"clip": 2, "jitter": None, "steps": 1}),
        (["--steps", 1, "--list", "val"], dict.fromkeys(("steps", "list", *OF_LIST), ...)),
    ],
)  # fmt: skip
def test_flags_on_the_command_line_win(first, tmp_path, flags, changed) -> None:
    result = again(first / "config.json", tmp_path / "run", *flags)
    assert result.returncode == 0, result.stderr
    before, after = config_of(first), config_of(tmp_path / "run")
    differ = {k: after.get(k) for k in {*before, *after} if before.get(k) != after.get(k)}
    assert differ == {k: differ[k] if v is ... else v for k, v in changed.items()}
    line = next(line for line in result.stdout.splitlines() if line.startswith("as "))
    assert set(line.partition(", but for ")[2].split(", ")) == set(changed)


def test_another_method_takes_what_it_has(first, tmp_path) -> None:
    result = again(first / "config.json", tmp_path / "run", "--method", "eps", "--steps", 1)
    assert result.returncode == 0, result.stderr
    config = config_of(tmp_path / "run")
    assert config["method"] == "eps"
    assert config["seed"] == 3
    assert "bank_size" not in config["method_config"]


def test_weights_on_the_command_line_replace_another_start(first, tmp_path) -> None:
    start = ["--init", first / "checkpoint.pth", "--steps", 1]
    assert again(first / "config.json", tmp_path / "one", *start).returncode == 0
    assert config_of(tmp_path / "one")["init_sha256"] is not None
    other = again(tmp_path / "one" / "config.json", tmp_path / "two", "--weights", "none")
    assert other.returncode == 0, other.stderr
    assert config_of(tmp_path / "two")["init_sha256"] is None


def test_changed_weights_are_said(first, tmp_path) -> None:
    start = tmp_path / "start.pth"
    start.write_bytes((first / "checkpoint.pth").read_bytes())
    out = tmp_path / "one"
    assert again(first / "config.json", out, "--init", start, "--steps", 1).returncode == 0
    noted = json.loads((out / "config.json").read_text())
    noted["weights"]["sha256"] = "0" * 64
    (tmp_path / "noted.json").write_text(json.dumps(noted))
    result = again(tmp_path / "noted.json", tmp_path / "two")
    assert f"as {tmp_path / 'noted.json'}, but for weights\n" in result.stdout


def test_out_is_never_taken_from_the_file(first) -> None:
    before = (first / "checkpoint.pth").read_bytes()
    assert_refused(run("train_fbr.py", "--config", first / "config.json", *CPU), "--out")
    assert (first / "checkpoint.pth").read_bytes() == before


WRONG = {
    "lr": ["fast", [0.1], True, -1, float("nan"), {"a": 1}, "0.1"],
    "steps": [None, 1.5, 0, 10**12],
    "seed": ["1", -1],
    "method": ["nonsense", "../evil", 7, None, ["fbr"]],
    "short": [1, "yes"],
    "root": [7, ["a"], True],
    "long_side": [64, [64], [64, 80, 96], ["a", "b"]],
    "scale": [0.5, [], [[0.5]]],
    "jitter": [0, "false"],
    "dataset": ["nonsense", {}],
    "bank_size": [2.5, "many"],
    "no_such_flag": [1],
    "out_\n[31m": [1],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_flag_that_cannot_be_is_refused_in_one_line(name, first, tmp_path) -> None:
    noted = json.loads((first / "config.json").read_text())
    for value in WRONG[name]:
        content = {**noted, "flags": {**noted["flags"], name: value}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        shown = name.split("\n")[0].replace("_", "-") if name in noted["flags"] else name[:4]
        result = again(tmp_path / "config.json", tmp_path / "run")
        assert_refused(result, "config.json", shown)
        assert "\x1b" not in result.stderr
    assert not (tmp_path / "run" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"7", b"{}", b'{"flags": []}', b'{"flags": null}', b"\xff\xfe\x00",
        b"[" * 100_000, b'{"flags": {}}' + b" " * 5_000_000, None,
    ],
    ids=lambda content: repr(content)[:20],
)  # fmt: skip
def test_a_file_that_is_no_config_is_refused_in_one_line(content, tmp_path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    assert_refused(again(path, tmp_path / "run"), "config.json of a run")


def test_the_help_shows_the_values_of_the_file(first) -> None:
    text = run("train_fbr.py", "--config", first / "config.json", "--help").stdout
    assert "Default: 0.5 1.0 1.5." in " ".join(text.split())
    assert "Default: 300." in " ".join(text.split())


def test_a_report_refuses_a_config_with_impossible_flags(folder_root, tmp_path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    noted = read_dict(out / "config.json") or {}
    for flags in ({"root": ["a"]}, {"dataset": 5}, {"skip_bad_images": "no"}):
        noted["flags"] = flags
        (out / "config.json").write_text(json.dumps(noted))
        assert_refused(run("data/report.py", out), "config.json", next(iter(flags)).split("_")[0])
