"""Stages 3 and 4 in several processes make what one process makes, and fail with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as distributed
from conftest import FOLDER_IMAGES
from runs import REPOSITORY, RanksResult, assert_refused, environment, run_ranks

from tool.cli import Parser
from tool.crf import dense
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.mask import load_mask, save_mask
from tool.parallel import dist
from tool.parallel.device import local_cuda
from tool.parallel.processes import default_workers

IDS = tuple(FOLDER_IMAGES)


def write_cams(root: Path, folder: Path) -> Path:
    """CAMs around the true objects; one with a background row."""
    rng = np.random.default_rng(0)
    for image_id in IDS:
        truth = load_mask(root / "masks" / f"{image_id}.png")
        index = np.unique(truth) if image_id == "d6" else np.unique(truth[truth > 0])
        maps = [0.5 * (truth == value) + 0.5 * rng.random(truth.shape) for value in index]
        values = np.array(maps, np.float32).reshape(len(index), *truth.shape)
        save_cam(folder / f"{image_id}.npy", Cam(index, values))
    return folder


def post_process(
    ranks: int, folder: Path, root: Path, cams: Path, out: Path, *more: object
) -> RanksResult:
    flags = ["--dataset", "folder", "--root", root, "--cam-dir", cams, "--out", out, "--workers", 1]
    return run_ranks(ranks, folder, "crf_postprocess.py", *flags, "--iterations", 1, *more)


def score(ranks: int, folder: Path, root: Path, predictions: Path, *more: object) -> RanksResult:
    flags = ["--dataset", "folder", "--root", root, "--pred-dir", predictions]
    return run_ranks(ranks, folder, "eval_miou.py", *flags, "--json", folder / "m.json", *more)


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


def test_masks_do_not_depend_on_the_ranks_and_a_restart_takes_another_number(
    folder_root, tmp_path
) -> None:
    """crf.json is the same too: it names the CAMs relative to the folder."""
    cams = write_cams(folder_root, tmp_path / "cam")
    alone = post_process(1, tmp_path / "1", folder_root, cams, tmp_path / "one")
    both = post_process(2, tmp_path / "2", folder_root, cams, tmp_path / "two")
    assert (alone.returncode, both.returncode) == (0, 0), alone.stderr + both.stderr
    assert both.stdout == f"{tmp_path / 'two'}: 8 written, 0 were there\n"
    whole = files_in(tmp_path / "one")
    assert len(whole) == 10, "the masks and two notes"
    assert files_in(tmp_path / "two") == whole
    kept = tmp_path / "two" / "a1.png"
    inode = kept.stat().st_ino
    for image_id in IDS[2:6]:
        (tmp_path / "two" / f"{image_id}.png").unlink()
    again = post_process(3, tmp_path / "3", folder_root, cams, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{tmp_path / 'two'}: 4 written, 4 were there\n"
    assert files_in(tmp_path / "two") == whole
    assert kept.stat().st_ino == inode


def test_a_threshold_by_area_is_that_of_all_ranks(folder_root, tmp_path) -> None:
    cams = write_cams(folder_root, tmp_path / "cam")
    rows = load_cam(cams / "d6.npy")
    save_cam(cams / "d6.npy", rows.foreground())  # a background row takes no threshold
    flags = ("--threshold-from", folder_root / "masks")
    for ranks in (1, 3):
        out = tmp_path / str(ranks)
        done = post_process(ranks, tmp_path / f"r{ranks}", folder_root, cams, out, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("with as much foreground as") == 1
    assert files_in(tmp_path / "3") == files_in(tmp_path / "1")


def test_torchrun_starts_the_ranks(folder_root, tmp_path) -> None:
    cams = write_cams(folder_root, tmp_path / "cam")
    base = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = ["--dataset", "folder", "--root", folder_root, "--cam-dir", cams, "--iterations", 1]
    command = [sys.executable, *base, "crf_postprocess.py", *flags, "--out", tmp_path / "mask"]
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'mask'}: 8 written, 0 were there\n"
    assert post_process(1, tmp_path / "1", folder_root, cams, tmp_path / "one").returncode == 0
    assert files_in(tmp_path / "mask") == files_in(tmp_path / "one")


def test_scores_of_cams_do_not_depend_on_the_ranks(folder_root, tmp_path) -> None:
    """Every count is above 0 on every rank: confusion, sweep, leak, CAMs with a background row."""
    cams = write_cams(folder_root, tmp_path / "cam")
    for image_id in IDS:
        context = np.zeros_like(load_mask(folder_root / "masks" / f"{image_id}.png"))
        context[:9] = 1 + np.arange(9)[:, None] % 3
        save_mask(tmp_path / "context" / f"{image_id}.png", context)
    flags = (folder_root, cams, "--sweep", "--context", tmp_path / "context", "--bg-threshold", 0.3)
    done = {ranks: score(ranks, tmp_path / f"{ranks}", *flags) for ranks in (1, 2, 3)}
    assert all(one.returncode == 0 for one in done.values()), done
    document = json.loads((tmp_path / "1" / "m.json").read_text())
    assert document["images"] == 8
    assert document["protocol"]["cams_with_background_row"] == 1
    assert document["leak"]["leaked"] > 0
    for ranks in (2, 3):
        assert done[ranks].stdout == done[1].stdout, "the table, once"
        for name in ("m.json", "m.png"):
            assert (tmp_path / f"{ranks}" / name).read_bytes() == (
                tmp_path / "1" / name
            ).read_bytes()


def test_more_ranks_than_images_and_masks_with_255(folder_dataset, tmp_path) -> None:
    (folder_dataset / "lists" / "few.txt").write_text("a1\nb-4\nd6\n")
    (folder_dataset / "images" / "b-4.jpeg").write_bytes(b"no image")
    masks = tmp_path / "mask"
    for image_id in ("a1", "d6"):
        mask = load_mask(folder_dataset / "masks" / f"{image_id}.png")
        mask[:7, :5] = 255
        save_mask(masks / f"{image_id}.png", mask)
    few = ("--list", "few", "--skip-bad-images")
    flags = (folder_dataset, masks, *few)
    done = {ranks: score(ranks, tmp_path / f"{ranks}", *flags) for ranks in (1, 3)}
    assert [one.returncode for one in done.values()] == [0, 0], done
    assert "predicted 255: 70 pixels" in done[3].stdout
    assert done[3].stderr == done[1].stderr, "what was skipped, once"
    assert done[3].stderr.count("skipped b-4") == 1
    assert (tmp_path / "3" / "m.json").read_bytes() == (tmp_path / "1" / "m.json").read_bytes()
    cams = write_cams(folder_dataset, tmp_path / "cam")
    out = tmp_path / "out"
    written = post_process(3, tmp_path / "crf", folder_dataset, cams, out, *few)
    assert written.returncode == 0, written.stderr
    assert written.stdout == f"{out}: 2 written, 0 were there\n"


def test_a_refused_folder_ends_every_rank_with_one_line_and_nothing_written(
    folder_root, tmp_path
) -> None:
    cams, out = write_cams(folder_root, tmp_path / "cam"), tmp_path / "mask"
    assert post_process(1, tmp_path / "1", folder_root, cams, out).returncode == 0
    (out / "2007_000032.png").unlink()  # the second rank's
    before = files_in(out)
    assert_refused(
        post_process(2, tmp_path / "2", folder_root, cams, out, "--alpha", 4), "another alpha"
    )
    assert files_in(out) == before
    missing = post_process(2, tmp_path / "3", folder_root, tmp_path / "none", out)
    assert_refused(missing, "infer_cam.py")  # both ranks see it


@pytest.mark.parametrize("broken", [("d6",), ("2007_000032",), ("a1", "2007_000032")])
def test_a_broken_cam_ends_every_rank_with_one_line_that_names_it(
    folder_root, tmp_path, broken
) -> None:
    """Of the first rank, of the second, of both: then the one that is met first."""
    cams, out = write_cams(folder_root, tmp_path / "cam"), tmp_path / "mask"
    for image_id in broken:
        (cams / f"{image_id}.npy").write_bytes(b"\x93NUMPY broken")
    for result in (
        post_process(2, tmp_path / "crf", folder_root, cams, out),
        score(2, tmp_path / "eval", folder_root, cams),
    ):
        assert_refused(result, ".npy: ")
        assert any(f"/{image_id}.npy: " in result.stderr for image_id in broken)
    assert not (tmp_path / "eval" / "m.json").exists()


PROGRAM = """
import os, time
import numpy as np
from tool.parallel import dist
from tool.cli import run_stage

