"""Stage 4 as a program: numbers, JSON, curve, and what it says to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eval_miou
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import load_mask, save_mask

ROOT = Path(__file__).resolve().parent.parent
CLASSES = ("disc", "square", "sky lark")


def ids_of(root: Path) -> list[str]:
    return (root / "lists" / "train.txt").read_text().split("\n")[:-1]


def truth_of(root: Path, image_id: str) -> np.ndarray:
    return load_mask(root / "masks" / f"{image_id}.png")


def write_masks(root: Path, folder: Path) -> Path:
    """Predictions that are the truth, shifted by three pixels."""
    for image_id in ids_of(root):
        save_mask(folder / f"{image_id}.png", np.roll(truth_of(root, image_id), 3, 1))
    return folder


def cam_of(root: Path, image_id: str) -> Cam:
    """A CAM whose score falls off with the distance to its object, stored as float16."""
    truth = truth_of(root, image_id)
    index = np.unique(truth[truth > 0])
    rng = np.random.default_rng(len(image_id))
    maps = [(truth == value) * 0.5 + rng.random(truth.shape) * 0.5 for value in index]
    stacked = np.stack(maps) if maps else np.zeros((0, *truth.shape))
    return Cam(index, stacked.astype(np.float16).astype(np.float32))


def write_cams(root: Path, folder: Path) -> Path:
    for image_id in ids_of(root):
        save_cam(folder / f"{image_id}.npy", cam_of(root, image_id))
    return folder


def run(root: Path, predictions: Path, *more: object) -> dict:
    """The JSON document of one run."""
    target = root.parent / "result" / "miou.json"
    flags = ["--dataset", "folder", "--root", root, "--pred-dir", predictions, "--json", target]
    eval_miou.main([str(flag) for flag in (*flags, *more)])
    return json.loads(target.read_text())


def test_masks(folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    document = run(folder_dataset, write_masks(folder_dataset, tmp_path / "mask"))
    hit = predicted = true = np.zeros(4, np.int64)
    for image_id in ids_of(folder_dataset):
        truth = truth_of(folder_dataset, image_id)
        mask = np.roll(truth, 3, 1)
        hit = hit + np.array([((truth == k) & (mask == k)).sum() for k in range(4)])
        predicted = predicted + np.bincount(mask.ravel(), minlength=4)
        true = true + np.bincount(truth.ravel(), minlength=4)
    iou = 100 * hit / (predicted + true - hit)
    names = ["background", *CLASSES]
    assert list(document["iou"]) == names
    assert list(document["iou"].values()) == pytest.approx(iou.tolist())
    assert list(document["precision"].values()) == pytest.approx((100 * hit / predicted).tolist())
    assert list(document["recall"].values()) == pytest.approx((100 * hit / true).tolist())
    assert document["miou"] == pytest.approx(iou.mean())
    assert document["images"] == 8
    assert "sweep" not in document
    table = capsys.readouterr().out
    assert all(name in table for name in names)
    assert f"{document['miou']:.2f}" in table


def test_the_protocol_says_what_was_scored(folder_dataset: Path, tmp_path: Path) -> None:
    masks = write_masks(folder_dataset, tmp_path / "mask")
    protocol = run(folder_dataset, masks, "--list", "val")["protocol"]
    assert protocol["dataset"] == "folder"
    assert protocol["list"] == "val"
    assert protocol["images"] == 3
    assert protocol["kind"] == "mask"
    assert protocol["bg_threshold"] is None
    assert protocol["pred_255"] == "background"
    cams = run(folder_dataset, write_cams(folder_dataset, tmp_path / "cam"))["protocol"]
    assert cams["kind"] == "cam"
    assert cams["bg_threshold"] == 0.22
    assert "0.22" in cams["threshold"]
    assert cams["list_sha256"] != protocol["list_sha256"]


def test_classes_of_neither_side_are_left_out(folder_dataset: Path, tmp_path: Path) -> None:
    lists = folder_dataset / "lists"
    (lists / "few.txt").write_text("a1\nempty\n")
    document = run(folder_dataset, write_masks(folder_dataset, tmp_path), "--list", "few")
    left_out = {"count": 2, "names": ["square", "sky lark"]}
    assert document["protocol"]["classes_left_out"] == left_out
    assert document["protocol"]["classes_in_mean"] == 2
    assert document["iou"]["square"] is None
    there = [document["iou"]["background"], document["iou"]["disc"]]
    assert document["miou"] == pytest.approx(sum(there) / 2)


def test_ground_truth_255_is_not_scored(folder_dataset: Path, tmp_path: Path) -> None:
    masks = write_masks(folder_dataset, tmp_path)
    for image_id in ids_of(folder_dataset):
        truth = truth_of(folder_dataset, image_id)
        truth[np.roll(truth, 3, 1) != truth] = 255
        save_mask(folder_dataset / "masks" / f"{image_id}.png", truth)
    assert run(folder_dataset, masks)["miou"] == 100


def test_cams_and_the_sweep(
    folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cams = write_cams(folder_dataset, tmp_path / "cam")
    document = run(folder_dataset, cams, "--sweep")
    assert "oracle: chosen on ground truth" in capsys.readouterr().out
    thresholds, curve = zip(*document["sweep"], strict=True)
    assert list(thresholds) == [i / 100 for i in range(100)]
    assert document["oracle"] == [thresholds[curve.index(max(curve))], max(curve)]
    assert document["miou"] == curve[22]
    assert len(set(curve)) > 50
    with Image.open(tmp_path / "result" / "miou.png") as picture:
        assert picture.size[0] > 300
    for index in (0, 47, 99):
        single = run(folder_dataset, cams, "--bg-threshold", index / 100)
        assert single["miou"] == curve[index]
        assert "sweep" not in single


def write_pickled(path: Path, content: object) -> None:
    array = np.empty((), object)
    array[()] = content
    path.parent.mkdir(exist_ok=True)
    np.save(path, array, allow_pickle=True)


def write_layout(root: Path, folder: Path, layout: str) -> Path:
    for image_id in ids_of(root):
        cam = cam_of(root, image_id)
        keys = cam.class_index.astype(int) - 1
        if layout == "CAM-A":
            content = {"keys": keys, "cam": cam.cam, "high_res": cam.cam}
        elif layout == "CAM-B":
            content = dict(zip(keys.tolist(), cam.cam, strict=True))
        else:
            ground = np.full((1, *cam.size), 0.22, np.float32)
            content = {"keys": np.append(0, keys + 1), "IS_CAM": np.append(ground, cam.cam, 0)}
        write_pickled(folder / f"{image_id}.npy", content)
    return folder


@pytest.mark.parametrize("layout", ["CAM-A", "CAM-B", "CAM-C"])
def test_layouts_of_the_field(folder_dataset: Path, tmp_path: Path, layout: str) -> None:
    """CAM-C has a background row of 0.22, so that its scores are the same at every threshold."""
    native = run(folder_dataset, write_cams(folder_dataset, tmp_path / "cam"), "--sweep")
    document = run(
        folder_dataset, write_layout(folder_dataset, tmp_path / layout, layout), "--sweep"
    )
    assert document["miou"] == native["miou"]
    rows = document["protocol"]["cams_with_background_row"]
    if layout == "CAM-C":
        assert "sweep" not in document
        assert "oracle" not in document
        assert document["protocol"]["bg_threshold"] is None
        assert document["protocol"]["threshold"].startswith("no threshold: ")
        assert rows == 8
    else:
        assert document["sweep"] == native["sweep"]
        assert rows == 0


def test_a_background_row_among_others_is_in_the_rule(folder_dataset: Path, tmp_path: Path) -> None:
    cams = write_cams(folder_dataset, tmp_path / "cam")
    cam = cam_of(folder_dataset, "d6")
    ground = np.full((1, *cam.size), 0.3, np.float32)
    rows = Cam(np.append(np.uint8(0), cam.class_index), np.append(ground, cam.cam, 0))
    save_cam(cams / "d6.npy", rows)
    protocol = run(folder_dataset, cams)["protocol"]
    assert protocol["bg_threshold"] == 0.22
    assert "above the background threshold 0.22; " in protocol["threshold"]
    assert "the best row wins in 1 CAMs" in protocol["threshold"]


def test_rules_for_a_predicted_255(
    folder_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    masks = write_masks(folder_dataset, tmp_path / "mask")
    for image_id in ids_of(folder_dataset):
        mask = load_mask(masks / f"{image_id}.png")
        wrong = mask != truth_of(folder_dataset, image_id)
        mask[wrong] = 255
        save_mask(masks / f"{image_id}.png", mask)
    background = run(folder_dataset, masks)
    pixels = background["protocol"]["pred_255_pixels"]
    assert pixels > 0
    assert f"predicted 255: {pixels} pixels" in capsys.readouterr().out
    assert background["miou"] < 100
    ignore = run(folder_dataset, masks, "--pred-255", "ignore")
    assert ignore["miou"] == 100
    assert ignore["protocol"]["pred_255_pixels"] == pixels
    with pytest.raises(ValueError, match=r"\.png: .*predicted 255"):
        run(folder_dataset, masks, "--pred-255", "error")


def test_leak_score(folder_dataset: Path, tmp_path: Path) -> None:
    """A class's context counts where the class is in the image; a quarter of it leaks."""
    for image_id in ids_of(folder_dataset):
        truth = truth_of(folder_dataset, image_id)
        context, mask = np.zeros((2, *truth.shape), np.uint8)
        context[:2, :40] = 1
        context[2, :40] = 3
        mask[0, :20] = 1
        save_mask(tmp_path / "context" / f"{image_id}.png", context)
        save_mask(tmp_path / "mask" / f"{image_id}.png", mask)
    document = run(folder_dataset, tmp_path / "mask", "--context", tmp_path / "context")
    leak = document["leak"]
    with_disc, with_lark = 4, 4
    assert leak["pixels"] == with_disc * 80 + with_lark * 40
    assert leak["class"] == {"disc": 25.0, "square": None, "sky lark": 0.0}
    assert leak["overall"] == pytest.approx(100 * with_disc * 20 / leak["pixels"])


