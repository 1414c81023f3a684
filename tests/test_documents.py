"""JSON of this project with the wrong shape: one line, and no obstacle to a resume."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import PROPERTY, stage, train_once
from hypothesis import given
from hypothesis import strategies as st
from runs import assert_refused, run

from tool.documents import ANY, NUMBER, misfit, parsed, read_dict, read_document, read_rows
from tool.download.check import HASHES, read_records
from tool.formats.regions import Regions, read_regions, save_regions
from tool.report import gate, seg, table
from tool.report.head import head
from tool.report.run import open_run
from tool.train.run_directory import write_config

DEEP = b'{"step": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"
BROKEN = {
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "text": b'"x"',
    "nested": DEEP,
    "no UTF-8": b"\xff\xfe",
    "nothing": b"",
    "cut off": b'{"miou": 5',
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
}


def broken(*more: bytes) -> pytest.MarkDecorator:
    """A case for each broken content, and for more that are of the wrong shape at one place."""
    names = [*BROKEN, *map(repr, more)]
    return pytest.mark.parametrize("content", [*BROKEN.values(), *more], ids=names)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@broken()
def test_a_broken_file_is_named_or_made_anew(content: bytes, tmp_path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"own\.json is broken"):
        read_document(path)
    assert read_dict(path) is None
    assert read_rows(path, {"step": int}) == []


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (1, float),
        (1.5, NUMBER),
        (None, NUMBER),
        ({"a": 1}, {"a": int}),
        ({"a": 1, "other": "x"}, {"a": int, "b?": str}),
        ({"x": 1, "y": None}, {ANY: NUMBER}),
        ([], [int]),
        ([1, 2, 3], [int]),
        ([1, "x"], [int, str]),
        ("anything", object),
    ],
)
def test_a_value_of_its_shape(value: Any, shape: Any) -> None:
    assert misfit(value, shape) is None
    assert parsed(json.dumps(value).encode(), shape) == value


@pytest.mark.parametrize(
    ("value", "shape", "wrong"),
    [
        (True, int, "not an int"),
        (True, float, "not a number"),
        (float("nan"), float, "nan"),
        (float("inf"), NUMBER, "inf"),
        (10**30, int, "not an int"),
        (10**400, float, "not a number"),
        ("x", None, "not null"),
        ([], dict, "not a dictionary"),
        ({"b": 1}, {"a": int}, "no 'a'"),
        ({"a": 1, "b": 2}, {"a": int, "b?": str}, "'b'"),
        ({"a": 1, "c": 2}, {"a": int, ANY: str}, "'c'"),
        ([1, "x"], [int], "'x'"),
        ([1], [int, int], "1 values"),
        ({}, [int], "not a list"),
    ],
)
def test_a_value_of_another_shape(value: Any, shape: Any, wrong: str) -> None:
    assert wrong in misfit(value, shape)


def test_rows_of_a_log_that_are_none_are_left_out(tmp_path) -> None:
    good = b'{"step": 1, "loss": 2.0}'
    bad = [*BROKEN.values(), b'{"step": "x"}', b'{"step": true}', b'{"loss": 1}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([good, *bad]) + b"\n")
    assert read_rows(tmp_path / "log.jsonl", {"step": int}) == [
        (good.decode(), {"step": 1, "loss": 2.0})
    ]
    assert read_rows(tmp_path / "none.jsonl", {"step": int}) == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, folder_root: Path) -> Path:
    return train_once(folder_root, tmp_path_factory.mktemp("documents") / "run")


@broken(b'{"step": "x"}')
def test_a_run_resumes_whatever_its_log_and_its_notes_hold(
    content: bytes, trained, folder_root, tmp_path
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    kept = (trained / "log.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "run" / "log.jsonl").write_bytes(kept + content + b"\n")
    (tmp_path / "run" / "config.json").write_bytes(content)
    result = run(*stage("resume", folder_root, tmp_path / "run" / "checkpoint.pth"))
    assert result.returncode == 0, result.stderr
    rows = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert read_document(tmp_path / "run" / "config.json")["config"]


@broken(b'{"net.pth": 3}', b'{"net.pth": {}}')
def test_records_of_downloads(content: bytes, tmp_path) -> None:
    (tmp_path / HASHES).write_bytes(content)
    with pytest.raises(ValueError, match=HASHES):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["made_from.json", "crf.json"])
@broken(b'{"post": 5}', b'{"max_side": "x"}')
def test_notes_of_a_folder(name: str, content: bytes, folder_root, tmp_path) -> None:
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / name).write_bytes(content)
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    command = ["crf_postprocess.py", "--cam-dir", tmp_path / "cam", *data, "--workers", 1]
    assert_refused(run(*command, "--out", tmp_path / "out"), str(tmp_path / "cam"))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "crf.json").write_bytes(content)
    (tmp_path / "cam" / name).unlink()
    assert_refused(run(*command, "--out", tmp_path / "masks"))


SCORES = ("miou", "miou_cam", "config", "minutes", "masks", "miou-val", "miou-val-crf")
COMMANDS: dict[str, tuple[Callable, str]] = {
    "tool/report/table.py": (table.main, "."),
    "tool/report/gate.py": (gate.main, "fbr-seed0"),
    "tool/report/seg.py": (seg.main, "fbr-seed0"),
}


def report_or_line(main: Callable, argument: Path) -> None:
    """A table, or an error of the user's."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        main([str(argument)])


