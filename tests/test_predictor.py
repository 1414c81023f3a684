"""`load(checkpoint).predict(image)` is the result of stages 2 and 3, from Python and torch.hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FOLDER_CLASSES, FOLDER_IMAGES
from method_cases import make_method
from PIL import ExifTags, Image
from runs import REPOSITORY, run

from network.predict.choose import region_id
from network.predict.predictor import SURE, Predictor, load
from tool.files import list_hash, write_json
from tool.formats.cam import load_cam
from tool.formats.checkpoint import save_checkpoint
from tool.formats.mask import load_mask, save_mask

SEEN = [name for name, (classes, _, _) in FOLDER_IMAGES.items() if classes]


def checkpoint(name: str, folder: Path) -> Path:
    """A run directory's checkpoint with random weights that give clear maps."""
    method = make_method(name, num_classes=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.ndim == 4 and parameter.shape[0] in (3, 4):  # the classifier's
                parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))
    config = {"method": name, "backbone": "resnet38d_slim", "output_stride": 8, "pretrained": False}
    config |= {"num_classes": 3, "class_names": list(FOLDER_CLASSES), "method_config": {}}
    config |= {"dataset": "folder", "list": "train", "list_sha256": list_hash([*FOLDER_IMAGES])}
    content = {"method": name, "model": method.state_dict(), "config": config, "step": 0}
    path = folder / "checkpoint.pth"
    write_json(folder / "config.json", {"config": config})  # makes it a run directory
    save_checkpoint(path, content)
    return path


def photograph(root: Path, name: str) -> Path:
    return root / "images" / f"{name}{FOLDER_IMAGES[name][2]}"