def fails(root: Path, predictions: Path, message: str, *more: object) -> None:
    """The run ends in a user's error and leaves an earlier result as it was."""
    target = root.parent / "result" / "miou.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text("earlier")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(root, predictions, *more)
    assert target.read_text() == "earlier"


def test_missing_predictions_are_named_and_counted(folder_dataset: Path, tmp_path: Path) -> None:
    masks = write_masks(folder_dataset, tmp_path / "mask")
    for image_id in ids_of(folder_dataset)[1:6]:
        (masks / f"{image_id}.png").unlink()
    first = "2007_000032, v1.2.x, my photo and 2 more"
    fails(folder_dataset, masks, rf"5 of 8 predictions are missing .*{first}")
    fails(folder_dataset, tmp_path / "none", "infer_cam.py")
    cams = write_cams(folder_dataset, tmp_path / "cam")
    (cams / "d6.npy").unlink()
    fails(folder_dataset, cams, r"1 of 8 CAMs are missing .*\(d6\)")
    (tmp_path / "nothing").mkdir()
    fails(folder_dataset, tmp_path / "nothing", "8 of 8 predictions")


def test_bad_masks_are_named(folder_dataset: Path, tmp_path: Path) -> None:
    masks = write_masks(folder_dataset, tmp_path / "mask")
    mask = load_mask(masks / "b-4.png")
    save_mask(masks / "b-4.png", mask[:-1])
    fails(folder_dataset, masks, r"b-4\.png: the prediction is 80x47, its ground truth is 80x48")
    save_mask(masks / "b-4.png", np.where(mask > 0, np.uint8(4), mask))
    fails(folder_dataset, masks, r"b-4\.png has class 4: there are 3 classes")
    (masks / "b-4.png").write_bytes(b"no image")
    fails(folder_dataset, masks, r"b-4\.png")
    Image.new("RGB", mask.shape[::-1]).save(masks / "b-4.png")
    fails(folder_dataset, masks, r"b-4\.png.*RGB")
    fails(folder_dataset, masks, "--sweep needs CAMs", "--sweep")
    save_mask(masks / "b-4.png", mask)
    save_cam(masks / "a1.npy", cam_of(folder_dataset, "a1"))
    fails(folder_dataset, masks, "both masks and CAMs")


