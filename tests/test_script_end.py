"""The end of every script: a report, and five lines that say where things are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import alive, wait_for
from report_runs import write_run
from runs import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "scripts").glob("script_*.sh"))
NAMES = ("mIoU", "minutes", "masks", "report", "checkpoint")


def finish(root: Path, out: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """What `finish` of chain.sh prints for a run."""
    lines = [
        "set -euo pipefail",
        "source scripts/chain.sh",
        f'PYTHON={sys.executable} data=(--dataset folder --root "{root}")',
        f'finish "{out}" "{out}/mask" "{out}/miou.json" train',
    ]
    command = ["bash", "-c", "\n".join(lines)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | settings, capture_output=True, text=True
    )


def last_lines(text: str) -> dict[str, str]:
    """The last five lines: what each names, and its value."""
    pairs = (re.split(r"\s+", line, maxsplit=1) for line in text.splitlines()[-len(NAMES) :])
    return dict(pairs)


def test_five_lines_say_where_everything_is(folder_root: Path, tmp_path: Path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    (out / "miou.json").write_text('{"miou": 71.234, "iou": {"disc": 71.234}}')
    (out / "checkpoint.pth").write_bytes(b"weights")
    done = finish(folder_root, out)
    assert done.returncode == 0, done.stderr
    found = last_lines(done.stdout)
    assert tuple(found) == NAMES
    assert found["mIoU"] == "71.23"
    assert re.fullmatch(r"\d+:\d\d", found["minutes"])
    assert found["masks"] == f"{out}/mask"
    assert Path(found["report"]).is_file()
    assert Path(found["checkpoint"]).is_file()


def test_a_report_that_fails_loses_nothing(folder_root: Path, tmp_path: Path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    (out / "mask" / "a1.png").write_bytes(b"broken")
    done = finish(folder_root, out)
    assert done.returncode == 0
    assert "a1.png" in done.stderr
    found = last_lines(done.stdout)
    assert found["mIoU"] == "not scored"
    assert found["report"] == "not made: see above"
    assert found["checkpoint"] == "none"


@pytest.mark.parametrize("score", ["[1]", '{"miou": "high"}', "broken"])
def test_a_score_that_is_broken_is_not_known(score: str, folder_root: Path, tmp_path: Path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    (out / "miou.json").write_text(score)
    done = finish(folder_root, out)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert last_lines(done.stdout)["mIoU"] == "not known"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_program_of_a_script_that_is_ended_ends_too(number, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import tool.starting\nimport os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n"
    )
    script = f'source scripts/settings.sh\n"$PYTHON" "{program}"\necho went on'
    settings = {"PYTHON_READY": sys.executable, "PYTHONPATH": str(REPOSITORY)}
    command = ["bash", "-c", f"script=script_contrast.sh\n{script}", "script_contrast.sh"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | settings, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    process.wait(10)
    assert not wait_for(lambda: alive(child), lambda found: not found, 10)
    assert process.stdout.read() == ""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_ends_so(script: Path) -> None:
    text = script.read_text()
    assert "source scripts/chain.sh" in text
    assert text.count("\nfinish ") == 1
    assert text.index("\nfinish ") > len(text) * 0.8
