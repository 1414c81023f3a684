"""The benchmarks run, print what they promise, and count and time rightly."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from method_cases import METHODS, MIXED, make_batch, make_method
from runs import Result, assert_refused, run
from torch import nn
from untrained import untrained

from benchmarks import apart, arithmetic, timing
from benchmarks.arithmetic import Call, backbone_flops, flops_of, peak_tflops, share_of_peak
from benchmarks.classify import average_precision, scores
from benchmarks.mechanism import area_under_curve
from network import maps
from network.backbones import build_backbone
from network.dropout import SeededDropout
from tool.progress import Progress
from tool.train.engine import total_loss

CPU = torch.device("cpu")
TAPS = ("low", "mid", "high")
SLIM = ["--backbone", "resnet38d_slim", "--output-stride", 8, "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> Iterator[None]:
    """`benchmarks.crf` sets the number of threads: the fixture puts it back."""
    return one_thread


class Convolution(nn.Module):
    """One convolution, called as a backbone is."""

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs, device="meta")

    def forward(self, image: torch.Tensor, taps: tuple[str, ...]) -> dict[str, torch.Tensor]:
        return {name: self.conv(image) for name in taps}


def milliseconds(result: Result) -> dict[str, float]:
    """The rows `NAME  1.23 ms` of a report."""
    rows = re.findall(r"^ +(\S.*?) +([\d.]+) ms$", result.stdout, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_the_operations_of_a_convolution() -> None:
    conv = Convolution(6, 10, 3, padding=1, bias=False)
    forward, backward = flops_of(conv, Call((2, 6, 8, 5), ("high",)), backward=True)
    assert forward == 2 * 2 * 8 * 5 * 10 * 6 * 9
    assert backward == forward  # of the weight alone: the image has no gradient


def test_the_operations_of_a_depthwise_convolution() -> None:
    conv = Convolution(6, 6, 3, padding=1, groups=6)
    forward, backward = flops_of(conv, Call((2, 6, 8, 5), ("high",)), backward=True)
    assert forward == backward == 2 * 2 * 8 * 5 * 6 * 9


def test_the_operations_of_the_real_backbone() -> None:
    """The field's 811 GFLOP at 448 px have FBR's heads in them, 13 GFLOP."""
    with torch.device("meta"):
        backbone = build_backbone("resnet38d")
    forward, backward = backbone_flops(backbone, [Call((1, 3, 448, 448), TAPS)])
    assert forward == pytest.approx(811e9, rel=0.02)
    assert backward == pytest.approx(2 * forward, rel=0.02)


def test_what_is_frozen_needs_no_backward() -> None:
    frozen, free = build_backbone("resnet38d_slim"), build_backbone("resnet38d_slim")
    frozen.freeze()
    calls = [Call((1, 3, 64, 64), TAPS)]
    assert backbone_flops(frozen, calls)[0] == backbone_flops(free, calls)[0]
    assert backbone_flops(frozen, calls)[1] < 0.95 * backbone_flops(free, calls)[1]
    assert backbone_flops(frozen, calls, backward=False)[1] == 0


def test_the_share_of_the_peak(monkeypatch) -> None:
    assert "share of peak: 40.0% of 50 TFLOP/s" in share_of_peak(2e12, 100.0, 50.0)
    assert "20 TFLOP/s; share of peak: give --peak-tflops" in share_of_peak(2e12, 100.0, None)
    assert peak_tflops(CPU, None) is None
    assert peak_tflops(CPU, 3.0) == 3.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_tflops(torch.device("cuda"), None) == arithmetic.PEAK_TFLOPS["H100"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some other card")
    assert peak_tflops(torch.device("cuda"), None) is None


def test_exclusive_times_sum_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # a clock of the test's own: a busy machine would add to a real one
    monkeypatch.setattr(timing, "clock", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    timer = timing.Timer()
    for _ in range(2):
        with timer.part("outer"):
            wait(0.25)
            for _ in range(2):
                with timer.part("inner"), timer.part("innermost"):
                    wait(0.5)
        timer.end_lap()
    assert [sum(lap.values()) for lap in timer.laps] == [1250, 1250]
    assert timer.medians() == {"innermost": 1000, "inner": 0, "outer": 250}
    assert list(timer.medians()) == ["innermost", "inner", "outer"]


def test_functions_are_timed_where_they_were_imported_and_put_back() -> None:
    before = [vars(module).copy() for module in (maps, *apart.LIBRARIES)]
    timer = timing.Timer()
    with timing.timed_functions(timer, [], apart.LIBRARIES):
        from network.heads import resize

        resize(torch.rand(1, 1, 4, 4), (2, 2))
        assert maps.resize is not before[0]["resize"]
    timer.end_lap()
    assert list(timer.medians()) == ["maps.resize"]
    assert [vars(module) for module in (maps, *apart.LIBRARIES)] == before


@pytest.mark.parametrize("name", METHODS)
def test_a_step_apart_has_the_gradients_of_a_whole_one(name) -> None:
    method, other = make_method(name).train(), make_method(name).train()
    for module in (*method.modules(), *other.modules()):
        if isinstance(module, SeededDropout):  # its draws go by its name, which `Detached` changes
            module.probability = 0.0
    batch, progress = make_batch(MIXED), Progress(step=0, steps=10)
    whole = other.before_losses(batch, progress)
    total_loss(other(whole, progress), other.weights()).backward()
    parts = apart.Detached(method.backbone, timing.Timer())
    method.backbone = parts
    optimizer = torch.optim.SGD(method.parameters(), lr=0.0)
    bench = apart.Bench(method, optimizer, iter([batch]), dict, CPU, amp=False, repeats=1)
    apart.one_step(bench, parts, progress)
    method.backbone = parts.backbone
    for (key, ours), theirs in zip(method.named_parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None:
            assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6), key


def test_train_step(folder_root: Path) -> None:
    flags = ["--dataset", "folder", "--root", folder_root, "--crop", 64, "--batch-size", 2]
    result = run("benchmarks/train_step.py", *flags, *SLIM, "--repeats", 1, "--peak-tflops", 0.5)
    assert result.returncode == 0, result.stderr
    rows = milliseconds(result)
    parts = ["load", "finish", "backbone forward", "backbone backward", "optimizer", "bank"]
    functions = ["losses.saliency_match", "info_nce.info_nce", "nroi.kmeans", "the method itself"]
    functions += ["pixel_correlation.PixelCorrelation.forward"]
    functions += ["prototypes.prototype_cross_entropy"]
    terms = list(make_method("fbr").weights())
    assert {*parts, *functions, *terms} <= set(rows)
    inside = sum(value for name, value in rows.items() if re.match(r"\w+\.|the method", name))
    assert inside == pytest.approx(rows["heads and terms forward"], abs=0.5)
    for words in ("step, without load: median", "images/s", "peak process memory", "GFLOP forward"):
        assert words in result.stdout
    assert len(re.findall(r"share of peak: [\d.]+% of 0.5 TFLOP/s", result.stdout)) == 2


def test_compiling_needs_a_compiler(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_refused(run("benchmarks/train_step.py", "--compile"), "--compile", "compiler")


def test_infer_cam_on_a_dataset_and_on_noise(folder_root: Path) -> None:
    flags = [*SLIM, "--scales", 0.5, 1, "--batch-size", 1, 2]
    result = run(
        "benchmarks/infer_cam.py",
        *flags,
        "--dataset",
        "folder",
        "--root",
        folder_root,
        "--images",
        3,
    )
    assert result.returncode == 0, result.stderr
    assert "decoding and resizing" in result.stdout
    rows = r"^\| [12] \| [\d.]+ \| [\d.]+ \| [\d.]+ TFLOP/s; share of peak: give --peak-tflops \|$"
    assert len(re.findall(rows, result.stdout, re.MULTILINE)) == 2
    noise = run("benchmarks/infer_cam.py", *flags, "--size", 32, 40, "--images", 4)
    assert len(re.findall(rows, noise.stdout, re.MULTILINE)) == 2
    assert "| 2 | 2.0 |" in noise.stdout


def test_infer_cam_reports_memory() -> None:
    flags = ["--memory", 20, "--scales", 1, "--batch-size", 2, "--num-workers", 1]
    result = run("benchmarks/infer_cam.py", *flags, *SLIM)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| \d+ \|$", result.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(2, 21, 2))
    assert all(float(row[1]) > 50 for row in rows)
    assert float(rows[0][2]) > 50
    assert re.search(r"from image 4 to image 20: this process [+-][\d.]+ MiB", result.stdout)


def test_gate_reports_time_and_memory() -> None:
    flags = ["--size", 32, 40, "--images", 3, "--scales", 1, "--bank", 4]
    result = run("benchmarks/gate.py", *flags, *SLIM)
    assert result.returncode == 0, result.stderr
    assert "3 images" in result.stdout
    assert "32 NROIs" in result.stdout, "8 per image of the bank"
    rows = re.findall(r"^\| (.+) \| (\d+ \| ){3}[+-][\d.]+ \|$", result.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["without the gate", "with the gate", "first pass"]
    assert "a list of 10582" in result.stdout
    memory = run("benchmarks/gate.py", "--memory", 20, "--width", 16, "--bank", 4, "--classes", 80)
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| \d+ \|$", memory.stdout, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(2, 21, 2))
    assert all(float(row[1]) > 50 for row in rows)


def test_contrast_takes_several_numbers_of_classes() -> None:
    flags = ["--cells", 4, "--batch-size", 2, "--repeats", 1, "--classes", 3, 5]
    amn = run("benchmarks/contrast.py", *flags, "--method", "fbr_amn")
    assert "contrast step of fbr_amn" in amn.stdout, amn.stderr
    result = run("benchmarks/contrast.py", *flags)
    assert re.findall(r"(\d) classes, cpu, 1 threads: median", result.stdout) == ["3", "5"]


def test_crf_takes_sizes_and_several_numbers_of_labels() -> None:
    flags = ["--size", 12, 16, "--labels", 2, 3, "--presets", "psa80"]
    result = run("benchmarks/crf.py", *flags)
    assert "1 images of 12x16" in result.stdout
    assert re.findall(r"^\| psa80 \| (\d) \|", result.stdout, re.MULTILINE) == ["2", "3"]


def test_sweep_equals_separate_evaluations() -> None:
    result = run("benchmarks/sweep.py", "--files", 2, "--separate", 1)
    assert "100 thresholds in one pass" in result.stdout
    assert "bit for bit: True" in result.stdout


def test_average_precision_of_hand_made_scores() -> None:
    score, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0, 1, 0])
    assert average_precision(score, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(score, 1 - truth) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_classification_counts_only_classes_of_the_list() -> None:
    label = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    right = torch.tensor([[0.9, 0.1, 0.5], [0.1, 0.9, 0.5]])
    found = scores(right, label)
    assert found["map"] == 100
    assert found["loss"] == pytest.approx(-math.log(0.9), rel=1e-5)
    assert scores(1 - right, label)["map"] == 50


def test_classify_prints_a_row_per_checkpoint(folder_root: Path, tmp_path: Path) -> None:
    data = ["--dataset", "folder", "--root", folder_root]
    trained = run(
        "train_fbr.py",
        "--method",
        "cam",
        *data,
        *SLIM,
        "--weights",
        "none",
        "--steps",
        1,
        "--crop",
        64,
        "--batch-size",
        2,
        "--out",
        tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    checkpoint = tmp_path / "checkpoint.pth"
    result = run("benchmarks/classify.py", *data, "--list", "val", "--checkpoint", checkpoint)
    assert result.stdout.count(f"| {checkpoint} |") == 1, result.stderr


def test_the_area_under_the_curve_counts_pairs() -> None:
    score = np.array([0.1, 0.4, 0.4, 0.8, 0.9])
    truth = np.array([False, True, False, True, False])
    pairs = [(p, n) for p in score[truth] for n in score[~truth]]
    expected = sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)
    assert area_under_curve(score, truth) == pytest.approx(expected)
    assert math.isnan(area_under_curve(score, np.ones(5, bool)))


def test_mechanism_prints_shares_and_areas_of_fbr(folder_root: Path, tmp_path: Path) -> None:
    data = ["--dataset", "folder", "--root", folder_root]
    flags = [*SLIM, "--weights", "none", "--steps", 2, "--crop", 64, "--batch-size", 2]
    trained = run("train_fbr.py", "--method", "fbr", *data, *flags, "--out", tmp_path)
    assert trained.returncode == 0, trained.stderr
    figures = tmp_path / "figures.json"
    flags = ["--checkpoint", tmp_path / "checkpoint.pth", "--batches", 2, "--json", figures]
    result = run("benchmarks/mechanism.py", *data, *flags)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert {"pseudo", "queries", "prototype, f", "NROI, Z_fg", "gate, f"} <= set(found)
    assert all(0 <= v <= 1 for v in found.values() if isinstance(v, float))
    # The same checkpoint: how its terms share a step.
    result = run("benchmarks/gradients.py", *data, *flags)
    assert result.returncode == 0, result.stderr
    (found,) = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert {"cls", "sal", "er", "bg_seg", "sum"} <= set(found["terms"])
    assert not {"sal_refined", "ecr", "bg_sim"} & set(found["terms"]), "they train no backbone"
    value, whole, cosine = found["terms"].pop("sum")
    assert cosine == pytest.approx(1, abs=1e-3)
    assert 0 < whole <= sum(length for _, length, _ in found["terms"].values()) + 1e-3
    assert value > found["terms"]["cls"][0] + found["terms"]["sal"][0] > 0, "their weights are 1"


def test_calibration_shows_what_sfc_makes_of_a_cam(folder_root: Path, tmp_path: Path) -> None:
    data = ["--dataset", "folder", "--root", folder_root]
    flags = [*SLIM, "--weights", "none", "--steps", 2, "--crop", 64, "--batch-size", 2]
    trained = run("train_fbr.py", "--method", "sfc", *data, *flags, "--out", tmp_path)
    assert trained.returncode == 0, trained.stderr
    figures = tmp_path / "figures.json"
    flags = ["--checkpoint", tmp_path / "checkpoint.pth", "--batches", 2, "--json", figures]
    result = run("benchmarks/calibration.py", *data, *flags)
    assert result.returncode == 0, result.stderr
    rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert [row["map"] for row in rows][::3] == ["CAM", "prototypes"]
    assert len({row["truth"] for row in rows}) == 1
    assert all(0 <= row["miou"] <= 100 and 0 <= row["area"] <= 1 for row in rows)
    assert_refused(run("benchmarks/mechanism.py", *data, *flags), "is of sfc: give checkpoints of")


def test_predict_times_masks_alone_and_together(folder_root: Path, tmp_path: Path) -> None:
    checkpoint = untrained("cam", folder_root, tmp_path / "checkpoint.pth")
    images, figures = sorted((folder_root / "images").iterdir())[:4], tmp_path / "figures.json"
    flags = ["--checkpoint", checkpoint, "--repeats", 1, "--device", "cpu", "--json", figures]
    result = run("benchmarks/predict.py", *images, *flags)
    assert result.returncode == 0, result.stderr
    rows = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    assert [found["photographs"] for found in rows] == [1, 4, 4, 4]
    assert all(
        found["seconds"] == pytest.approx(found["each"] * found["photographs"]) for found in rows
    )
    assert all(found["seconds"] > 0 for found in rows)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads Linux's /proc")
def test_the_soak_looks_at_every_quarter_of_three_stages(tmp_path: Path) -> None:
    found = tmp_path / "soak.json"
    result = run("benchmarks/soak.py", "--count", 40, "--workers", 1, "--json", found)
    assert result.returncode == 0, result.stderr
    rows = json.loads(found.read_text())["rows"]
    assert [row["stage"] for row in rows] == ["infer"] * 4 + ["crf"] * 4 + ["score"] * 4
    assert all(row["memory_mib"] > 0 and 0 < row["open_files"] < 100 for row in rows)
