"""Stage 3 as a program: masks and seeds, restarts, processes, and what it says to bad input."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import crf_postprocess
from data.catalog import open_catalog
from tool.crf.dense import preset_of
from tool.crf.stage import PostProcess
from tool.formats.cam import Cam, cam_mask, load_cam, save_cam
from tool.formats.mask import load_mask, save_mask
from tool.parallel.processes import map_processes

ROOT = Path(__file__).resolve().parent.parent


def ids_of(root: Path) -> list[str]:
    return (root / "lists" / "train.txt").read_text().split("\n")[:-1]


def write_cams(root: Path, *, background: float | None = None) -> Path:
    """CAMs that cover the objects of the true mask and a little more."""
    folder = root.parent / "cam"
    for image_id in ids_of(root):
        truth = load_mask(root / "masks" / f"{image_id}.png")
        index = np.unique(truth[truth > 0])
        maps = np.zeros((len(index), *truth.shape), np.float32)
        for row, value in zip(maps, index, strict=True):
            inside = truth == value
            for shift in (-2, 0, 2):
                row += 0.3 * np.roll(inside, shift, 1)
        if background is not None:
            index = np.append(np.uint8(0), index)
            maps = np.append(np.full((1, *truth.shape), background, np.float32), maps, 0)
        save_cam(folder / f"{image_id}.npy", Cam(index.astype(np.uint8), maps))
    return folder


def flags_of(root: Path, out: Path, *more: object) -> list[str]:
    flags = ["--dataset", "folder", "--root", root, "--cam-dir", root.parent / "cam", "--out", out]
    return [str(flag) for flag in (*flags, *more)]


def run(root: Path, out: Path, *more: object) -> dict[str, np.ndarray]:
    """The masks of one run in this process."""
    crf_postprocess.main(flags_of(root, out, "--workers", 1, *more))
    return {image_id: load_mask(out / f"{image_id}.png") for image_id in ids_of(root)}


def program(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "crf_postprocess.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_masks_have_present_classes_and_find_the_objects(
    folder_dataset: Path, tmp_path: Path
) -> None:
    write_cams(folder_dataset)
    masks = run(folder_dataset, tmp_path / "mask")
    for image_id, mask in masks.items():
        truth = load_mask(folder_dataset / "masks" / f"{image_id}.png")
        assert mask.shape == truth.shape
        assert set(np.unique(mask)) <= set(np.unique(truth))
        assert ((mask == truth) | (truth == 255)).mean() > 0.9
    assert not masks["empty"].any()
    assert masks["d6"].any()
    with Image.open(tmp_path / "mask" / "d6.png") as image:
        assert image.mode == "P"


def test_masks_without_crf_are_the_cams_over_a_threshold(
    folder_dataset: Path, tmp_path: Path
) -> None:
    cams = write_cams(folder_dataset)
    masks = run(folder_dataset, tmp_path / "mask", "--threshold", 0.45)
    for image_id, mask in masks.items():
        cam = load_cam(cams / f"{image_id}.npy")
        expected = cam_mask(cam, 0.45) if cam.class_index.size else np.zeros_like(mask)
        assert (mask == expected).all()
    assert sum(mask.any() for mask in masks.values()) > 3
    with pytest.raises(ValueError, match="another threshold"):
        run(folder_dataset, tmp_path / "mask", "--threshold", 0.3)
    with pytest.raises(ValueError, match="another preset"):
        run(folder_dataset, tmp_path / "mask")
    with pytest.raises(ValueError, match=r"no --seeds with it"):
        run(folder_dataset, tmp_path / "other", "--threshold", 0.3, "--seeds", 0.3, 0.05)


def share_of_foreground(masks: dict[str, np.ndarray]) -> float:
    known = sum(int((mask < 255).sum()) for mask in masks.values())
    return sum(int(((mask > 0) & (mask < 255)).sum()) for mask in masks.values()) / known


def test_a_threshold_without_effect_is_warned_about(
    folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--threshold has no effect: the CAMs in"
    write_cams(folder_dataset)
    run(folder_dataset, tmp_path / "plain", "--threshold", 0.45)
    assert words not in capsys.readouterr().err
    write_cams(folder_dataset, background=0.3)
    run(folder_dataset, tmp_path / "crf")
    assert words not in capsys.readouterr().err
    run(folder_dataset, tmp_path / "best", "--threshold", 0.45)
    assert words in capsys.readouterr().err


def test_the_rule_that_is_printed_is_the_one_that_decides(
    folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CAMs of a method without a CRF, such as `irn`, and the same with a background row."""
    note = json.dumps({"post": {"preset": None, "threshold": 0.25}})
    for background, rule in ((None, "above 0.25"), (0.3, "the best row wins")):
        (write_cams(folder_dataset, background=background) / "made_from.json").write_text(note)
        run(folder_dataset, tmp_path / str(background))
        (line,) = (
            line for line in capsys.readouterr().out.splitlines() if line.startswith("no CRF")
        )
        assert line.endswith(rule)