def test_bad_cams_are_named(folder_dataset: Path, tmp_path: Path) -> None:
    cams = write_cams(folder_dataset, tmp_path / "cam")
    path, cam = cams / "b-4.npy", cam_of(folder_dataset, "b-4")
    save_cam(path, Cam(cam.class_index, cam.cam[:, :, 1:]))
    fails(folder_dataset, cams, r"b-4\.npy: the CAM is 79x48, its image is 80x48")
    save_cam(path, Cam(np.array([1, 4], np.uint8), cam.cam))
    fails(folder_dataset, cams, r"b-4\.npy has class 4")
    path.write_bytes(path.read_bytes()[:500])
    fails(folder_dataset, cams, r"b-4\.npy: refused")
    write_pickled(path, {0: cam.cam[0], 1: cam.cam[1]})
    fails(folder_dataset, cams, r"b-4\.npy: .*do not fit")
    (folder_dataset / "labels.csv").write_text("image_id,classes\na1,disc\n")
    fails(folder_dataset, cams, r"b-4.*no label")


def test_a_hostile_prediction_runs_nothing(folder_dataset: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    cams = write_cams(folder_dataset, tmp_path / "cam")
    write_pickled(cams / "b-4.npy", {0: Hostile()})
    fails(folder_dataset, cams, r"b-4\.npy: refused")
    assert not (tmp_path / "ran").exists()


def test_bad_ground_truth_and_context_are_named(folder_dataset: Path, tmp_path: Path) -> None:
    masks = write_masks(folder_dataset, tmp_path / "mask")
    context = write_masks(folder_dataset, tmp_path / "context")
    save_mask(context / "c5.png", np.zeros((3, 3), np.uint8))
    fails(folder_dataset, masks, r"c5\.png: .* its context is 3x3", "--context", context)
    (context / "c5.png").unlink()
    fails(folder_dataset, masks, r"1 of 8 context masks .*c5", "--context", context)
    (folder_dataset / "masks" / "c5.png").unlink()
    fails(folder_dataset, masks, r"c5")
    fails(folder_dataset, masks, "nolist", "--list", "nolist")


def program(*flags: object, code: str = "") -> subprocess.CompletedProcess:
    """`eval_miou.py` in a process of its own, `code` before it."""
    arguments = ["eval_miou.py", *map(str, flags)]
    text = f"{code}\nimport sys, runpy\nsys.argv = {arguments!r}\n"
    text += "runpy.run_path('eval_miou.py', run_name='__main__')\n"
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_stage_4_does_not_import_torch(folder_dataset: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    cams = write_cams(folder_dataset, tmp_path / "cam")
    cam = cam_of(folder_dataset, "b-4")
    keys = torch.from_numpy(cam.class_index.astype(np.int64) - 1)
    content = {"keys": keys, "cam": torch.from_numpy(cam.cam), "high_res": cam.cam}
    write_pickled(cams / "b-4.npy", content)
    flags = ["--dataset", "folder", "--root", folder_dataset, "--pred-dir", cams, "--sweep"]
    done = program(
        *flags, "--json", tmp_path / "m.json", code="import sys\nsys.modules['torch'] = None"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "m.json").read_text())["images"] == 8


def test_an_error_is_one_line_and_status_2(folder_dataset: Path, tmp_path: Path) -> None:
    flags = ["--dataset", "folder", "--root", folder_dataset, "--pred-dir", tmp_path / "none"]
    done = program(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith("python eval_miou.py: error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in program(*flags, "--traceback").stderr
