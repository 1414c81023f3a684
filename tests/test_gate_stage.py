"""Stage 2 with the NROI gate: of a run, of CAMs of other code, in pictures and in predictions."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from method_cases import MIXED, make_batch, make_method
from PIL import Image
from runs import assert_refused, run, run_ranks, train_flags

import infer_cam
import train_fbr
from data.catalog import open_catalog
from data.regions import training_ids
from network.backbones import build_backbone
from network.maps import over_maximum
from tool.files import list_hash
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.regions import read_regions, save_regions
from tool.train.batch import part
from tool.train.pictures import map_panels


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder_root) -> Path:
    """A run of `fbr`, whose recipe has the gate."""
    out = tmp_path_factory.mktemp("gate") / "run"
    result = run("train_fbr.py", *train_flags(folder_root, out, steps=2))
    assert result.returncode == 0, result.stderr
    return out


def flags(run_dir: Path, root: Path, out: Path, *more: object) -> list[object]:
    base = ["--checkpoint", run_dir / "checkpoint.pth", "--dataset", "folder", "--root", root]
    base += ["--list", "train", "--out", out, "--scales", 1, "--num-workers", 0, "--device", "cpu"]
    return [*base, *more]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_stage_2_gates_and_a_restart_gives_the_same_bytes(trained, folder_root, tmp_path) -> None:
    first = tmp_path / "first"
    result = run("infer_cam.py", *flags(trained, folder_root, first))
    assert result.returncode == 0, result.stderr
    note = json.loads((first / "made_from.json").read_text())
    assert note["post"]["gate"] == "nroi"
    whole, regions = content(first), (trained / "nroi.npz").read_bytes()
    assert len(whole) == 8
    # Half of the files lost: made again as they were, from the same regions.
    for path in sorted(first.glob("*.npy"))[::2]:
        path.unlink()
    assert run("infer_cam.py", *flags(trained, folder_root, first)).returncode == 0
    assert content(first) == whole
    # The regions lost as well.
    (trained / "nroi.npz").unlink()
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "second")).returncode == 0
    assert content(tmp_path / "second") == whole
    assert (trained / "nroi.npz").read_bytes() == regions
    # Batches of several images.
    batched = flags(trained, folder_root, tmp_path / "b", "--batch-size", 4)
    assert run("infer_cam.py", *batched).returncode == 0
    for name in whole:
        ours, theirs = load_cam(first / name), load_cam(tmp_path / "b" / name)
        np.testing.assert_allclose(ours.cam, theirs.cam, atol=2e-2)
    # Without the gate the maps are others, and the two never share a folder.
    off = flags(trained, folder_root, tmp_path / "off", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    assert content(tmp_path / "off") != whole
    mixed = run("infer_cam.py", *flags(trained, folder_root, first, "--gate", "none"))
    assert_refused(mixed, "another gate")
    # Both from one pass; a lost file of either kind is made again.
    both = flags(trained, folder_root, tmp_path / "both", "--keep-plain")
    for lost in (None, "a1.npy", "plain/a1.npy"):
        if lost:
            (tmp_path / "both" / lost).unlink()
        assert run("infer_cam.py", *both).returncode == 0
        assert content(tmp_path / "both") == whole
        assert content(tmp_path / "both" / "plain") == content(tmp_path / "off")
    post = json.loads((tmp_path / "both" / "plain" / "made_from.json").read_text())["post"]
    assert post["gate"] == "none"
    assert_refused(run("infer_cam.py", *both, "--gate", "none"), "--keep-plain")


@pytest.mark.slow
def test_ranks_give_the_same_bytes(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    (trained / "nroi.npz").unlink()
    result = run_ranks(
        2, tmp_path / "texts", "infer_cam.py", *flags(trained, folder_root, tmp_path / "two")
    )
    assert result.returncode == 0, result.stderr
    assert (trained / "nroi.npz").read_bytes() == regions
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_regions_of_another_checkpoint_or_damaged_ones_are_one_line(
    trained, folder_root, tmp_path
) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    path = trained / "nroi.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    damaged = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "y"))
    assert_refused(damaged, "nroi.npz is no whole file of regions", "remove it")
    path.write_bytes(whole)
    with np.load(path) as content:
        noted = json.loads(bytes(content["about"]))["made_from"]
    save_regions(path, read_regions(path)[0], noted | {"checkpoint_sha256": "0" * 64})
    other = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "y"))
    assert_refused(other, "nroi.npz differs in checkpoint_sha256", "remove it")
    assert not list((tmp_path / "y").glob("*.npy"))
    path.unlink()


def test_other_scales_have_regions_of_their_own(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    inodes = set()
    for _ in range(2):  # a restart finds them
        mirrored = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "x", "--no-mirror"))
        assert mirrored.returncode == 0, mirrored.stderr
        inodes.add((tmp_path / "x" / "nroi.npz").stat().st_ino)
    assert len(inodes) == 1
    assert (trained / "nroi.npz").read_bytes() == regions
    assert (tmp_path / "x" / "nroi.npz").read_bytes() != regions
    (tmp_path / "x" / "nroi.npz").write_bytes(regions)
    mirrored = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "x", "--no-mirror"))
    assert_refused(mirrored, "nroi.npz differs in", "remove it")


def ids_in(path: Path) -> list[str]:
    return read_regions(path)[0].image_ids


def test_regions_are_those_of_the_training_list_whatever_is_inferred(
    trained, folder_root, tmp_path
) -> None:
    regions = trained / "nroi.npz"
    regions.unlink(missing_ok=True)
    val = ("--list", "val")
    done = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "val", *val))
    assert done.returncode == 0, done.stderr
    assert "gate: regions of 8 images of train" in done.stdout
    assert ids_in(regions) == sorted(FOLDER_IMAGES)
    assert len(content(tmp_path / "val")) == 3
    # New photographs, without the training list: the run's regions are used.
    new = shutil.copytree(folder_root, tmp_path / "new")
    (new / "lists" / "train.txt").unlink()
    (new / "images" / "empty.jpg").unlink()
    done = run("infer_cam.py", *flags(trained, new, tmp_path / "cam", *val))
    assert done.returncode == 0, done.stderr
    assert str(regions) in done.stdout
    assert content(tmp_path / "cam") == content(tmp_path / "val")
    # Without them, too: then they are those of the list that is inferred, beside its CAMs.
    regions.unlink()
    done = run("infer_cam.py", *flags(trained, new, tmp_path / "other", *val))
    assert done.returncode == 0, done.stderr
    assert "gate: regions of 3 images of val" in done.stdout
    assert not regions.exists()
    assert ids_in(tmp_path / "other" / "nroi.npz") == ["a1", "my photo", "v1.2.x"]


def test_a_training_list_that_is_not_whole_is_named_and_does_without(
    trained, folder_root, tmp_path
) -> None:
    (trained / "nroi.npz").unlink(missing_ok=True)
    root = shutil.copytree(folder_root, tmp_path / "part")
    (root / "images" / "c5.jpg").unlink()
    done = run("infer_cam.py", *flags(trained, root, tmp_path / "cam", "--list", "val"))
    assert done.returncode == 0, done.stderr
    assert "training list cannot be sampled: image of 'c5' does not exist" in done.stdout
    assert ids_in(tmp_path / "cam" / "nroi.npz") == ["a1", "my photo", "v1.2.x"]
    assert not (trained / "nroi.npz").exists()


def test_bad_images_are_left_out_of_the_sample_also_in_a_restart(
    trained, folder_root, tmp_path
) -> None:
    (trained / "nroi.npz").unlink(missing_ok=True)
    root = shutil.copytree(folder_root, tmp_path / "bad")
    (root / "images" / "c5.jpg").write_bytes(b"no image")
    base = flags(trained, root, tmp_path / "cam")
    assert_refused(run("infer_cam.py", *base), "c5.jpg")
    done = run("infer_cam.py", *base, "--skip-bad-images")
    assert done.returncode == 0, done.stderr
    assert ids_in(trained / "nroi.npz") == sorted(set(FOLDER_IMAGES) - {"c5"})
    (trained / "nroi.npz").unlink()


def test_an_export_has_regions_beside_its_cams(trained, folder_root, tmp_path) -> None:
    """It lies beside the checkpoint by default, whose regions are the checkpoint's."""
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "one")).returncode == 0
    regions = (trained / "nroi.npz").read_bytes()
    assert run("network/export.py", trained / "checkpoint.pth").returncode == 0
    export = next(trained.glob("*.safetensors"))
    base = flags(trained, folder_root, tmp_path / "two")
    base[1] = export
    done = run("infer_cam.py", *base)
    assert done.returncode == 0, done.stderr
    assert (trained / "nroi.npz").read_bytes() == regions
    assert (tmp_path / "two" / "nroi.npz").is_file()
    for name, values in content(tmp_path / "one").items():
        assert content(tmp_path / "two")[name] == values
    image = next((folder_root / "images").glob("*.jpg"))
    shown = run("network/predict/__main__.py", image, "--checkpoint", export, "--classes", "disc")
    assert shown.returncode == 0, shown.stderr
    assert "without the gate" in shown.stderr
    export.unlink()