@pytest.mark.parametrize("script", COMMANDS)
def test_tables_of_runs(script: str, tmp_path, capsys) -> None:
    main, argument = COMMANDS[script]

    def write(content: bytes) -> Path:
        shutil.rmtree(tmp_path)
        for one in ("fbr-seed0", "fbr-seed0/gate-none", "fbr-seed0/gate-nroi"):
            (tmp_path / one).mkdir(parents=True)
        for name in SCORES:
            (tmp_path / "fbr-seed0" / f"{name}.json").write_bytes(content)
        for one in ("gate-none", "gate-nroi"):
            (tmp_path / "fbr-seed0" / one / "miou-8.json").write_bytes(content)
        return tmp_path / argument

    for content in BROKEN.values():
        assert_refused(run(script, write(content)), str(tmp_path))

    names = ("miou", "oracle", "leak", "protocol", "commit", "cpu", "config", "minutes")

    @PROPERTY
    @given(st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES)))
    def holds(document: dict) -> None:
        report_or_line(main, write(json.dumps(document).encode()))
        saved = tmp_path / "cam-seed0.json"
        for record in (document, {**document, "rounds": [document], "results": document}):
            saved.write_bytes(json.dumps({"cam_threshold": 0.1, "figures": {}, **record}).encode())
            report_or_line(main, tmp_path if argument == "." else saved)

    holds()
    capsys.readouterr()


def test_the_head_of_a_page_takes_what_has_its_shape(tmp_path) -> None:
    names = ("config", "flags", "iou", "miou", "oracle", "sweep", "leak", "protocol", "step", "x")
    names += ("images_per_s", "batch_size", "bg_threshold", "classes_in_mean", "commit", "command")
    documents = st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES))
    (tmp_path / "mask").mkdir()
    (tmp_path / "cam").mkdir()

    @PROPERTY
    @given(document=documents, inner=documents, key=st.sampled_from(names))
    def holds(document: dict, inner: dict, key: str) -> None:
        content = json.dumps({"miou": 1.0, "iou": {"disc": 2.0}, **document, key: inner}).encode()
        for name in ("config.json", "miou.json", "miou_cam.json", "mask/crf.json"):
            (tmp_path / name).write_bytes(content)
        (tmp_path / "log.jsonl").write_bytes(content + b'\n{"step": 2, "images_per_s": 1e-300}\n')
        one = open_run(tmp_path)
        assert "tiles" in head([one, one], ("disc",), {})

    holds()
    for content in BROKEN.values():
        for name in ("config.json", "miou.json", "miou_cam.json", "mask/crf.json", "log.jsonl"):
            (tmp_path / name).write_bytes(content)
        assert open_run(tmp_path).noted == {}


def test_regions_whose_ids_are_no_names(tmp_path) -> None:
    import numpy as np

    one = np.ones((1, 4), np.float32)
    regions = Regions([3], np.zeros(1, np.int64), one, one)  # type: ignore[list-item]
    save_regions(tmp_path / "nroi.npz", regions, {})
    with pytest.raises(ValueError, match=r"nroi\.npz.*not text"):
        read_regions(tmp_path / "nroi.npz")


def test_the_config_of_a_run_is_written_over_one_of_another_shape(tmp_path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    write_config(tmp_path, {"a": 1}, {}, weights=None, resumed=True)
    assert read_document(tmp_path / "config.json")["config"] == {"a": 1}
