"""Stage 2 and `network.predict` as a user runs them: restart, refusals, equal in batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_refused, run, run_ranks, train_flags

import infer_cam
from data.catalog import open_catalog
from data.dataset import InferDataset
from network.methods import build_method
from tool.formats.cam import Cam, at_size, load_cam
from tool.formats.checkpoint import load_checkpoint
from tool.formats.mask import load_mask
from tool.infer.multiscale import infer_images
from tool.infer.scales import Views
from tool.parallel.writer import BackgroundWriter
from tool.provenance import claim

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, folder_root):
    out = tmp_path_factory.mktemp("trained")
    result = run("train_fbr.py", *train_flags(folder_root, out, steps=2))
    assert result.returncode == 0, result.stderr
    return out / "checkpoint.pth"


def infer(checkpoint, root, out, *flags: object):
    base = ["--checkpoint", checkpoint, "--dataset", "folder", "--root", root, "--list", "train"]
    scales = ["--scales", 0.5, 1, "--num-workers", 0, "--device", "cpu", "--gate", "none"]
    return run("infer_cam.py", *base, "--out", out, *scales, *flags)


def test_writes_present_classes_at_image_size_and_restarts(trained, folder_root, tmp_path) -> None:
    result = infer(trained, folder_root, tmp_path / "cam")
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("folder", folder_root)
    files = {}
    for image_id in catalog.ids("train"):
        path = tmp_path / "cam" / f"{image_id}.npy"
        cam = load_cam(path)
        width, height = catalog.image_size(image_id)
        assert cam.cam.shape[1:] == (height, width)
        assert cam.class_index.tolist() == (np.flatnonzero(catalog.label(image_id)) + 1).tolist()
        assert cam.cam.size == 0 or (cam.cam.min() >= 0 and cam.cam.max() <= 1)
        files[path] = path.stat().st_mtime_ns
    broken, missing, *kept = files
    broken.write_bytes(broken.read_bytes()[:50])
    missing.unlink()
    assert infer(trained, folder_root, tmp_path / "cam").returncode == 0
    assert load_cam(broken).cam.shape == load_cam(broken).cam.shape
    assert missing.exists()
    assert all(path.stat().st_mtime_ns == files[path] for path in kept), "whole files are skipped"


def test_equals_the_method_on_one_image(trained, folder_root, tmp_path) -> None:
    assert infer(trained, folder_root, tmp_path, "--num-workers", 1).returncode == 0
    checkpoint = load_checkpoint(trained)
    method = build_method(checkpoint["config"])
    method.load_state_dict(checkpoint["model"])
    method.eval()
    catalog = open_catalog("folder", folder_root)
    ids = catalog.ids("train")
    sample = InferDataset(catalog, ids, views=Views((0.5, 1.0)))[0]
    expected = infer_images(method, [sample], device=CPU)[0]["cam"]
    got = load_cam(tmp_path / f"{ids[0]}.npy")
    rows = expected[torch.from_numpy(got.class_index.astype(int)) - 1]
    np.testing.assert_allclose(got.cam, rows.numpy(), atol=1e-3)


def test_batches_of_one_size_give_what_single_images_give(
    trained, folder_dataset, tmp_path
) -> None:
    root = folder_dataset
    with Image.open(open_catalog("folder", root).image_path("a1")) as image:
        for turn in range(5):
            image.transform(image.size, Image.Transform.AFFINE, (1, 0, 7 * turn, 0, 1, 0)).save(
                root / "images" / f"more{turn}.png"
            )
    with open(root / "labels.csv", "a") as labels, open(root / "lists/train.txt", "a") as names:
        for turn, classes in enumerate(("disc", "disc", "", "disc", "disc")):
            labels.write(f"more{turn},{classes}\n")
            names.write(f"more{turn}\n")
    for size in (1, 3):
        result = infer(trained, root, tmp_path / str(size), "--batch-size", size)
        assert result.returncode == 0, result.stderr
    files = sorted(path.name for path in (tmp_path / "1").glob("*.npy"))
    assert len(files) == 13
    for name in files:
        one, three = (load_cam(tmp_path / size / name) for size in ("1", "3"))
        assert one.class_index.tolist() == three.class_index.tolist()
        np.testing.assert_allclose(one.cam, three.cam, atol=1e-3)


def test_a_mirrored_image_gives_a_mirrored_cam(trained) -> None:
    checkpoint = load_checkpoint(trained)
    method = build_method(checkpoint["config"])
    method.load_state_dict(checkpoint["model"])
    method.eval()
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8, generator=generator)
    samples = [
        {"image_id": "x", "size": (48, 64), "label": torch.ones(3), "images": [images]}
        for images in (image, image.flip(-1))
    ]
    one, other = (maps["cam"] for maps in infer_images(method, samples, device=CPU))
    assert torch.allclose(one, other.flip(-1), atol=1e-5)
    assert one.amax(dim=(1, 2)).min() > 0.99, "each class is over its maximum"


def test_refusals(trained, folder_root, tmp_path) -> None:
    out = tmp_path / "cam"
    assert_refused(infer(tmp_path / "no.pth", folder_root, out), "no.pth", "train_fbr.py")
    assert_refused(infer(trained, folder_root, out, "--method", "eps"), "fbr", "eps")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(trained.read_bytes()[:3000])
    assert_refused(infer(broken, folder_root, out), "broken.pth")
    foreign = tmp_path / "foreign.pth"
    torch.save({"weight": torch.ones(2)}, foreign)
    assert_refused(infer(foreign, folder_root, out), "foreign.pth", "lacks")


def test_a_checkpoint_of_other_classes_is_refused(trained, folder_dataset, tmp_path) -> None:
    names = (folder_dataset / "classes.txt").read_text().splitlines()
    (folder_dataset / "classes.txt").write_text("\n".join([*names, "unicorn"]) + "\n")
    assert_refused(infer(trained, folder_dataset, tmp_path), "3 classes", "4")


def test_cams_of_two_checkpoints_do_not_mix(trained, folder_root, tmp_path) -> None:
    assert infer(trained, folder_root, tmp_path).returncode == 0
    base = ["--dataset", "folder", "--root", folder_root, "--out", tmp_path, "--device", "cpu"]
    other = run("infer_cam.py", "--checkpoint", trained, *base, "--scales", 1, "--gate", "none")
    assert_refused(other, "scales", "--out")


def test_show_writes_one_picture(trained, folder_root, tmp_path) -> None:
    image = next(iter((folder_root / "images").iterdir()))
    out = tmp_path / "shown.png"
    script = "network/predict/__main__.py"
    flags = ["--checkpoint", trained, "--top", 2, "--out", out, "--device", "cpu"]
    result = run(script, image, *flags)
    assert result.returncode == 0, result.stderr
    width, height = Image.open(image).size
    picture = Image.open(out)
    assert picture.width == 4 * width, "image, two classes, mask"
    assert picture.height > height
    named = run(script, image, "--checkpoint", trained, "--classes", "nonsense", "--out", out)
    assert_refused(named, "nonsense")


def test_an_error_of_the_writer_reaches_the_caller() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), BackgroundWriter() as writer:
        writer.submit(fail)


def masks_of(folder) -> dict[str, np.ndarray]:
    return {path.stem: load_mask(path) for path in sorted(folder.glob("*.png"))}


@pytest.mark.parametrize("stride", [1, 4])
def test_masks_in_the_same_pass_are_those_of_two_stages(
    trained, folder_root, tmp_path, stride: int
) -> None:
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    strided = ["--cam-stride", stride]
    assert infer(trained, folder_root, tmp_path / "cam", *strided).returncode == 0
    crf = ["--cam-dir", tmp_path / "cam", *data, "--out", tmp_path / "two", "--workers", 1]
    result = run("crf_postprocess.py", *crf)
    assert result.returncode == 0, result.stderr
    base = [
        "--gate",
        "none",
        "--checkpoint",
        trained,
        *data,
        "--scales",
        0.5,
        1,
        "--num-workers",
        0,
    ]
    one = [*base, "--device", "cpu", "--masks", tmp_path / "one", "--crf-workers", 1, *strided]
    result = run("infer_cam.py", *one)
    assert result.returncode == 0, result.stderr
    ours, theirs = masks_of(tmp_path / "one"), masks_of(tmp_path / "two")
    assert set(ours) == set(theirs)
    assert len(ours) == 8
    for name, mask in ours.items():
        np.testing.assert_array_equal(mask, theirs[name], err_msg=name)
    assert not list((tmp_path / "one").rglob("*.npy"))
    (tmp_path / "one" / "a1.png").unlink()
    assert "7 of 8 images are done" in run("infer_cam.py", *one).stdout
    np.testing.assert_array_equal(load_mask(tmp_path / "one" / "a1.png"), ours["a1"])
    assert_refused(run("infer_cam.py", *one, "--alpha", 4), "another alpha")
    assert_refused(run("infer_cam.py", *base), "--masks")


def test_strided_cams_are_small_and_score_nearly_alike(trained, folder_root, tmp_path) -> None:
    data = ["--dataset", "folder", "--root", folder_root, "--list", "train"]
    miou = {}
    for stride in (1, 4):
        out = tmp_path / f"cam{stride}"
        assert infer(trained, folder_root, out, "--cam-stride", stride).returncode == 0
        json_file = tmp_path / f"{stride}.json"
        result = run("eval_miou.py", "--pred-dir", out, *data, "--sweep", "--json", json_file)
        assert result.returncode == 0, result.stderr
        miou[stride] = np.array(json.loads(json_file.read_text())["sweep"])[:, 1]
    assert np.abs(miou[1] - miou[4]).mean() < 2
    for image_id in open_catalog("folder", folder_root).ids("train"):
        full, small = (load_cam(tmp_path / f"cam{s}" / f"{image_id}.npy") for s in (1, 4))
        assert small.size == (-(-full.size[0] // 4), -(-full.size[1] // 4))
        enlarged = at_size(small, full.size)
        assert np.abs(enlarged.cam - full.cam).mean() < 0.05 if full.cam.size else True
    with pytest.raises(ValueError, match="its image is 80x60"):
        at_size(Cam(np.array([1], np.uint8), np.zeros((1, 7, 10), np.float32)), (60, 80))


def test_a_refused_folder_gets_nothing_from_any_rank(trained, folder_root, tmp_path) -> None:
    out = tmp_path / "cam"
    out.mkdir()
    claim(out, {"checkpoint_sha256": "of another"})
    flags = ["--checkpoint", trained, "--dataset", "folder", "--root", folder_root, "--out", out]
    flags += ["--scales", 0.25, "--num-workers", 0, "--device", "cpu", "--gate", "none"]
    assert_refused(run_ranks(2, tmp_path / "texts", "infer_cam.py", *flags), "another run")
    assert {file.name for file in out.iterdir()} == {".lock", "made_from.json"}


def test_a_photograph_too_large_for_the_memory_is_named(
    trained, folder_root, tmp_path, monkeypatch
) -> None:
    real = infer_cam.infer_images

    def starved(method: object, samples: list[dict], **more: object) -> list[dict]:
        if samples[0]["image_id"] == "d6":
            torch.empty(1 << 60)  # torch's own error
        return real(method, samples, **more)

    monkeypatch.setattr(infer_cam, "infer_images", starved)
    result = infer(trained, folder_root, tmp_path / "cam")
    assert_refused(result, "too little memory", "78x61", "(d6)", "--scales", "--batch-size")