def forever():
    try:
        while True:
            time.sleep(0.01)
            yield 1
    finally:
        print("closed")

def main(argv):
    try:
        with dist.ranks(), dist.all_or_none():
            if dist.rank() == 1:
                {what}
            {others}
    finally:
        print("left")

run_stage(main)
"""


def run_program(
    tmp_path: Path, what: str, others: str = "sum(dist.until_a_rank_fails(forever()))"
) -> RanksResult:
    """Three ranks that would go on forever, if `what` did not happen on the second."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(what=what, others=others))
    return run_ranks(3, tmp_path / "texts", str(script))


def test_the_others_end_when_a_rank_fails(tmp_path) -> None:
    done = run_program(tmp_path, "raise ValueError('b-4.npy is broken')")
    assert_refused(done, "b-4.npy is broken")
    assert done.stdout.split() == ["closed", "left", "left", "closed", "left"], "by rank"


def test_a_bug_on_one_rank_keeps_its_traceback(tmp_path) -> None:
    done = run_program(tmp_path, "raise AssertionError('ours')")
    assert sorted(done.returncodes) == [1, 2, 2]
    assert done.stderr.count("Traceback") == 1


def test_waiting_for_a_rank_that_died_ends_in_one_line(tmp_path) -> None:
    done = run_program(tmp_path, "os._exit(7)", others="dist.sum_over_ranks(np.ones(3))")
    assert done.returncodes == [2, 7, 2]
    assert done.stderr.count("error: another rank is gone") == 2
    assert "Traceback" not in done.stderr


