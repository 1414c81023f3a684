"""The contract on methods that nobody has seen: put into the folder of methods, and nothing else.

`trial_methods/` holds four, which use every hook, flag and batch key between them. A copy of the
tree with them in `network/methods` passes the contract's tests and all four stages.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import write_folder
from PIL import Image
from runs import REPOSITORY, SMALL, environment

from network.backbones import build_backbone
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.mask import load_mask, save_mask

TRIALS = sorted(path.stem for path in (REPOSITORY / "tests" / "trial_methods").glob("trial_*.py"))
CONTRACT = ("test_methods.py", "test_state.py", "test_options.py", "test_post.py")
ON_A_DEVICE = ("test_fake_cuda.py",)
STEPS = 6


EXAMPLE = "top_pool"


def example() -> str:
    """The method that the README prints."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text[text.index("### Add a method") :], re.DOTALL)
    assert f"network/methods/{EXAMPLE}.py" in text
    return code


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the trial methods in `network/methods`."""
    root = tmp_path_factory.mktemp("tree") / "project"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "out", "shared", "*.egg-info")
    shutil.copytree(REPOSITORY, root, ignore=ignored)
    for name in TRIALS:
        shutil.copy(REPOSITORY / "tests" / "trial_methods" / f"{name}.py", root / "network/methods")
    (root / "network" / "methods" / f"{EXAMPLE}.py").write_text(example(), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and beside it CAMs and boundary labels."""
    root = write_folder(tmp_path_factory.mktemp("trial") / "dataset")
    for path in sorted((root / "masks").glob("*.png")):
        truth = load_mask(path)
        index = np.unique(truth[truth > 0])
        maps = np.zeros((len(index), *truth.shape), np.float32)
        for row, value in zip(maps, index, strict=True):
            row[truth == value] = 0.9
        save_cam(root.parent / "cam" / f"{path.stem}.npy", Cam(index, maps))
        edge = np.zeros_like(truth)
        edge[:, :-1] = truth[:, 1:] != truth[:, :-1]
        edge[:4] = 255
        (root.parent / "boundary").mkdir(exist_ok=True)
        Image.fromarray(edge).save(root.parent / "boundary" / f"{path.stem}.png")
        save_mask(root.parent / "mask" / f"{path.stem}.png", truth)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the slim backbone: norms from scratch do not train over ranks on a CPU."""
    path = tmp_path_factory.mktemp("weights") / "slim.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        safetensors.torch.save_file(build_backbone("resnet38d_slim").state_dict(), path)
    return path


def given(name: str, data: Path, *, training: bool) -> list[object]:
    """The flags for what a trial method reads."""
    root = data
    if name == "trial_segment":  # it needs no labels
        root = data.parent / "unlabelled"
        if not root.exists():
            shutil.copytree(data, root, ignore=shutil.ignore_patterns("labels.csv"))
    flags: list[object] = ["--dataset", "folder", "--root", root, "--list", "train"]
    if name == "trial_walk":
        flags += ["--cam-dir", data.parent / "cam"]
        flags += ["--boundary-dir", data.parent / "boundary"] if training else []
    if name == "trial_segment" and training:
        flags += ["--mask-dir", data.parent / "mask"]
    return flags


def train(name: str, data: Path, out: Path, weights: Path, *more: object) -> list[str]:
    """The flags of a short run."""
    small = [*SMALL]
    small[small.index("none")] = str(weights)
    flags = ["train_fbr.py", "--method", name, *given(name, data, training=True), "--out", out]
    flags += ["--steps", STEPS, "--save-every", 1, "--log-every", 1, *small, *more]
    return [str(flag) for flag in flags]


def start(tree: Path, command: list[str], ranks: int = 1) -> subprocess.Popen[str]:
    """A stage of the copied tree."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *(launcher if ranks > 1 else []), *command],
        cwd=tree,
        env=environment() | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(tree: Path, command: list[str], ranks: int = 1) -> str:
    process = start(tree, command, ranks)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


FILES = [CONTRACT, pytest.param(ON_A_DEVICE, marks=pytest.mark.slow)]


