"""`infer_cam.py --set`: hyper-parameters of inference, in place of those trained with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from method_cases import make_method
from PIL import Image
from runs import Result, assert_refused, run

from data.catalog import open_catalog
from network.methods import find_method
from network.options import inference_options
from tool.formats.cam import Cam, load_cam, save_cam
from tool.formats.checkpoint import save_checkpoint
from tool.formats.mask import load_mask


@pytest.fixture
def irn(tmp_path: Path, folder_dataset: Path) -> list[object]:
    """The flags of an IRN that walks CAMs of noise."""
    catalog = open_catalog("folder", folder_dataset)
    method = make_method("irn", num_classes=catalog.num_classes)
    config = {"method": "irn", "backbone": "resnet38d_slim", "output_stride": 8}
    config |= {"num_classes": catalog.num_classes, "class_names": list(catalog.class_names)}
    config |= {"pretrained": False, "method_config": {"beta": 10.0, "radius": 10}}
    content = {"method": "irn", "model": method.state_dict(), "config": config, "step": 1}
    save_checkpoint(tmp_path / "irn.pth", content)
    random = np.random.default_rng(0)
    for image_id in catalog.ids("train"):
        width, height = catalog.image_size(image_id)
        present = np.flatnonzero(catalog.label(image_id)) + 1
        maps = random.random((len(present), height, width), dtype=np.float32)
        save_cam(tmp_path / "cam" / f"{image_id}.npy", Cam(present, maps))
    data = ["--dataset", "folder", "--root", folder_dataset, "--cam-dir", tmp_path / "cam"]
    return ["--checkpoint", tmp_path / "irn.pth", *data, "--num-workers", 0, "--device", "cpu"]


def walk(flags: list[object], out: Path, *options: str) -> Result:
    return run("infer_cam.py", *flags, "--out", out, *(["--set", *options] if options else []))


def test_options_change_the_walk_and_belong_to_their_folder(irn, tmp_path) -> None:
    one, other = tmp_path / "trained", tmp_path / "short"
    for result in (walk(irn, one), walk(irn, other, "exponent=1")):
        assert result.returncode == 0, result.stderr
    spreads = [load_cam(folder / "a1.npy").cam.std() for folder in (one, other)]
    assert spreads[0] < spreads[1], "256 steps even out more than 2"
    assert_refused(walk(irn, other), "short")
    assert_refused(walk(irn, other, "beta=3"), "short")
    again = walk(irn, other, "exponent=01")
    assert again.returncode == 0, again.stderr


def test_show_takes_the_files_of_the_earlier_stage(irn, tmp_path, folder_dataset) -> None:
    shown = [folder_dataset / "images" / "a1.jpg", "--checkpoint", tmp_path / "irn.pth"]
    out = ["--out", tmp_path / "shown.png", "--device", "cpu"]
    assert_refused(run("network/predict/__main__.py", *shown, *out), "--cam-dir")
    shown += ["--cam-dir", tmp_path / "cam"]
    assert_refused(run("network/predict/__main__.py", *shown, *out), "--classes")
    mask, widths = tmp_path / "mask.png", []
    for more in ([], ["--max-side", 20]):
        flags = [*shown, "--classes", "disc", *more, "--mask", mask, *out]
        result = run("network/predict/__main__.py", *flags)
        assert result.returncode == 0, result.stderr
        with Image.open(tmp_path / "shown.png") as drawn, Image.open(shown[0]) as photograph:
            widths.append(drawn.width)
            assert load_mask(mask).shape == photograph.size[::-1]
    assert widths[1] < widths[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["radius=5"], "has walk_radius, beta, exponent, power"),
        (["nonsense=1"], "has walk_radius, beta"),
        (["beta"], "--set beta: give a value, as in beta=10.0"),
        (["beta=x"], "'x' is not a finite number"),
        (["exponent=1.5"], "'1.5' is not a whole number"),
        (["beta=-1"], "must be above 0"),
        (["beta=nan"], "beta is nan"),
        (["walk_radius=2000"], "is not in 2..50"),
        (["exponent=1", "--set", "exponent=8"], "given twice"),
    ],
)
def test_bad_options_are_refused(irn, tmp_path, options, reason) -> None:
    assert_refused(walk(irn, tmp_path / "out", *options), f"--set {options[0]}"[:15], reason)
    assert not (tmp_path / "out" / "a1.npy").exists()


def test_methods_without_such_options_say_so() -> None:
    with pytest.raises(ValueError, match="has no option that inference uses"):
        inference_options(find_method("cam").Config, ["beta=1"])
    assert inference_options(find_method("irn").Config, ["beta=5"]) == {"beta": 5.0}