def stages(path: Path, root: Path, out: Path, *more: object) -> None:
    data = ["--dataset", "folder", "--root", root, "--list", "train", "--num-workers", 0]
    flags = ["--checkpoint", path, *data, "--device", "cpu", "--out", out / "cam", *more]
    done = run("infer_cam.py", *flags)
    assert done.returncode == 0, done.stderr
    flags = ["--cam-dir", out / "cam", *data[:-2], "--out", out / "mask", "--workers", 1]
    done = run("crf_postprocess.py", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cam", "eps", "ppc", "fbr", "deeplab1", "deeplab2"])
def test_a_mask_is_byte_for_byte_that_of_the_stages(
    name: str, folder_root, tmp_path, one_thread
) -> None:
    path = checkpoint(name, tmp_path / "run")
    stages(path, folder_root, tmp_path)
    predictor = load(path, device="cpu")
    assert (predictor.gate is not None) == (name == "fbr")
    values = set()
    for image_id in SEEN:
        classes = None if name.startswith("deeplab") else FOLDER_IMAGES[image_id][0]
        found = predictor.predict(photograph(folder_root, image_id), classes)
        theirs = tmp_path / "mask" / f"{image_id}.png"
        assert np.array_equal(found.mask, load_mask(theirs)), image_id
        save_mask(tmp_path / "ours.png", found.mask)
        assert (tmp_path / "ours.png").read_bytes() == theirs.read_bytes()
        cam = load_cam(tmp_path / "cam" / f"{image_id}.npy")
        assert np.array_equal(np.stack(list(found.cams.values())), cam.cam.astype(np.float32))
        values |= set(np.unique(found.mask).tolist())
    assert len(values) > 1, "masks with several values"


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return load(checkpoint("cam", tmp_path / "run"), device="cpu")


def test_paths_images_arrays_and_lists_are_one(predictor, folder_root, one_thread) -> None:
    path = photograph(folder_root, "my photo")
    image = Image.open(path)
    array = np.asarray(image.convert("RGB"))
    first = predictor.predict(path, ["disc", "square"])
    for source in (str(path), image, array):
        assert np.array_equal(predictor.predict(source, ["disc", "square"]).mask, first.mask)
    paths = [photograph(folder_root, name) for name in SEEN]
    named = [FOLDER_IMAGES[name][0] for name in SEEN]
    many = predictor.predict(paths, named)
    assert len(paths) >= 4, "enough for processes"
    for one, classes, found in zip(paths, named, many, strict=True):
        alone = predictor.predict(one, classes)
        assert np.array_equal(alone.mask, found.mask)
        assert found.classes == classes
        assert found.mask.shape == Image.open(one).size[::-1]
    assert predictor.predict([]) == []


def test_a_pil_image_is_turned_upright_as_its_file_is(predictor, folder_root, tmp_path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "turned.png"
    with Image.open(photograph(folder_root, "my photo")) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    found = predictor.predict(path, ["disc"])
    assert found.mask.shape == (48, 72)
    assert np.array_equal(predictor.predict(Image.open(path), ["disc"]).mask, found.mask)
    assert np.array_equal(
        found.maps.image, np.asarray(Image.open(photograph(folder_root, "my photo")))
    )


def test_seeds_of_several_photographs_are_one_each(folder_root, tmp_path) -> None:
    predictor = load(checkpoint("amn", tmp_path / "run"), device="cpu", gate="none")
    paths = [photograph(folder_root, name) for name in ("a1", "v1.2.x")]
    seeds = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, shape in zip(seeds, ((64, 80), (56, 56)), strict=True):
        save_mask(path, np.zeros(shape, np.uint8))
    found = predictor.predict(paths, [["disc"]] * 2, seed=seeds)
    assert [one.mask.shape for one in found] == [(64, 80), (56, 56)]
    with pytest.raises(ValueError, match="no seeds for 2 photographs"):
        predictor.predict(paths, [["disc"]] * 2, seed=seeds[:1])
    with pytest.raises(ValueError, match="no seeds for 2 photographs"):
        predictor.predict(paths, [["disc"]] * 2, seed=str(seeds[0]))
    with pytest.raises(FileNotFoundError, match=r"seed .*no\.png does not exist"):
        predictor.predict(paths[0], ["disc"], seed=tmp_path / "no.png")


def test_the_gate_knows_a_photograph_by_its_id_in_the_list() -> None:
    gate = SimpleNamespace(index={"cat/1": 0, "1": 1, "Müller 2": 2})
    assert region_id(Path("R/cat/1.jpg"), gate) == "cat/1"
    assert region_id(Path("R/dog/1.jpg"), gate) == "1"
    assert region_id(Path("/x/Mu\u0308ller 2.JPG"), gate) == "Müller 2"
    assert region_id(Path("/x/new.v2.jpg"), gate) == "new.v2"
    assert region_id(Path("/x/new.v2.jpg"), None) == "new.v2"


def test_without_classes_it_takes_those_of_which_it_is_sure(
    predictor, folder_root, monkeypatch
) -> None:
    path = photograph(folder_root, "d6")

    def predict(*probabilities: float):
        found = torch.tensor([probabilities])
        monkeypatch.setattr(predictor.method, "classify", lambda batch: found)
        return predictor.predict(path)

    found = predict(0.7, 0.2, SURE)
    assert found.classes == ("disc", "sky lark")
    assert not found.given
    assert found.scores == pytest.approx(dict(zip(FOLDER_CLASSES, (0.7, 0.2, 0.5), strict=True)))
    assert set(found.cams) == {"disc", "sky lark"}
    assert set(np.unique(found.mask)) <= {0, 1, 3}
    assert predict(0.1, 0.2, 0.05).classes == ("square",), "the likeliest one"
    given = predictor.predict(path, ["disc"])
    assert given.given
    assert given.classes == ("disc",)


def test_a_segmentation_network_needs_no_classes(folder_root, tmp_path) -> None:
    predictor = load(checkpoint("deeplab2", tmp_path), device="cpu")
    found = predictor.predict(photograph(folder_root, "a1"))
    assert found.classes == FOLDER_CLASSES
    assert found.scores == {}
    assert list(found.cams) == ["background", *FOLDER_CLASSES]


def test_a_large_photograph_is_reduced_and_its_mask_is_not(folder_root, tmp_path) -> None:
    predictor = load(checkpoint("cam", tmp_path), device="cpu", max_side=32)
    found = predictor.predict(photograph(folder_root, "a1"), ["disc"])
    assert found.mask.shape == (64, 80)
    assert found.cams["disc"].shape == (26, 32)


@pytest.mark.parametrize(("method", "key"), [("amn", "seed"), ("fbr_amn", "seed"), ("irn", "cam")])
def test_files_of_earlier_stages_are_given_or_asked_for(
    method: str, key: str, folder_root, tmp_path
) -> None:
    predictor = load(checkpoint(method, tmp_path / "run"), device="cpu", gate="none")
    path = photograph(folder_root, "a1")
    with pytest.raises(ValueError, match=f"reads the photograph's {key}: give {key}="):
        predictor.predict(path, ["disc"])
    if key == "seed":
        file = tmp_path / "mine.png"
        save_mask(file, np.zeros((64, 80), np.uint8))
    else:
        file = tmp_path / "mine.npy"
        stages(checkpoint("cam", tmp_path / "cam"), folder_root, tmp_path / "stages")
        file.write_bytes((tmp_path / "stages" / "cam" / "a1.npy").read_bytes())
    found = predictor.predict(path, ["disc"], **{key: file})
    assert found.mask.shape == (64, 80)
    assert list(found.cams) == ["disc"]
    with pytest.raises(ValueError, match="does not tell the classes"):
        predictor.predict(path, **{key: file})
    other = {"seed": "cam", "cam": "seed"}[key]
    with pytest.raises(ValueError, match=f"reads no {other}"):
        predictor.predict(path, ["disc"], **{key: file, other: file})


@pytest.mark.parametrize(
    ("image", "classes", "words"),
    [
        ("a1", ["zebra"], "unknown class 'zebra'"),
        ("a1", "disc", r"a list of names, such as \['disc'\]"),
        (np.zeros((4, 5), np.uint8), None, r"\(H, W, 3\) uint8"),
        (np.zeros((4, 5, 3)), None, r"\(H, W, 3\) uint8"),
        ("missing", None, "does not exist"),
    ],
)
def test_bad_calls_are_one_line(predictor, folder_root, image, classes, words: str) -> None:
    if isinstance(image, str):
        image = folder_root / "images" / f"{image}.jpg"
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        predictor.predict(image, classes)


HUB = """
import sys, torch
found = torch.hub.load(sys.argv[1], "predictor", source="local", checkpoint=sys.argv[2])
predicted = found.predict([sys.argv[3]] * 4, [["disc"]] * 4)
print(len(predicted), predicted[0].mask.shape, predicted[0].classes)
"""


def test_torch_hub_loads_it_from_any_folder_in_a_fresh_process(folder_root, tmp_path) -> None:
    path = checkpoint("cam", tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    program = tmp_path / "elsewhere" / "program.py"
    program.write_text(HUB + 'if __name__ != "__main__": raise SystemExit\n')
    program.write_text('if __name__ == "__main__":\n' + HUB.replace("\n", "\n    ").rstrip() + "\n")
    done = subprocess.run(
        [sys.executable, program, REPOSITORY, path, photograph(folder_root, "a1")],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("4 (64, 80) ('disc',)")
