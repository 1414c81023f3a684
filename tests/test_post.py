"""How maps become masks: a method's `Recipe.post` travels with its CAMs to stages 3 and 4."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_IMAGES
from method_cases import METHODS
from runs import assert_refused, run

from network.methods import find_method
from tool.crf.dense import PRESETS
from tool.crf.post import Post, post_of
from tool.formats.cam import Cam, save_cam
from tool.formats.mask import load_mask
from tool.provenance import POST, claim, fingerprint, note_of

MADE = {"checkpoint_sha256": "0" * 64, "scales": [1.0]}


@pytest.fixture
def cams(tmp_path: Path, folder_dataset: Path) -> Path:
    """CAMs of the whole dataset, a slope from 0 to 1 for each class."""
    for image_id in FOLDER_IMAGES:
        truth = load_mask(folder_dataset / "masks" / f"{image_id}.png")
        index = np.unique(truth[truth > 0])
        slope = np.linspace(0, 1, truth.shape[1], dtype=np.float32)
        maps = np.broadcast_to(slope, (len(index), *truth.shape))
        save_cam(tmp_path / "cam" / f"{image_id}.npy", Cam(index, np.ascontiguousarray(maps)))
    return tmp_path / "cam"


def stage_3(root: Path, cams: Path, out: Path, *flags: object) -> dict:
    base = ["--dataset", "folder", "--root", root, "--list", "train", "--cam-dir", cams]
    result = run("crf_postprocess.py", *base, "--out", out, "--workers", 1, *flags)
    assert result.returncode == 0, result.stderr
    return json.loads((out / "crf.json").read_text())


def test_the_settings_of_a_method_are_the_defaults_of_stages_3_and_4(
    folder_dataset, cams, tmp_path
) -> None:
    post = Post(preset=None, threshold=0.6, alpha=3.0, seeds=(0.8, 0.2))
    claim(cams, MADE, remarks={POST: post.as_note()})
    assert post_of(cams) == post
    assert stage_3(folder_dataset, cams, tmp_path / "mask")["threshold"] == 0.6
    width = FOLDER_IMAGES["a1"][1][0]
    mask = load_mask(tmp_path / "mask" / "a1.png")
    assert (mask > 0).all(axis=0).tolist() == (np.linspace(0, 1, width) > 0.6).tolist()
    assert stage_3(folder_dataset, cams, tmp_path / "seed", "--seeds")["seed"] == [0.8, 0.2]
    won = stage_3(folder_dataset, cams, tmp_path / "own", "--seeds", 0.5, 0.1)
    assert won["seed"] == [0.5, 0.1]
    crf = stage_3(folder_dataset, cams, tmp_path / "crf", "--preset", "dlv2")
    assert crf["alpha"] == 3.0
    assert crf["preset"]["crf"]["bilateral_sxy"] == 67
    scores = tmp_path / "miou.json"
    base = ["--dataset", "folder", "--root", folder_dataset, "--pred-dir", cams, "--json", scores]
    for flags, expected in (((), 0.6), (("--bg-threshold", 0.1), 0.1)):
        assert run("eval_miou.py", *base, *flags).returncode == 0
        assert json.loads(scores.read_text())["protocol"]["bg_threshold"] == expected


def test_foreign_cams_get_those_of_fbr(folder_dataset, cams, tmp_path) -> None:
    fbr = dataclasses.replace(find_method("fbr").recipe.post, gate="none")
    assert post_of(cams) == Post() == fbr
    note = stage_3(folder_dataset, cams, tmp_path / "mask")
    assert note["preset"]["crf"] == vars(PRESETS["fbr80"].crf)
    assert note["alpha"] == 8.0
    base = ["--dataset", "folder", "--root", folder_dataset, "--pred-dir", cams]
    scores = tmp_path / "miou.json"
    assert run("eval_miou.py", *base, "--json", scores).returncode == 0
    assert json.loads(scores.read_text())["protocol"]["bg_threshold"] == 0.22


def test_the_settings_are_no_part_of_the_origin(tmp_path) -> None:
    """A folder of an older version has none: a restart goes on there and adds them."""
    claim(tmp_path, MADE)
    before = fingerprint(tmp_path)
    claim(tmp_path, MADE, remarks={POST: Post(alpha=2.0).as_note()})
    assert post_of(tmp_path).alpha == 2.0
    assert fingerprint(tmp_path) == note_of(tmp_path) == before == MADE
    claim(tmp_path, MADE, remarks={POST: Post(alpha=3.0).as_note()})
    assert post_of(tmp_path).alpha == 3.0
    with pytest.raises(ValueError, match="another scales"):
        claim(tmp_path, MADE | {"scales": [2.0]}, remarks={POST: Post().as_note()})


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_of_every_method_travel(name: str, tmp_path: Path) -> None:
    post = find_method(name).recipe.post
    claim(tmp_path, MADE, remarks={POST: post.as_note()})
    assert post_of(tmp_path) == post


@pytest.mark.parametrize(
    ("post", "word"),
    [
        ({"preset": "psa81"}, "psa80"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": True}, "alpha"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"iterations": 0}, "iterations"),
        ({"seeds": [0.1, 0.3]}, "seeds"),
        ({"seeds": [0.3]}, "seeds"),
        ({"seeds": 0.3}, "settings"),
        ({"unknown": 1}, "unknown"),
        ([1], "settings"),
    ],
)
def test_damaged_settings_are_one_line(folder_dataset, cams, tmp_path, post, word: str) -> None:
    (cams / "made_from.json").write_text(json.dumps({**MADE, "post": post}))
    base = ["--dataset", "folder", "--root", folder_dataset]
    out = ["--cam-dir", cams, "--out", tmp_path / "mask"]
    assert_refused(run("crf_postprocess.py", *base, *out), word, str(cams))
    assert_refused(run("eval_miou.py", *base, "--pred-dir", cams), word, str(cams))


@pytest.mark.parametrize("numbers", [[0.3], [0.3, 0.2, 0.1]])
def test_seeds_take_two_numbers_or_none(folder_dataset, cams, tmp_path, numbers) -> None:
    base = ["--dataset", "folder", "--root", folder_dataset, "--cam-dir", cams]
    result = run("crf_postprocess.py", *base, "--out", tmp_path / "seed", "--seeds", *numbers)
    assert_refused(result, "--seeds takes FG and BG")


def test_a_bare_seed_flag_is_refused_on_a_folder_of_an_older_version(
    folder_dataset, cams, tmp_path
) -> None:
    claim(cams, MADE)
    base = ["--dataset", "folder", "--root", folder_dataset, "--cam-dir", cams]
    bare = run("crf_postprocess.py", *base, "--out", tmp_path / "seed", "--seeds")
    assert_refused(bare, "older version", "--seeds FG BG")
    assert stage_3(folder_dataset, cams, tmp_path / "mask")["alpha"] == 8.0
    assert stage_3(folder_dataset, cams, tmp_path / "seed", "--seeds", 0.3, 0.05)["alpha"] == 8.0


def test_converted_to_a_background_row_seeds_are_factors_on_it(
    folder_dataset, cams, tmp_path
) -> None:
    claim(cams, MADE, remarks={POST: Post(alpha=3.0, seeds=(0.4, 0.1)).as_note()})
    for layout, seeds in (("sfc", (1.0, 0.5)), ("irn", (0.4, 0.1))):
        flags = ["--cam-dir", cams, "--out", tmp_path / layout, "--to", layout]
        flags += ["--dataset", "folder", "--root", folder_dataset]
        result = run("data/convert_cams.py", *flags)
        assert result.returncode == 0, result.stderr
        assert post_of(tmp_path / layout) == Post(alpha=3.0, seeds=seeds)