def test_a_threshold_is_found_by_the_area_of_other_masks(
    folder_dataset: Path, tmp_path: Path
) -> None:
    """The masks at a threshold lead back to it, and other masks of that area do too."""
    write_cams(folder_dataset)
    wanted = run(folder_dataset, tmp_path / "wanted", "--threshold", 0.45)
    found = run(folder_dataset, tmp_path / "found", "--threshold-from", tmp_path / "wanted")
    assert share_of_foreground(found) == share_of_foreground(wanted) > 0.01
    assert all((found[name] == wanted[name]).all() for name in found)
    threshold = json.loads((tmp_path / "found" / "crf.json").read_text())["threshold"]
    assert 0.3 <= threshold <= 0.6
    # Only the area counts: the same masks elsewhere, and with unknown pixels.
    for name, mask in wanted.items():
        moved = np.roll(mask, 3, axis=1)
        moved[::2] = 255
        save_mask(tmp_path / "moved" / f"{name}.png", moved)
    other = run(folder_dataset, tmp_path / "other", "--threshold-from", tmp_path / "moved")
    assert share_of_foreground(other) == pytest.approx(share_of_foreground(wanted), rel=0.2)
    # Larger masks ask for a lower threshold.
    run(folder_dataset, tmp_path / "large", "--threshold", 0.05)
    wide = run(folder_dataset, tmp_path / "wide", "--threshold-from", tmp_path / "large")
    assert share_of_foreground(wide) > share_of_foreground(found)


def test_a_threshold_from_masks_that_do_not_help_is_one_line(
    folder_dataset: Path, tmp_path: Path
) -> None:
    write_cams(folder_dataset)
    masks = run(folder_dataset, tmp_path / "masks", "--threshold", 0.45)
    flag = ("--threshold-from", tmp_path / "masks")
    fails(folder_dataset, tmp_path / "x", "not with --threshold", *flag, "--threshold", 0.3)
    fails(folder_dataset, tmp_path / "x", "not with --threshold", *flag, "--seeds")
    fails(folder_dataset, tmp_path / "x", "does not exist", "--threshold-from", tmp_path / "no")
    name = next(iter(masks))
    save_mask(tmp_path / "masks" / f"{name}.png", np.zeros((3, 4), np.uint8))
    fails(folder_dataset, tmp_path / "x", "4x3", *flag)
    (tmp_path / "masks" / f"{name}.png").unlink()
    fails(folder_dataset, tmp_path / "x", "1 of .* masks are missing", *flag)
    for name, mask in masks.items():
        save_mask(tmp_path / "masks" / f"{name}.png", np.zeros_like(mask))
    fails(folder_dataset, tmp_path / "x", "no foreground", *flag)
    write_cams(folder_dataset, background=0.3)
    for name, mask in masks.items():
        save_mask(tmp_path / "masks" / f"{name}.png", mask)
    fails(folder_dataset, tmp_path / "x", "background row", *flag)
    assert not (tmp_path / "x").exists()


