"""A photograph taken upright by a phone: 12 megapixels, stored sideways. Its mask lies on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from runs import command, environment, run
from test_argmax import data

from tool.formats.mask import load_mask

LITE = "timm:tf_efficientnet_lite0"  # the default without a GPU
ON_CPU = ["--num-workers", 0, "--device", "cpu"]
PREDICT = "network/predict/__main__.py"
PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(kilobytes * (1024 if sys.platform == "linux" else 1))
sys.exit(done.returncode)
"""


def phone(path: Path) -> None:
    """Write a photograph of 12 megapixels, taken upright: stored sideways, orientation 6."""
    random = np.random.default_rng(0)
    ground = random.integers(90, 130, (500, 375, 3), dtype=np.uint8)  # upright
    ground[60:200, 40:230] = (220, 60, 40)
    upright = Image.fromarray(ground).resize((3000, 4000), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=90)
    with Image.open(path) as stored:
        assert stored.size == (4000, 3000)


@pytest.mark.slow
def test_a_phone_photograph_gets_a_mask_that_lies_on_it_in_4_gb(folder_root, tmp_path) -> None:
    """The mask is that of the same pixels stored upright: from `folder` data and from predict."""
    root = shutil.copytree(folder_root, tmp_path / "data")
    phone(root / "images" / "phone.jpg")
    with Image.open(root / "images" / "phone.jpg") as stored:
        stored.transpose(Image.Transpose.ROTATE_270).save(root / "images" / "turned.png")
    (root / "labels.csv").write_text("image_id,classes\nphone,disc\nturned,disc\n")
    (root / "lists" / "train.txt").write_text("phone\nturned\n")
    checkpoint = tmp_path / "run" / "checkpoint.pth"
    flags = ["--method", "cam", *data(root)[:4], "--out", checkpoint.parent, "--steps", 1]
    flags += ["--weights", "none", "--crop", 64, "--batch-size", 2, "--backbone", LITE]
    assert run("train_fbr.py", *flags, *ON_CPU, "--picture-every", 0).returncode == 0
    out, mask = tmp_path / "argmax", tmp_path / "mask.png"
    commands = [["infer_cam.py", *data(root), *ON_CPU, "--argmax", out, "--threshold", 0.5]]
    image = root / "images" / "phone.jpg"
    commands.append([PREDICT, image, "--out", tmp_path / "shown.png", "--mask", mask])
    commands[1] += ["--classes", "disc", "--bg-threshold", 0.5, "--device", "cpu"]
    for script, *more in commands:
        usage = [*command(script, *more), "--checkpoint", str(checkpoint)]
        peak = subprocess.run(
            [sys.executable, "-c", PEAK, *usage], env=environment(), capture_output=True, text=True
        )
        assert peak.returncode == 0, peak.stderr
        assert int(peak.stdout.split()[-1]) < 4e9
    one = load_mask(out / "phone.png")
    assert one.shape == (4000, 3000)
    assert len(np.unique(one)) == 2
    np.testing.assert_array_equal(one, load_mask(out / "turned.png"))
    np.testing.assert_array_equal(one, load_mask(mask))
