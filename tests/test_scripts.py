"""Scripts refuse what they do not take, warn of what they do not read, run from any folder."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from runs import REPOSITORY

SCRIPTS = sorted(path.name for path in (REPOSITORY / "scripts").glob("*.sh"))
PARTS = {"chain.sh", "comparison.sh", "settings.sh"}  # of other scripts
OWN_ARGUMENTS = {"setup.sh", "run_tests.sh"}
TAKE_NONE = [name for name in SCRIPTS if name not in PARTS | OWN_ARGUMENTS]


def recorder(folder: Path) -> tuple[Path, Path]:
    """Return a program in place of Python that notes its arguments, and the notes."""
    program, calls = folder / "recorder", folder / "calls"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(calls))}\necho 0.2\n')
    program.chmod(0o755)
    return program, calls


def script(
    name: str, folder: Path, *arguments: str, cwd: Path = REPOSITORY, **settings: object
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """Run a script with the recorder as its Python; return how it ended, and the calls."""
    program, calls = recorder(folder)
    given = {"PYTHON_READY": str(program)} | {key: str(value) for key, value in settings.items()}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), **given}
    command = ["bash", os.path.relpath(REPOSITORY / "scripts" / name, cwd), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done, [line.split() for line in lines]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> bool:
    """Whether a script ended with one line of error that has these words."""
    (line,) = done.stderr.splitlines()
    return done.returncode == 2 and all(word in line for word in words)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_help(tmp_path: Path, name: str) -> None:
    flag = "-h" if len(name) % 2 else "--help"
    done, calls = script(name, tmp_path, flag, cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr
    assert not calls
    text = (REPOSITORY / "scripts" / name).read_text().splitlines()
    first = next(line for line in text if line.startswith("# "))
    assert done.stdout.splitlines()[0] == first.removeprefix("# ")


@pytest.mark.parametrize("name", TAKE_NONE)
def test_unknown_arguments_are_refused(tmp_path: Path, name: str) -> None:
    done, calls = script(name, tmp_path, "--steps")
    assert refused(done, "--steps", "--help"), done.stderr
    assert not calls


def test_a_setting_stands_before_the_script(tmp_path: Path) -> None:
    done, _ = script("script_contrast.sh", tmp_path, "STEPS=5")
    assert refused(done, "write STEPS=5 bash scripts/script_contrast.sh")


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_of_other_scripts_is_no_script(tmp_path: Path, name: str) -> None:
    done, calls = script(name, tmp_path)
    assert refused(done, "part of other scripts", "script_contrast.sh")
    assert not calls


METHODS = [
    ("script_contrast.sh", {"METHOD": "amn"}, "script_amn.sh"),
    ("script_contrast.sh", {"METHOD": "bes"}, "script_sbe.sh"),
    ("script_contrast.sh", {"METHOD": "deeplab2"}, "script_seg.sh"),
    ("script_contrast.sh", {"METHOD": "irn"}, "script_amn.sh"),
    ("script_contrast.sh", {"METHOD": "sfc_irn"}, "script_sfc.sh"),
    ("script_contrast.sh", {"METHOD": "gate"}, "script_gate.sh"),
    ("script_contrast.sh", {"SEG": 1, "SEG_METHOD": "fbr"}, "script_contrast.sh"),
    ("script_amn.sh", {"METHOD": "eps"}, "script_contrast.sh"),
    ("script_sbe.sh", {"METHOD": "fbr_amn"}, "script_amn.sh"),
    ("script_seg.sh", {"METHOD": "cam"}, "script_"),
    ("script_sfc.sh", {"METHOD": "fbr"}, "script_contrast.sh"),
    ("script_gate.sh", {"METHOD": "fbr"}, "script_contrast.sh"),
    ("slurm_contrast.sh", {"METHOD": "sbe"}, "script_sbe.sh"),
    ("compare.sh", {"METHODS": "fill irn"}, "script_amn.sh"),
    ("compare.sh", {"METHODS": "cam deeplab2:--weight=0"}, "script_seg.sh"),
    ("compare_amn.sh", {"METHODS": "cam eps"}, "script_contrast.sh"),
    ("compare_gate.sh", {"METHODS": "cam sbe"}, "script_sbe.sh"),
]


@pytest.mark.parametrize(("name", "settings", "right"), METHODS)
def test_a_method_of_another_script_names_it(
    tmp_path: Path, name: str, settings: dict[str, object], right: str
) -> None:
    done, calls = script(name, tmp_path, ROOT=tmp_path, **settings)
    assert refused(done, f"scripts/{right}"), done.stderr
    assert not calls


def test_a_method_of_ones_own_is_left_to_the_program(tmp_path: Path) -> None:
    done, calls = script("script_contrast.sh", tmp_path, METHOD="mine", OUT=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert calls[0][:3] == ["train_fbr.py", "--method", "mine"]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("script_contrast.sh", {"SHORT": "yes"}, ["SHORT=yes", "1 or 0"]),
        ("script_contrast.sh", {"SEG": "true"}, ["SEG=true", "1 or 0"]),
        ("script_contrast.sh", {"SKIP_BAD_IMAGES": "no"}, ["SKIP_BAD_IMAGES=no", "1 or 0"]),
        ("script_amn.sh", {"IRN": "no"}, ["IRN=no", "1 or 0"]),
        ("script_amn.sh", {"ROUNDS": "two"}, ["ROUNDS=two", "at least 1"]),
        ("script_seg.sh", {"ROUND": "0"}, ["ROUND=0", "at least 1"]),
        ("script_seg.sh", {"LABELS": "yes"}, ["LABELS=yes", "1 or 0"]),
        ("script_sfc.sh", {"GATE": "on"}, ["GATE=on", "1 or 0"]),
        ("compare.sh", {"JOBS": "many"}, ["JOBS=many", "at least 1"]),
        ("script_contrast.sh", {"SEG": 1, "SEG_WEIGHTS": "no.pth"}, ["SEG_WEIGHTS=", "no file"]),
    ],
)
def test_values_that_a_setting_cannot_have(
    tmp_path: Path, name: str, settings: dict[str, object], words: list[str]
) -> None:
    done, calls = script(name, tmp_path, ROOT=tmp_path, **settings)
    assert refused(done, *words), done.stderr
    assert not calls


@pytest.mark.parametrize(
    ("name", "settings", "lacking"),
    [
        ("script_contrast.sh", {"DATASET": "voc12"}, "ROOT"),
        ("script_contrast.sh", {"DATASET": "folder"}, "ROOT"),
        ("script_amn.sh", {"DATASET": "coco14"}, "ROOT"),
        ("script_seg.sh", {"DATASET": "voc12", "ROOT": "x"}, "MASK_DIR"),
        ("script_gate.sh", {}, "CAM_DIR"),
        ("compare_gate.sh", {"DATASET": "voc12"}, "ROOT"),
        ("compare_seg.sh", {}, "MASKS"),
        ("slurm_contrast.sh", {}, "ROOT"),
        ("sweep_gate.sh", {}, "RUNS"),
    ],
)
def test_a_setting_that_is_lacking_is_named(tmp_path, name, settings, lacking) -> None:
    done, calls = script(name, tmp_path, **settings)
    words = (f"{name}: error: set {lacking} to ", f"as in {lacking}=... bash scripts/{name}")
    assert refused(done, *words), done.stderr
    assert all(call[0] == "-m" and "toy" in call[1] for call in calls)


WARNED = [
    ("script_contrast.sh", "STEP", "STEPS"),
    ("script_contrast.sh", "STPES", "STEPS"),
    ("script_contrast.sh", "steps", "STEPS"),
    ("script_contrast.sh", "BACKBON", "BACKBONE"),
    ("script_contrast.sh", "OUT_DIR", "OUT"),
    ("script_contrast.sh", "SALIENCY", "SALIENCY_ROOT"),
    ("script_contrast.sh", "SALIENCY_DIR", "SALIENCY_ROOT"),
    ("script_contrast.sh", "LIST", "a setting of"),
    ("script_amn.sh", "STEP", "AMN_FLAGS"),
    ("script_contrast.sh", "SEEDS", "SEED"),
    ("script_contrast.sh", "EPOCHS", "TRAIN_FLAGS"),
    ("script_contrast.sh", "SEG_STEPS", "no effect without SEG=1"),
    ("script_amn.sh", "STEPS", "a setting of"),
    ("script_sbe.sh", "WALK_SCALE", "WALK_SCALES"),
    ("script_sfc.sh", "CAM_STRIDES", "CAM_STRIDE"),
    ("script_seg.sh", "MASKDIR", "MASK_DIR"),
    ("script_gate.sh", "CAMDIR", "CAM_DIR"),
    ("script_gate.sh", "SEG", "a setting of"),  # of functions that this script does not call
    ("script_gate.sh", "SKIP_BAD_IMAGES", "a setting of"),
    ("script_seg.sh", "SEG_STEPS", "a setting of"),
    ("script_seg.sh", "MASK_LIST", "a setting of"),
    ("script_sfc.sh", "SALIENCY_ROOT", "a setting of"),
    ("script_bao.sh", "EPOCHS", "BAO_FLAGS"),
    ("compare.sh", "SEED", "SEEDS"),
    ("compare_gate.sh", "ALPHA", "ALPHAS"),
    ("sweep_nroi.sh", "METHODS", "a setting of"),
    ("sweep_gate.sh", "RUN", "RUNS"),
]


@pytest.mark.parametrize(("name", "setting", "word"), WARNED)
def test_a_setting_that_is_not_read_is_warned_about(
    tmp_path: Path, name: str, setting: str, word: str
) -> None:
    required: dict[str, object] = {"RUNS": tmp_path, "CAM_DIR": tmp_path, "MASK_DIR": tmp_path}
    required = {key: required[key] for key in needed(name)}
    value = "1" if setting in ("SEG", "SKIP_BAD_IMAGES") else "5"
    done, _ = script(
        name, tmp_path, **{"ROOT": tmp_path, "OUT": tmp_path} | required, **{setting: value}
    )
    start = f"{name}: warning: {setting} "
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(start)]
    assert word in line


def needed(name: str) -> list[str]:
    """The settings that a script cannot do without."""
    text = (REPOSITORY / "scripts" / name).read_text()
    return [key for key in ("RUNS", "CAM_DIR", "MASK_DIR") if f"need {key} " in text]


@pytest.mark.parametrize("name", ["script_contrast.sh", "script_amn.sh", "compare.sh"])
def test_usual_environments_are_not_warned_about(tmp_path: Path, name: str) -> None:
    usual = (
        "TERM SHELL USER LANG HOSTNAME PWD PATH EDITOR PYTHONPATH LS_COLORS CUDA_VISIBLE_DEVICES"
    )
    usual += " RANK WORLD_SIZE MASTER_PORT TMPDIR DISPLAY PORT OMP_NUM_THREADS SLURM_JOB_ID LOGNAME"
    settings = {key: "1" for key in usual.split() if key != "PATH"}
    settings |= {"SEED" if name != "compare.sh" else "SEEDS": "3"}
    done, calls = script(name, tmp_path, OUT=tmp_path / "out", **settings)
    assert not done.stderr, done.stderr
    assert calls


def test_relative_paths_are_the_callers(tmp_path: Path) -> None:
    for folder in ("data", "maps", "cams", "masks", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "net.pth").touch()
    (tmp_path / "mine.txt").touch()
    cwd = tmp_path / "elsewhere"
    common = {"ROOT": "../data", "OUT": "run", "DATASET": "voc12", "WEIGHTS": "../net.pth"}
    wanted = {"--root": "../data", "--weights": "../net.pth"}

    def check(name: str, wanted: dict[str, str], **settings: str) -> None:
        (tmp_path / "calls").unlink(missing_ok=True)
        done, calls = script(name, tmp_path, cwd=cwd, **settings)
        assert done.returncode == 0, done.stderr
        for flag, value in wanted.items():
            found = [call[call.index(flag) + 1] for call in calls if flag in call]
            assert found, flag
            assert any(os.path.normpath(one) == os.path.normpath(cwd / value) for one in found)

        outs = [call[call.index("--out") + 1] for call in calls if "--out" in call]
        assert all(one.startswith(str(tmp_path)) for one in outs)

    maps = {"SALIENCY_ROOT": "../maps"}
    flags = {"--saliency-root": "../maps", "--list": "../mine.txt"}
    check(
        "script_contrast.sh", wanted | flags, TRAIN_LIST="../mine.txt", SCORE="0", **common, **maps
    )
    cam = {"CAM_OUT": "cam-run"}
    check("script_amn.sh", wanted | {"--seed-dir": "cam-run/seed"}, **common, **cam)
    check("script_sbe.sh", wanted | {"--saliency-root": "../maps"}, **common, **maps)
    check("script_sfc.sh", wanted, **common)
    check("script_seg.sh", wanted | {"--mask-dir": "../masks"}, MASK_DIR="../masks", **common)
    check("script_gate.sh", wanted | {"--cam-dir": "../cams"}, CAM_DIR="../cams", **common)
    sweep = {"RUNS": "../cams ../masks", "ROOT": "../data", "DATASET": "voc12", "SAVE": "figures"}
    check(
        "sweep_gate.sh", {"--checkpoint": "../masks/checkpoint.pth", "--save": "figures"}, **sweep
    )


@pytest.mark.parametrize(
    "name", [f"script_{name}.sh" for name in ("amn", "bao", "contrast", "sbe", "seg", "sfc")]
)
@pytest.mark.parametrize(
    ("settings", "scored"),
    [
        ({"DATASET": "folder"}, False),
        ({"DATASET": "folder", "SCORE": 1}, True),
        ({"DATASET": "mine"}, True),  # a new row of data/layouts.py, whose masks lie elsewhere
        ({"DATASET": "mine", "SCORE": 0}, False),
    ],
)
def test_photographs_without_masks_alone_are_not_scored(
    tmp_path: Path, name: str, settings: dict[str, object], scored: bool
) -> None:
    folders = {"ROOT": tmp_path, "OUT": tmp_path / "out", "MASK_DIR": tmp_path}
    folders = {key: folders[key] for key in ("ROOT", "OUT", *needed(name))}
    done, calls = script(name, tmp_path, **folders, **settings)
    assert done.returncode == 0, done.stderr
    assert any(call[0] == "eval_miou.py" for call in calls) == scored


def test_names_in_place_of_paths_stay(tmp_path: Path) -> None:
    settings = {"DATASET": "voc12", "ROOT": str(tmp_path), "OUT": str(tmp_path / "out")}
    done, calls = script(
        "script_seg.sh", tmp_path, cwd=tmp_path, MASK_DIR="truth", WEIGHTS="imagenet", **settings
    )
    assert done.returncode == 0, done.stderr
    assert calls[0][calls[0].index("--mask-dir") + 1] == "truth"
    assert calls[0][calls[0].index("--weights") + 1] == "imagenet"
    assert calls[0][calls[0].index("--list") + 1] == "train_aug"