def test_the_default_is_the_recipe_of_fbr(folder_dataset: Path, tmp_path: Path) -> None:
    write_cams(folder_dataset)
    default = run(folder_dataset, tmp_path / "a")
    for number, explicit in enumerate((["psa80", "--iterations", 5], ["fbr80"])):
        same = run(folder_dataset, tmp_path / f"b{number}", "--alpha", 8, "--preset", *explicit)
        assert all((default[name] == same[name]).all() for name in default)
    settings = json.loads((tmp_path / "a" / "crf.json").read_text())
    assert settings["preset"]["crf"]["iterations"] == 5
    assert settings["preset"]["crf"]["bilateral_sxy"] == 80
    run(folder_dataset, tmp_path / "c", "--preset", "dlv2")
    settings = json.loads((tmp_path / "c" / "crf.json").read_text())
    assert settings["preset"]["crf"]["iterations"] == 10
    run(folder_dataset, tmp_path / "d", "--preset", "psa80")
    settings = json.loads((tmp_path / "d" / "crf.json").read_text())
    assert settings["preset"]["crf"]["iterations"] == 10, "its own, not FBR's"


@pytest.mark.parametrize(("level", "some"), [(0.95, False), (0.01, True)])
def test_a_background_row_takes_the_place_of_alpha(
    folder_dataset: Path, tmp_path: Path, level: float, some: bool
) -> None:
    write_cams(folder_dataset, background=level)
    masks = run(folder_dataset, tmp_path / "mask", "--alpha", 1000 if some else 0.001)
    assert masks["a1"].any() == some


def test_seeds(folder_dataset: Path, tmp_path: Path) -> None:
    write_cams(folder_dataset)
    seeds = run(folder_dataset, tmp_path / "seed", "--seeds", 0.8, 0.05)
    values = set(np.unique(np.concatenate([seed.ravel() for seed in seeds.values()])))
    assert values == {0, 1, 2, 3, 255}
    assert not seeds["empty"].any()
    settings = json.loads((tmp_path / "seed" / "crf.json").read_text())
    assert settings["preset"]["crf"]["bilateral_sxy"] == 50
    assert settings["preset"]["crf"]["iterations"] == 10


