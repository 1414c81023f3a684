"""A classifier of others: where its background is follows from its rows, its file or the user."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Result, assert_refused, run

from network.backbones import build_backbone
from network.methods import Method, build_method
from network.weights.channel_order import background_place, our_classifier
from network.weights.initialise import initialise
from network.weights.restore import restore

SLIM = "resnet38d_slim"
CLASSES = ("disc", "square", "sky lark")  # of the folder dataset
K = len(CLASSES)


def foreign(rows: int, path: Path, *, fbr: bool = False, name: str = "fc8.weight") -> Path:
    """A state dict of others at `path`; row i of its classifier holds i."""
    net = build_backbone(SLIM)
    values = torch.arange(float(rows))[:, None, None, None].expand(rows, 512, 1, 1)
    state = net.net.state_dict() | {name: values.clone()}
    if fbr:
        heads = {"proj_fg.weight": (128, 512), "proj_bg.weight": (128, 512)}
        for head, shape in (heads | {"bg_classifier.weight": (1, 128)}).items():
            state[head] = torch.ones(*shape, 1, 1)
    torch.save(state, path)
    return path


def started(method: str, path: Path, background: str | None = None) -> tuple[Method, str]:
    config = {"method": method, "backbone": SLIM, "output_stride": 8, "num_classes": K}
    made = build_method(config | {"pretrained": True, "method_config": {}})
    return made, initialise(made, path, class_names=CLASSES, background=background)


def rows_of(method: Method) -> list[float]:
    return method.classifier.weight[:, 0, 0, 0].tolist()


# rows, FBR's heads, --background -> place; None: refused
RULES = [
    (K, False, None, "none"),
    (K, True, None, "none"),
    (K, False, "none", "none"),
    (K, False, "first", None),
    (K, False, "last", None),
    (K + 1, True, None, "last"),
    (K + 1, True, "first", "first"),
    (K + 1, False, None, None),
    (K + 1, False, "first", "first"),
    (K + 1, False, "last", "last"),
    (K + 1, False, "none", None),
    (K + 2, True, None, None),
    (K - 1, False, "none", None),
]
OURS = {"none": [0, 1, 2], "first": [0, 1, 2, 3], "last": [3, 0, 1, 2]}  # background in front


@pytest.mark.parametrize(("rows", "fbr", "said", "place"), RULES)
def test_the_place_of_the_background(rows: int, fbr: bool, said: str, place: str) -> None:
    names = ["proj_fg.weight", "proj_bg.weight", "bg_classifier.weight"] if fbr else ["fc8.weight"]

    def decide() -> tuple[str, str]:
        return background_place(rows, K, background=said, names=names, what="w.pth")

    if place is None:
        with pytest.raises(ValueError, match=rf"w\.pth has .*{rows} maps"):
            decide()
    else:
        decided, line = decide()
        assert decided == place
        assert f"w.pth: its {rows} maps" in line
        assert ("without background" if place == "none" else f"background, {place}") in line


@pytest.mark.parametrize("place", list(OURS))
@pytest.mark.parametrize("background", [False, True])
def test_our_classifier_takes_the_classes_in_order(place: str, background: bool) -> None:
    theirs = torch.arange(float(len(OURS[place])))[:, None]
    own = torch.full((K + background, 1), -1.0)
    expected = OURS[place][-K:]
    if background:
        expected = [-1 if place == "none" else OURS[place][0], *expected]
    assert our_classifier(theirs, own, place)[:, 0].tolist() == expected


@pytest.mark.parametrize("name", ["fc8.weight", "classifier.weight"])
@pytest.mark.parametrize("method", ["cam", "eps"])
@pytest.mark.parametrize("said", ["none", "first", "last"])
def test_init_starts_each_class_from_its_own_row(name, method, said, tmp_path) -> None:
    path = foreign(K + (said != "none"), tmp_path / "w.pth", name=name)
    made, line = started(method, path, said)
    assert "classifier 1 of 1" in line
    assert rows_of(made)[-K:] == OURS[said][-K:]
    kept = said == "none" and method == "eps"
    assert ("the background's map keeps its initial weights" in line) == kept
    if method == "eps" and not kept:
        assert rows_of(made)[0] == OURS[said][0]
    if kept:
        own, _ = started("eps", foreign(K + 5, tmp_path / "other.pth"))
        assert torch.equal(made.classifier.weight[0], own.classifier.weight[0])


def test_init_leaves_a_classifier_of_other_classes_and_says_so(tmp_path) -> None:
    made, line = started("cam", foreign(20, tmp_path / "w.pth"))
    assert "classifier 0 of 1" in line
    assert "its classifier of 20 maps is left out: this run has 3 classes" in line
    assert rows_of(made)[:2] != [0.0, 1.0]


def test_init_refuses_what_is_ambiguous_or_contradicts(tmp_path) -> None:
    path = foreign(K + 1, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"--background first .* or last"):
        started("cam", path)
    with pytest.raises(ValueError, match=r"--background none: w\.pth has 4 maps"):
        started("cam", path, "none")
    ours, _ = started("cam", path, "first")
    torch.save({"model": ours.state_dict()}, tmp_path / "ours.pth")
    with pytest.raises(ValueError, match=r"ours\.pth is ours"):
        started("cam", tmp_path / "ours.pth", "first")
    torch.save(build_backbone(SLIM).net.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(ValueError, match=r"bare\.pth has no classifier"):
        started("cam", tmp_path / "bare.pth", "first")


@pytest.mark.parametrize(
    ("method", "rows", "fbr", "said", "expected"),
    [
        ("cam", K, False, None, [0, 1, 2]),
        ("cam", K + 1, False, "first", [1, 2, 3]),
        ("cam", K + 1, False, "last", [0, 1, 2]),
        ("cam", K + 1, True, None, [0, 1, 2]),
        ("eps", K + 1, True, None, [3, 0, 1, 2]),
        ("eps", K + 1, False, "first", [0, 1, 2, 3]),
        ("fbr", K + 1, False, "last", [3, 0, 1, 2]),
    ],
)
def test_restore_puts_the_rows_in_our_order(method, rows, fbr, said, expected, tmp_path) -> None:
    path, lines = foreign(rows, tmp_path / "w.pth", fbr=fbr), []
    made, _ = restore(
        path,
        method=method,
        backbone=SLIM,
        class_names=CLASSES,
        background=said,
        report=lines.append,
    )
    assert rows_of(made) == expected
    (line,) = lines
    assert re.match(rf"w\.pth: its {rows} maps", line)


def test_restore_finds_a_wrapped_file(tmp_path) -> None:
    path = foreign(K, tmp_path / "w.pth")
    plain = torch.load(path, weights_only=True)
    options = {
        "method": "cam",
        "backbone": SLIM,
        "class_names": CLASSES,
        "report": lambda line: None,
    }
    expected = restore(path, **options)[0].state_dict()
    torch.save({"net": {f"module.{n}": t for n, t in plain.items()}, "best": np.float64(1)}, path)
    own = restore(path, **options)[0].state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())
    torch.save({"a": {"fc8.weight": plain.pop("fc8.weight")}, "b": plain}, path)
    with pytest.raises(ValueError, match=r"w\.pth does not fit .*classifier\.weight"):
        restore(path, **options)


def infer(path: Path, root: Path, out: Path, *flags: object) -> Result:
    base = ["--checkpoint", path, "--dataset", "folder", "--root", root, "--list", "val"]
    base += ["--backbone", SLIM, "--scales", 0.5, "--num-workers", 0, "--device", "cpu"]
    return run("infer_cam.py", *base, "--out", out, *flags)


def test_infer_cam_says_what_it_assumed_and_refuses_what_is_open(folder_root, tmp_path) -> None:
    path, out = foreign(K, tmp_path / "w.pth"), tmp_path / "cam"
    result = infer(path, folder_root, out, "--method", "cam")
    assert result.returncode == 0, result.stderr
    assert "w.pth: its 3 maps are the classes, without background\n" in result.stdout
    refused = infer(path, folder_root, tmp_path / "e", "--method", "eps")
    assert_refused(refused, "w.pth", "this method needs a map of the background")
    assert_refused(infer(path, folder_root, tmp_path / "e", "--method", "amn"), "one layer")
    foreign(K + 1, path)
    assert_refused(infer(path, folder_root, out, "--method", "eps"), "--background first")
    eps = ["--method", "eps", "--background"]
    assert infer(path, folder_root, tmp_path / "eps", *eps, "first").returncode == 0
    other = infer(path, folder_root, tmp_path / "eps", *eps, "last")
    assert_refused(other, "another background")  # two orders never share a folder
    foreign(K + 2, path)
    assert_refused(infer(path, folder_root, tmp_path / "f", *eps, "last"), "5 maps", "3 classes")


def test_infer_cam_of_our_own_file_takes_no_background(folder_root, tmp_path) -> None:
    made, _ = started("cam", foreign(K, tmp_path / "w.pth"))
    config = {"method": "cam", "backbone": SLIM, "output_stride": 8, "num_classes": K}
    config |= {"class_names": list(CLASSES), "pretrained": True, "method_config": {}}
    content = {"method": "cam", "config": config, "model": made.state_dict(), "step": 1}
    torch.save(content, tmp_path / "ours.pth")
    assert infer(tmp_path / "ours.pth", folder_root, tmp_path / "a").returncode == 0
    refused = infer(tmp_path / "ours.pth", folder_root, tmp_path / "b", "--background", "first")
    assert_refused(refused, "--background first", "ours.pth is ours")


def training(root: Path, out: Path, *flags: object) -> Result:
    base = ["--method", "cam", "--dataset", "folder", "--root", root, "--list", "train"]
    base += ["--steps", 1, "--batch-size", 1, "--crop", 32, "--long-side", 32, 32]
    base += ["--backbone", SLIM, "--num-workers", 0, "--device", "cpu", "--picture-every", 0]
    return run("train_fbr.py", *base, "--out", out, *flags)


def test_the_flag_of_training_is_part_of_the_run(folder_root, tmp_path) -> None:
    path = foreign(K + 1, tmp_path / "w.pth")
    assert_refused(training(folder_root, tmp_path / "a", "--background", "first"), "--init")
    assert_refused(training(folder_root, tmp_path / "a", "--init", path), "--background first")
    done = training(folder_root, tmp_path / "a", "--init", path, "--background", "first")
    assert done.returncode == 0, done.stderr
    assert "the background, first, as --background says" in done.stdout
    other = training(folder_root, tmp_path / "a", "--init", path, "--background", "last")
    assert_refused(other, "init_background")
