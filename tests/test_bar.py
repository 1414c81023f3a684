"""What a command prints of its progress where no terminal is: lines, and no carriage return."""

from __future__ import annotations

import io
import re
import sys

import pytest
from runs import REPOSITORY, run, train_flags

import tool.bar
from tool.bar import Bar, clock, counted, progress_line


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_training_run_in_a_file_has_a_line_per_row_of_the_log(folder_root, tmp_path) -> None:
    out = tmp_path / "run"
    result = run(
        "train_fbr.py", *train_flags(folder_root, out, method="cam", steps=5), "--lr", 0.02
    )
    assert result.returncode == 0, result.stderr
    form = r"step (\d+)/5  loss [\d.e-]+  lr ([\d.e-]+)  [\d.]+ img/s  [\d.]+ GB  eta \d+:\d\d"
    lines = result.stderr.splitlines()
    steps = [re.fullmatch(form, line) for line in lines if line.startswith("step ")]
    assert [int(match[1]) for match in steps] == [1, 2, 3, 4, 5]
    # The rate is that of --lr, whatever multiple of it a group has.
    rates = [0.02 * (1 - step / 5) ** 0.9 for step in range(5)]
    assert [float(match[2]) for match in steps] == pytest.approx(rates, rel=0.05)
    assert len((out / "log.jsonl").read_text().splitlines()) == 5
    assert "\r" not in result.stdout + result.stderr


def test_tensorboard_has_tags_in_groups_hyper_parameters_and_the_score(
    folder_root, tmp_path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    out = tmp_path / "run"
    assert run("train_fbr.py", *train_flags(folder_root, out, steps=2)).returncode == 0
    data = ["--dataset", "folder", "--root", folder_root]
    masks = ["--pred-dir", folder_root / "masks", *data, "--json"]
    for _ in range(2):  # a score replaces the one before
        assert run("eval_miou.py", *masks, out / "miou.json").returncode == 0
    assert run("eval_miou.py", *masks, tmp_path / "miou.json").returncode == 0
    assert not list(tmp_path.glob("*tfevents*")), "no run is there"
    events = EventAccumulator(str(out))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss/loss", "loss/cls", "run/lr_factor", "run/images_per_s", "run/memory_gb"} < {*tags}
    assert {tag.partition("/")[0] for tag in tags} == {"loss", "contrast", "run", "score"}
    assert [point.step for point in events.Scalars("loss/loss")] == [1, 2]
    assert [(p.step, p.value) for p in events.Scalars("score/miou")] == [(2, 100)]
    assert events.Scalars("score/miou/sky lark")[0].value == 100
    noted = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(noted).session_start_info.hparams
    assert found["method"].string_value == "fbr"
    assert found["lr"].number_value > 0
    assert found["bank_size"].number_value == 300
    assert not {"class_names", "list_sha256"} & set(found)
    columns = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    names = [m.name.tag for m in HParamsPluginData.FromString(columns).experiment.metric_infos]
    assert "score/miou" in names


def test_other_stages_print_a_line_every_so_often(monkeypatch, capsys) -> None:
    now = iter(float(second) for second in range(0, 10_000, 10))
    monkeypatch.setattr(tool.bar.time, "monotonic", lambda: next(now))
    assert list(counted(range(7), 7, "crf", unit="image")) == list(range(7))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "crf: 3/7 images, 0.1 images/s, 0:40 to go",
        "crf: 6/7 images, 0.1 images/s, 0:10 to go",
        "crf: 7/7 images, 0.087 images/s",
    ]


def test_a_short_stage_prints_nothing_and_a_quiet_one_never(monkeypatch, capsys) -> None:
    list(counted(range(5), 5, "crf"))
    monkeypatch.setattr(tool.bar, "EVERY", 0.0)
    list(counted(range(5), 5, "crf", quiet=True))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(tool.bar, "EVERY", 0.0)
    with Bar(3, "crf", unit="image") as bar:
        bar.update(3)
    text = terminal.getvalue()
    assert "\r" in text
    assert "3/3" in text
    assert "images/s" not in text


def test_the_progress_of_a_download_is_in_megabytes() -> None:
    text = progress_line(31_000_000, 168_000_000, "B", 2e6, scaled=True)
    assert text == "31.0/168.0 MB, 2 MB/s, 1:08 to go"
    assert progress_line(5, None, "image", 2.0) == "5 images, 2 images/s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (9667, "2:41:07")]
)
def test_times_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_no_command_draws_a_bar_of_its_own() -> None:
    folders = ("tool", "data", "network", "voc12", "coco14")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > 100
    for path in [*REPOSITORY.glob("*.py"), *files]:
        if path.name != "bar.py":
            assert "tqdm" not in path.read_text(encoding="utf-8"), path