def test_neither_stride_nor_batches_change_the_regions(
    trained, folder_root, tmp_path, monkeypatch
) -> None:
    found = []
    monkeypatch.setattr("network.contrast.gate.LARGEST", 3)
    for number, more in enumerate(((), ("--cam-stride", 8), ("--batch-size", 4))):
        (trained / "nroi.npz").unlink(missing_ok=True)
        infer_cam.main(list(map(str, flags(trained, folder_root, tmp_path / str(number), *more))))
        found.append(read_regions(trained / "nroi.npz")[0])
    (trained / "nroi.npz").unlink()
    one, strided, batched = found
    assert np.array_equal(one.region, strided.region)
    assert np.array_equal(one.owner, batched.owner)
    assert len(set(one.owner.tolist())) == 3, "the cap"
    np.testing.assert_allclose(batched.region, one.region, atol=1e-4)


def test_a_folder_of_another_run_is_refused_before_regions_are_collected(
    trained, folder_root, tmp_path
) -> None:
    off = flags(trained, folder_root, tmp_path / "off", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    (trained / "nroi.npz").unlink(missing_ok=True)
    mixed = run("infer_cam.py", *flags(trained, folder_root, tmp_path / "off"))
    assert_refused(mixed, "another gate")
    assert not (trained / "nroi.npz").exists()


def test_other_methods_take_it_by_a_flag(folder_root, tmp_path) -> None:
    result = run("train_fbr.py", *train_flags(folder_root, tmp_path / "run", method="cam", steps=1))
    assert result.returncode == 0, result.stderr
    for gate, made in ((), False), (("--gate", "nroi"), True):
        out = tmp_path / f"cam-{made}"
        assert (
            run("infer_cam.py", *flags(tmp_path / "run", folder_root, out, *gate)).returncode == 0
        )
        assert (tmp_path / "run" / "nroi.npz").is_file() == made


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Pretrained weights of the slim backbone."""
    path = tmp_path_factory.mktemp("weights") / "slim.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        safetensors.torch.save_file(build_backbone("resnet38d_slim").state_dict(), path)
    return path


def gate_alone(cams: Path, root: Path, out: Path, weights: Path, *more: object):
    base = ["--method", "gate", "--cam-dir", cams, "--backbone", "resnet38d_slim"]
    base += ["--weights", weights, "--dataset", "folder", "--root", root, "--list", "train"]
    base += ["--out", out, "--scales", 1, "--num-workers", 0, "--device", "cpu"]
    return run("infer_cam.py", *base, *more)


@pytest.mark.parametrize("layout", ["native", "irn", "psa"])
def test_anyones_cams_are_gated(layout, trained, weights, folder_root, tmp_path) -> None:
    """By a frozen backbone, without a checkpoint; the layout of the files changes nothing."""
    off = flags(trained, folder_root, tmp_path / "plain", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    convert = ["--cam-dir", tmp_path / "plain", "--out", tmp_path / layout, "--to", layout]
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    assert run("data/convert_cams.py", *convert, *data).returncode == 0
    result = gate_alone(tmp_path / layout, folder_root, tmp_path / "gated", weights)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "gated" / "nroi.npz").is_file()
    plain = gate_alone(tmp_path / layout, folder_root, tmp_path / "off", weights, "--gate", "none")
    assert plain.returncode == 0, plain.stderr
    changed = 0
    for path in sorted((tmp_path / "plain").glob("*.npy")):
        before, kept, after = (
            load_cam(tmp_path / n / path.name) for n in ("plain", "off", "gated")
        )
        assert before.class_index.tolist() == after.class_index.tolist()
        assert before.cam.shape == after.cam.shape
        np.testing.assert_allclose(kept.cam, before.cam, atol=1e-3)
        changed += bool(np.abs(after.cam - kept.cam).max(initial=0) > 0.01)
    assert changed > 3


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--method", "cam"], ["--checkpoint is needed"]),
        (["--method", "gate"], ["--weights is needed by --method gate"]),
        (["--method", "gate", "--weights", "no.pth"], ["no.pth"]),
        (["--checkpoint", "x.pth", "--weights", "pypi"], ["only by it"]),
        (["--method", "gate", "--weights", "pypi", "--set", "beta=5"], ["takes no"]),
        (["--method", "gate", "--weights", "pypi", "--background", "first"], ["takes no"]),
    ],
)
def test_a_gate_without_a_network_is_one_line(more, words, folder_root, tmp_path) -> None:
    base = ["--dataset", "folder", "--root", folder_root, "--list", "train", "--out", tmp_path]
    assert_refused(run("infer_cam.py", *base, *more), *words)


def test_a_folder_of_foreign_cams_is_not_an_output(weights, trained, folder_root, tmp_path) -> None:
    """Its files would count as done: plain CAMs that are said to be gated."""
    off = flags(trained, folder_root, tmp_path / "plain", "--gate", "none")
    assert run("infer_cam.py", *off).returncode == 0
    (tmp_path / "plain" / "made_from.json").unlink()
    before = content(tmp_path / "plain")
    same = gate_alone(tmp_path / "plain", folder_root, tmp_path / "plain", weights)
    assert_refused(same, "files that this command did not make", "choose another --out")
    assert content(tmp_path / "plain") == before


def test_foreign_cams_of_other_classes_are_refused(weights, folder_root, tmp_path) -> None:
    """Such as keys that count from 1: the gated map of the image's class would be 0 everywhere."""
    for image_id, (classes, (width, height), _) in FOLDER_IMAGES.items():
        values = [FOLDER_CLASSES.index(name) for name in classes]
        keys = [1] if image_id == "a1" else values
        maps = np.random.default_rng(0).random((len(keys), height, width)).astype(np.float32)
        (tmp_path / "cams").mkdir(exist_ok=True)
        content = {"keys": np.array(keys, np.int64), "cam": 0, "high_res": maps}
        np.save(tmp_path / "cams" / f"{image_id}.npy", np.array(content, dtype=object))
    result = gate_alone(tmp_path / "cams", folder_root, tmp_path / "gated", weights)
    words = ("a1.npy has maps of the classes 2 and none of class 1", "other labels")
    assert_refused(result, *words)


def test_a_background_row_of_foreign_cams_stays(weights, folder_root, tmp_path) -> None:
    """As in SIPE's and AMN's files; the gate then lowers classes only."""
    for image_id, (classes, (width, height), _) in FOLDER_IMAGES.items():
        rng = np.random.default_rng(len(image_id))
        values = sorted(FOLDER_CLASSES.index(name) + 1 for name in classes)
        maps = rng.random((1 + len(values), height, width)).astype(np.float32)
        save_cam(tmp_path / "cams" / f"{image_id}.npy", Cam(np.array([0, *values], "u1"), maps))
    done = gate_alone(tmp_path / "cams", folder_root, tmp_path / "gated", weights)
    assert done.returncode == 0, done.stderr
    lower = 0
    for image_id in FOLDER_IMAGES:
        before, after = (load_cam(tmp_path / n / f"{image_id}.npy") for n in ("cams", "gated"))
        assert before.class_index.tolist() == after.class_index.tolist()
        np.testing.assert_allclose(after.cam[0], before.cam[0], atol=1e-3)
        assert (after.cam[1:] <= before.cam[1:] + 1e-3).all()
        lower += int((after.cam[1:] < before.cam[1:] - 0.01).sum())
    assert lower > 100
    rows = load_cam(tmp_path / "cams" / "d6.npy").foreground()
    save_cam(tmp_path / "cams" / "d6.npy", rows)
    mixed = gate_alone(tmp_path / "cams", folder_root, tmp_path / "mixed", weights)
    assert_refused(mixed, "d6.npy has no background row")
    for image_id in FOLDER_IMAGES:  # the other way round, and the first CAM has no row at all
        rows = load_cam(tmp_path / "cams" / f"{image_id}.npy")
        if image_id == "a1":
            rows = Cam(rows.class_index[:0], rows.cam[:0])
        elif image_id != "c5":
            rows = rows.foreground()
        save_cam(tmp_path / "cams" / f"{image_id}.npy", rows)
    mixed = gate_alone(tmp_path / "cams", folder_root, tmp_path / "other", weights)
    assert_refused(mixed, "c5.npy has a background row, other CAMs of the folder none")


def test_a_gate_is_not_trained(capsys) -> None:
    with pytest.raises(SystemExit):
        train_fbr.main(["--method", "gate", "--out", "x"])
    assert "invalid choice: 'gate'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fbr", "fbr_amn"])