@pytest.mark.parametrize("files", FILES, ids=["cpu", "fake cuda"])
def test_the_contract_holds(tree: Path, files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x"]
    command += ["-m", "not slow", "-k", "trial_ or top_pool", *(f"tests/{n}" for n in files)]
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment() | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > len([*TRIALS, EXAMPLE])


@pytest.mark.slow
def test_the_contract_holds_on_two_ranks(tree: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_ranks.py",
    ]
    done = subprocess.run(
        [*command, "-k", "change_nothing and 2-trial_"],
        cwd=tree,
        env=environment() | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(TRIALS)} passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_all_four_stages(tree: Path, data: Path, weights: Path, tmp_path: Path, name: str) -> None:
    """Killed and resumed, on two ranks, and on to masks and their score."""
    finished(tree, train(name, data, tmp_path / "run", weights))
    killed = start(tree, train(name, data, tmp_path / "killed", weights))
    log = tmp_path / "killed" / "log.jsonl"
    while killed.poll() is None and not (log.exists() and '"step": 2' in log.read_text()):
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    finished(tree, train(name, data, tmp_path / "killed", weights))
    whole, resumed = (tmp_path / run / "checkpoint.pth" for run in ("run", "killed"))
    assert whole.read_bytes() == resumed.read_bytes()

    finished(tree, train(name, data, tmp_path / "ranks", weights), ranks=2)
    one, two = (
        torch.load(out / "checkpoint.pth", weights_only=True)["model"]
        for out in (tmp_path / "run", tmp_path / "ranks")
    )
    for key, value in one.items():
        difference = (value.double() - two[key].double()).abs().max()
        assert difference <= 1e-3 * value.double().abs().max() + 1e-6, key

    base = [str(flag) for flag in given(name, data, training=False)]
    infer = ["infer_cam.py", "--checkpoint", str(whole), *base, "--device", "cpu"]
    cams = tmp_path / "cam"
    finished(tree, [*infer, "--num-workers", "0", "--out", str(cams)])
    folders = [cams, *([cams / "squared"] if name == "trial_bank" else [])]
    for folder in folders:
        assert len(list(folder.glob("*.npy"))) == 8
    if name == "trial_bank":  # a restart sees that one of the two maps is gone
        (cams / "squared" / "a1.npy").unlink()
        assert "7 of 8 images are done" in finished(tree, [*infer, "--out", str(cams)])
        assert (cams / "squared" / "a1.npy").is_file()
        notes = [json.loads((f / "made_from.json").read_text()).get("map") for f in folders]
        assert notes == [None, "squared"], "two maps, two origins"
    gated = [*infer, "--num-workers", "0", "--gate", "nroi", "--out", str(tmp_path / "gated")]
    if name == "trial_segment":  # it infers without labels
        process = start(tree, gated)
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "needs image labels" in text
    else:
        finished(tree, gated)
        assert len(list((tmp_path / "gated").glob("*.npy"))) == 8
    rows = load_cam(cams / "a1.npy")
    assert (0 in rows.class_index) == (name in ("trial_segment", "trial_teacher"))
    scored = [*base[: base.index("train") + 1]]  # of the segmentation network still without labels
    finished(
        tree,
        ["crf_postprocess.py", "--cam-dir", str(cams), *scored, "--out", str(tmp_path / "mask")],
    )
    note = json.loads((tmp_path / "mask" / "crf.json").read_text())
    assert ("threshold" in note) == (name == "trial_segment"), "the method's own post-processing"
    if name == "trial_walk":
        assert note["alpha"] == 4.0
    scores = tmp_path / "miou.json"
    finished(
        tree, ["eval_miou.py", "--pred-dir", str(tmp_path / "mask"), *scored, "--json", str(scores)]
    )
    assert 0 <= json.loads(scores.read_text())["miou"] <= 100
    shown = ["-m", "network.predict", str(data / "images" / "a1.jpg"), "--checkpoint", str(whole)]
    shown += ["--out", str(tmp_path / "shown.png"), "--classes", "disc", "--device", "cpu"]
    if name == "trial_walk":
        shown += ["--cam-dir", str(data.parent / "cam")]
    if name == "trial_teacher":  # its scores depend on the label
        place = shown.index("--classes")
        process = start(tree, shown[:place] + shown[place + 2 :])
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "pass --classes" in text
    finished(tree, shown)
    assert (tmp_path / "shown.png").is_file()


def test_the_example_of_the_readme_trains_and_infers(tree, data, weights, tmp_path) -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 24
    finished(tree, train(EXAMPLE, data, tmp_path / "run", weights, "--top", 8))
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["method_config"] == {"top": 8}
    infer = ["infer_cam.py", "--checkpoint", str(tmp_path / "run" / "checkpoint.pth")]
    infer += [str(flag) for flag in given(EXAMPLE, data, training=False)]
    finished(
        tree, [*infer, "--device", "cpu", "--num-workers", "0", "--out", str(tmp_path / "cam")]
    )
    assert len(list((tmp_path / "cam").glob("*.npy"))) == 8


@pytest.mark.slow
def test_flags_of_all_kinds(tree: Path, data: Path, weights: Path, tmp_path: Path) -> None:
    """A bool, choices, a plain field; what the recipes say of the flags."""
    more = ["--no-balanced", "--pool", "max", "--side", 16]
    finished(tree, train("trial_bank", data, tmp_path / "run", weights, *more))
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["method_config"] == {"side": 16, "balanced": False, "pool": "max"}
    assert config["clip"] == 1.0
    process = start(tree, train("trial_bank", data, tmp_path / "no", weights, "--pool", "min"))
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "invalid choice: 'min'" in text
    finished(tree, train("trial_segment", data, tmp_path / "masks", weights, "--mask-dir", "truth"))
    config = json.loads((tmp_path / "masks" / "config.json").read_text())["config"]
    assert config["masks"] == "truth"
    assert config["accumulate"] == 2
    assert config["scale"] == [0.5, 1.0, 1.5]