def test_a_rank_that_dies_before_the_others_have_joined_is_named(monkeypatch) -> None:
    """A rank can leave the group while others are still connecting to it."""

    def reset(*_args: object, **_flags: object) -> None:
        raise RuntimeError("Connection reset by peer")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", reset)
    with pytest.raises(ChildProcessError, match=r"another rank is gone .*reset by peer"):
        dist.start()


def test_a_wrong_flag_is_told_by_the_first_rank(monkeypatch, capsys) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as end:
            Parser(__name__, example="").parse_args(["--no-such-flag"])
        assert end.value.code == 2
        assert capsys.readouterr().err.count("--no-such-flag") == lines


def test_ranks_on_one_machine_share_its_cores_and_gpus(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (default_workers(), local_cuda()) == (16, "cuda")
    for ranks, rank, workers, gpu in (
        (4, 1, 4, "cuda:1"),
        (3, 2, 5, "cuda:0"),
        (32, 5, 1, "cuda:1"),
    ):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert (default_workers(), local_cuda()) == (workers, gpu)
    monkeypatch.setattr(dense, "_has_gpu", lambda: True)
    assert dense.pick_backend("torch") == ("torch", "cuda:1")


def test_ranks_with_a_share_each_wait_for_days(monkeypatch) -> None:
    asked = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(
        distributed, "init_process_group", lambda *backend, **more: asked.append((*backend, more))
    )
    for device in (None, torch.device("cpu"), torch.device("cuda")):
        with dist.ranks(device):
            pass
    backends = ["gloo", "gloo", "nccl"]
    assert asked == [(backend, {"timeout": dist.PATIENCE}) for backend in backends]