@pytest.mark.parametrize("count", [1, 4])
def test_training_pictures_show_cam_gate_and_product(name: str, count: int) -> None:
    method, batch = make_method(name).eval(), part(make_batch(MIXED), slice(count))
    with torch.no_grad():
        maps = method.pictures(batch)
    assert torch.equal(maps["gated CAM"], over_maximum(maps["cam"] * maps["gate"]))
    present = batch["label"][0] > 0
    assert (maps["gate"][present] > 0).all()
    assert (maps["gate"][~present] == 0).all()
    image = (batch["image"][0].clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    names = [str(index) for index in range(method.num_classes)]
    of = functools.partial(map_panels, image, bg_threshold=0.22, class_names=names)
    assert list(of(maps)) == [*maps, "label"]
    # The pseudo label is that of the gated CAM.
    maps["gated CAM"] = torch.zeros_like(maps["gated CAM"])
    caption, nothing = of(maps)["label"]
    assert caption == "pseudo label: background"
    assert not np.array_equal(nothing, of({"cam": maps["cam"]})["label"][1])


def test_predict_shows_the_gate_of_the_run(trained, folder_root, tmp_path) -> None:
    assert run("infer_cam.py", *flags(trained, folder_root, tmp_path / "cam")).returncode == 0
    image = next((folder_root / "images").glob("*.jpg"))
    base = [image, "--checkpoint", trained / "checkpoint.pth", "--classes", "disc"]
    sizes = []
    for number, more in enumerate(((), ("--gate", "none"))):
        out = tmp_path / f"{number}.png"
        result = run("network/predict/__main__.py", *base, *more, "--out", out, "--device", "cpu")
        assert result.returncode == 0, result.stderr
        with Image.open(out) as picture:
            sizes.append(picture.width)
    assert sizes[0] == sizes[1] / 3 * 5  # image, CAM, gate, gated CAM, mask
    (trained / "nroi.npz").unlink()
    wanted = run(
        "network/predict/__main__.py", *base, "--gate", "nroi", "--out", tmp_path / "x.png"
    )
    assert_refused(wanted, "nroi.npz does not exist", "run infer_cam.py first")


@pytest.mark.parametrize("name", [None, 3, ["train"], "no such list", "../train"])
def test_a_checkpoint_that_names_no_list_has_no_training_list(
    folder_root: Path, name: object
) -> None:
    catalog = open_catalog("folder", folder_root)
    ids = catalog.ids("train")
    assert training_ids(catalog, {"list": "train", "list_sha256": list_hash(ids)}) == ids
    assert training_ids(catalog, {"list": name, "list_sha256": list_hash(ids)}) is None
    assert training_ids(catalog, {}) is None
    assert training_ids(catalog, {"list": "train", "list_sha256": list_hash(ids[1:])}) is None