def test_processes_write_the_same_files(folder_dataset: Path, tmp_path: Path) -> None:
    write_cams(folder_dataset)
    alone = run(folder_dataset, tmp_path / "one")
    done = program(*flags_of(folder_dataset, tmp_path / "two", "--workers", 2))
    assert done.returncode == 0, done.stderr
    assert "8 written, 0 were there" in done.stdout
    for image_id in alone:
        name = f"{image_id}.png"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_restart_makes_only_what_is_missing_broken_or_out_of_date(
    folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cams, out = write_cams(folder_dataset), tmp_path / "mask"
    first = run(folder_dataset, out)
    (out / "a1.png").unlink()
    (out / "b-4.png").write_bytes((out / "b-4.png").read_bytes()[:60])
    save_mask(out / "c5.png", np.zeros((3, 3), np.uint8))
    later = (out / "d6.png").stat().st_mtime_ns + 10**9
    os.utime(cams / "d6.npy", ns=(later, later))
    kept = out / "my photo.png"
    before = kept.stat()
    capsys.readouterr()
    second = run(folder_dataset, out)
    assert "4 written, 4 were there" in capsys.readouterr().out
    assert kept.stat().st_ino == before.st_ino
    assert all((first[name] == second[name]).all() for name in first)


def fails(root: Path, out: Path, message: str, *more: object) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run(root, out, *more)


def test_masks_of_other_settings_or_origin_are_not_taken_over(
    folder_dataset: Path, tmp_path: Path
) -> None:
    write_cams(folder_dataset)
    out = tmp_path / "mask"
    run(folder_dataset, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    fails(folder_dataset, out, "another alpha", "--alpha", 4)
    fails(folder_dataset, out, "another preset", "--iterations", 6)
    fails(folder_dataset, out, "seed", "--seeds", 0.3, 0.05)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    truth = folder_dataset / "masks"
    before = {file.name: file.read_bytes() for file in truth.glob("*.png")}
    fails(folder_dataset, truth, "masks that this command did not make")
    assert {file.name: file.read_bytes() for file in truth.glob("*.png")} == before


def test_two_runs_in_one_folder(folder_dataset: Path, tmp_path: Path) -> None:
    """The second is refused; after the first was killed the next one is not."""
    write_cams(folder_dataset)
    out = tmp_path / "mask"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom tool.files import locked\n"
            "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)",
            str(out),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        holder.stdout.readline()
        fails(folder_dataset, out, "another run")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    run(folder_dataset, out)


def test_missing_cams_name_the_stage(folder_dataset: Path, tmp_path: Path) -> None:
    fails(folder_dataset, tmp_path / "mask", "infer_cam.py")
    cams = write_cams(folder_dataset)
    (cams / "a1.npy").unlink()
    (cams / "d6.npy").unlink()
    fails(folder_dataset, tmp_path / "mask", r"2 of 8 CAMs .*\(a1, d6\).*infer_cam.py")
    assert not (tmp_path / "mask").exists()


def test_bad_files_are_named(folder_dataset: Path, tmp_path: Path) -> None:
    cams, out = write_cams(folder_dataset), tmp_path / "mask"
    path = cams / "b-4.npy"
    good = path.read_bytes()
    save_cam(path, Cam(np.array([1], np.uint8), np.zeros((1, 5, 6), np.float32)))
    fails(folder_dataset, out, r"b-4\.npy: the CAM is 6x5, its image is 80x48")
    save_cam(path, Cam(np.array([4], np.uint8), np.zeros((1, 48, 80), np.float32)))
    fails(folder_dataset, out, r"b-4\.npy has class 4: there are 3 classes")
    path.write_bytes(good[:300])
    fails(folder_dataset, out, r"b-4\.npy: refused")
    path.write_bytes(good)
    image = folder_dataset / "images" / "d6.jpg"
    image.write_bytes(image.read_bytes()[:400])
    fails(folder_dataset, out, r"d6\.jpg")
    assert (out / "a1.png").exists()
    assert not (out / "d6.png").exists()
    assert not [file for file in out.iterdir() if file.name.startswith(".d6")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", 0.1, 0.3), "seed"),
        (("--seeds", 0.3, 0.05, "--preset", "psa80"), "label50"),
    ],
)
def test_bad_flags(folder_dataset: Path, tmp_path: Path, flags: tuple, message: str) -> None:
    write_cams(folder_dataset)
    fails(folder_dataset, tmp_path / "mask", message, *flags)
    assert not (tmp_path / "mask").exists()


def test_an_error_in_a_worker_is_one_line_and_status_2(
    folder_dataset: Path, tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    cams = write_cams(folder_dataset)
    array = np.empty((), object)
    array[()] = {0: Hostile()}
    np.save(cams / "v1.2.x.npy", array, allow_pickle=True)
    done = program(*flags_of(folder_dataset, tmp_path / "mask", "--workers", 2))
    assert done.returncode == 2
    assert done.stderr.startswith("python crf_postprocess.py: error: ")
    assert "v1.2.x.npy: refused" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_workers_have_one_thread_each_and_keep_the_order() -> None:
    before = dict(os.environ)
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NO_SUCH_NAME"]
    assert list(map_processes(os.getenv, names, workers=2)) == ["1", "1", "1", None]
    assert dict(os.environ) == before
    assert list(map_processes(math.sqrt, [], workers=2)) == []


def test_every_backend_and_the_batches_of_a_gpu_write_the_same_masks(folder_dataset, tmp_path):
    cams = write_cams(folder_dataset)
    theirs = run(folder_dataset, tmp_path / "compiled", "--backend", "auto")
    ours = run(folder_dataset, tmp_path / "torch", "--backend", "torch")
    work = PostProcess(
        open_catalog("folder", folder_dataset),
        cams,
        tmp_path / "batches",
        preset=preset_of("psa80", 5),
        alpha=8.0,
        backend="torch",
    )
    ids = ids_of(folder_dataset)
    assert sum(work.in_batches(ids, threads=2, chunk=3, batch=2)) == len(ids)
    assert sum(work.in_batches(ids, threads=2, chunk=3, batch=2)) == 0, "all are there"
    for image_id in ids:
        batched = load_mask(tmp_path / "batches" / f"{image_id}.png")
        assert (batched == ours[image_id]).mean() > 0.998
        assert (theirs[image_id] == ours[image_id]).mean() > 0.998
