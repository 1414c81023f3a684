"""`data.saliency` with a small ONNX model made here: the mean of the image's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_refused, run

from data.catalog import open_catalog

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def model_file(
    path: Path,
    *,
    side: int | str = 32,
    weight: float = 1.0,
    axes: int = 1,
    first: tuple[int | str, int | str] = (1, 3),
    half: bool = False,
    kernel_side: int = 1,
) -> Path:
    """A network in the shape of U2-Net: one RGB image in, sigmoid maps out, the first counts."""
    helper = onnx.helper
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    shape, values = [axes, 3, kernel_side, kernel_side], [weight] * (3 * axes * kernel_side**2)
    kernel = helper.make_tensor("w", kind, shape, values)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["score"]),
            helper.make_node("Sigmoid", ["score"], ["d0"]),
            helper.make_node("Identity", ["score"], ["d1"]),
        ],
        "u2net",
        [helper.make_tensor_value_info("image", kind, [*first, side, side])],
        [helper.make_tensor_value_info(n, kind, [None, axes, None, None]) for n in ("d0", "d1")],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("flags", "name"), [((), "u2netp"), (("--model", "u2net"), "u2net")])
def test_networks_are_downloaded_by_name(folder_root, tmp_path, monkeypatch, flags, name) -> None:
    model = model_file(tmp_path / "u2net.onnx")
    monkeypatch.setattr("tool.download.fetch.get", lambda what: {name: model}[what])
    flags += ("--root", folder_root, "--list", "train", "--out", tmp_path / "out", "--workers", 1)
    assert run("data/saliency.py", *flags).returncode == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 8


def saliency(root: Path, out: Path, model: Path, *flags: object):
    base = ["--model", model, "--root", root, "--list", "train", "--out", out, "--workers", 1]
    return run("data/saliency.py", *base, *flags)


@pytest.mark.parametrize(
    "kind", [{}, {"side": "side"}, {"first": ("batch", "channels")}, {"half": True}], ids=str
)
def test_maps_of_the_images_sizes(folder_root, tmp_path, kind: dict) -> None:
    model = model_file(tmp_path / "u2net.onnx", **kind)
    result = saliency(folder_root, tmp_path / "out", model)
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("folder", folder_root, saliency_root=tmp_path / "out")
    for image_id in catalog.ids("train"):
        got = np.asarray(catalog.read_saliency(image_id), float)
        assert got.max() > got.min() + 50
        bright = np.asarray(catalog.read_image(image_id), float).sum(axis=2)
        assert np.corrcoef(got.ravel(), bright.ravel())[0, 1] > 0.5, image_id


def test_maps_of_any_origin_may_do(folder_dataset, tmp_path) -> None:
    """With --if-missing nothing is fetched or claimed if all maps are there, else all as usual."""
    own = folder_dataset / "saliency"
    flags = ["--root", folder_dataset, "--list", "train", "--model", tmp_path / "no.onnx"]
    result = run("data/saliency.py", *flags, "--if-missing")
    assert result.returncode == 0, result.stderr
    assert f"{own}: all 8 maps are there" in result.stdout
    assert not (own / "made_from.json").exists()
    assert_refused(run("data/saliency.py", *flags), "no.onnx is no file")
    (own / "a1.png").unlink()
    assert_refused(run("data/saliency.py", *flags, "--if-missing"), "no.onnx is no file")
    model = model_file(tmp_path / "u2net.onnx")
    flags = ["--root", folder_dataset, "--list", "train", "--model", model, "--workers", 1]
    result = run("data/saliency.py", *flags, "--if-missing")
    assert "1 maps written, 7 were there" in result.stdout


def test_goes_on_where_it_was(folder_root, tmp_path) -> None:
    model, out = model_file(tmp_path / "u2net.onnx"), tmp_path / "out"
    saliency(folder_root, out, model)
    broken, missing, *kept = sorted(out.glob("*.png"))
    times = [path.stat().st_mtime_ns for path in kept]
    broken.write_bytes(broken.read_bytes()[:60])
    missing.unlink()
    result = saliency(folder_root, out, model)
    assert "2 maps written, 6 were there" in result.stdout
    assert [path.stat().st_mtime_ns for path in kept] == times
    other = model_file(tmp_path / "other.onnx", weight=2.0)
    assert_refused(saliency(folder_root, out, other), "model_sha256", "--out")


def test_shards_share_the_images(folder_root, tmp_path) -> None:
    model = model_file(tmp_path / "u2net.onnx")
    for share, count in ((0, 3), (1, 3), (2, 2)):
        result = saliency(folder_root, tmp_path / "out", model, "--shard", f"{share}/3")
        assert f"{count} maps written, 0 were there" in result.stdout
    assert_refused(saliency(folder_root, tmp_path / "out", model, "--shard", "3/3"), "3/3")


@pytest.mark.parametrize("flags", [[], ["--if-missing"]])
def test_the_map_of_a_changed_photograph_is_made_anew(folder_dataset, tmp_path, flags) -> None:
    model, out = model_file(tmp_path / "u2net.onnx"), tmp_path / "out"
    assert saliency(folder_dataset, out, model).returncode == 0
    path = next((folder_dataset / "images").glob("a1.*"))
    with Image.open(path) as image:
        turned = image.rotate(180)
    turned.save(path)
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    result = saliency(folder_dataset, out, model, *flags)
    assert "1 changed photographs, made anew: a1" in result.stdout
    after = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    assert [name for name in after if after[name] != before[name]] == ["a1.png"]


def test_a_constant_output_is_no_saliency(folder_root, tmp_path) -> None:
    model = model_file(tmp_path / "u2net.onnx", weight=0.0)
    assert saliency(folder_root, tmp_path / "out", model).returncode == 0
    assert (np.asarray(Image.open(tmp_path / "out" / "a1.png")) == 0).all()


def test_refusals(folder_root, tmp_path) -> None:
    assert_refused(saliency(folder_root, tmp_path / "o", tmp_path / "no.onnx"), "u2netp, u2net")
    (tmp_path / "bad.onnx").write_bytes(b"<html>")
    assert_refused(saliency(folder_root, tmp_path / "o", tmp_path / "bad.onnx"), "bad.onnx")
    two = model_file(tmp_path / "two.onnx", axes=2)
    assert_refused(saliency(folder_root, tmp_path / "o", two), "(1, 2, 32, 32)", "U2-Net")
    pairs = model_file(tmp_path / "pairs.onnx", first=(2, 3))
    assert_refused(saliency(folder_root, tmp_path / "o", pairs), "pairs.onnx", "one RGB image")
    fails = model_file(tmp_path / "fails.onnx", side="side", kernel_side=500)
    assert_refused(saliency(folder_root, tmp_path / "o", fails), "cannot run on (1, 3, 320, 320)")


def test_a_broken_photograph_is_skipped_on_demand(folder_dataset, tmp_path) -> None:
    model = model_file(tmp_path / "u2net.onnx")
    path = folder_dataset / "images" / "a1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    assert_refused(saliency(folder_dataset, tmp_path / "out", model), "a1.jpg")
    result = saliency(folder_dataset, tmp_path / "out", model, "--skip-bad-images")
    assert result.returncode == 0, result.stderr
    assert "1 of 8 images skipped" in result.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 7
