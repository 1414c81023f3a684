"""Mistakes of users: each ends in one line that says what is wrong and what to do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_voc
from PIL import Image
from runs import REPOSITORY, SMALL, environment, run

from data.catalog import open_catalog
from network.predict.choose import chosen_classes
from tool.crf.flags import CrfFlags, crf_settings
from tool.crf.masking import MaskMaker
from tool.crf.post import Post
from tool.files import atomic_path, write_json
from tool.formats.cam import load_cam
from tool.formats.checkpoint import load_checkpoint, save_checkpoint
from tool.formats.image import decode, size_of
from tool.formats.mask import save_mask
from tool.infer.previous import PreviousOutputs


def refusal(script: str, *flags: object) -> str:
    """The one line with which a command ends."""
    result = run(script, *flags)
    assert result.returncode == 2, result.stderr
    (line,) = [one for one in result.stderr.splitlines() if "warning: " not in one]
    assert ": error: " in line
    return line


@pytest.fixture
def data(folder_root: Path) -> list[object]:
    """The flags of a dataset that tests do not change."""
    return ["--dataset", "folder", "--root", folder_root]


def test_an_output_that_is_a_file_or_a_folder_is_said_so(data, folder_root, tmp_path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    fill = ["data/fill.py", *data, "--list", "train", "--out"]
    assert f"{taken}: File exists (a folder is needed, and this is a file)" in refusal(*fill, taken)
    assert "a part of this path is a file" in refusal(*fill, taken / "inner")
    score = ["eval_miou.py", *data, "--pred-dir", folder_root / "masks", "--json", tmp_path]
    assert f"{tmp_path}: Is a directory (a file is needed, and this is a folder)" in refusal(*score)


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".part-1-2-x.json"))

    monkeypatch.setattr("tool.files.tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError) as caught:
        write_json(tmp_path / "scores.json", {})
    assert caught.value.filename == tmp_path / "scores.json"
    monkeypatch.undo()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_path(tmp_path / "folder"):
        pass
    assert caught.value.filename == tmp_path / "folder"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "--steps: '0' is not a whole number from 1 to 1000000000"),
        (["--momentum", "2"], "--momentum: '2' is not a number of at least 0 and below 1"),
        (["--out", ""], "--out: the path is empty: write . for the current folder"),
        (["--tau", "7"], "--tau: '7' is not a number from 0 to 1"),
        (["--num-clusters", "0"], "--num-clusters: '0' is not a whole number from 1"),
        (["--bank-size", "0"], "--bank-size: '0' is not a whole number from 1"),
        (["--temperature", "0"], "--temperature: '0' is not a number from 0.03"),
    ],
)
def test_a_number_beyond_its_range_is_refused_by_its_flag(flags, words, data, tmp_path) -> None:
    assert words in refusal("train_fbr.py", *data, "--out", tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: it needs an image id per line"),
        (b"a1\na1\n", "has image 'a1' twice: remove one of the two lines"),
        ("a1".encode("utf-16"), "is not UTF-8 text (byte 0): save it as UTF-8"),
        (b"/home/me/a1.jpg\n", "it must stay in the dataset root, without a leading /"),
        (b"C:\\photos\\a1\n", "does not exist: write / in place of \\"),
    ],
)
def test_a_bad_list_is_named(content: bytes, words: str, folder_root, tmp_path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    catalog = open_catalog("folder", folder_root)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
        list(map(catalog.image_path, catalog.ids(str(path))))
    with pytest.raises(FileNotFoundError, match=r"is a folder: give a \.txt file"):
        catalog.ids(str(tmp_path))


def test_a_missing_list_names_the_command_that_makes_it(tmp_path: Path) -> None:
    catalog = open_catalog("voc12", write_voc(tmp_path / "VOC2012", "2007_000032"))
    with pytest.raises(FileNotFoundError, match=r"has train; python -m voc12\.prepare --root"):
        catalog.ids("train_aug")
    with pytest.raises(FileNotFoundError, match=r"has train$"):
        catalog.ids("trainaug")
    (tmp_path / "coco").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has none; python -m coco14\.prepare"):
        open_catalog("coco14", tmp_path / "coco").ids("train")
    with pytest.raises(FileNotFoundError, match=r"classes\.txt .*python -m data\.folder --root"):
        open_catalog("folder", tmp_path / "coco")
    with pytest.raises(FileNotFoundError, match=r"pass --labels FILE; python -m voc12\.prepare"):
        catalog.label("2007_000032")


def test_a_wrong_root_is_told_from_a_missing_one(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC2012", "2007_000032")
    (root / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        open_catalog("voc12", root / "file")
    with pytest.raises(FileNotFoundError, match=f"pass --root {root}$"):
        open_catalog("voc12", tmp_path)
    words = ["holds files that are not the toy dataset", "--dataset folder, voc12 or coco14"]
    line = refusal("data/check.py", "--root", root)
    assert all(one in line for one in words)
    line = refusal("voc12/prepare.py", "--root", root / "JPEGImages")
    assert "has no ImageSets/Segmentation/train.txt: give the folder VOC2012" in line


def test_a_photograph_of_a_format_that_is_not_read_is_named(folder_dataset: Path) -> None:
    (folder_dataset / "images" / "x.HEIC").write_text("")
    catalog = open_catalog("folder", folder_dataset)
    with pytest.raises(FileNotFoundError, match=r"x\.HEIC has a format .* save it as JPEG or PNG"):
        catalog.image_path("x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image_id,classes\na1,dsic\n", "unknown class 'dsic' (is disc meant?); there are disc"),
        ("image_id,classes\na1,Disc\n", "unknown class 'Disc' (is disc meant?)"),
        ('image_id,classes\na1,"disc,square"\n', "'disc,square' (separate classes by ;)"),
        ("image_id\tclasses\n", "header 'image_id,classes', not with 'image_id\\tclasses'"),
        ("image_id,classes\na1,disc\na1,disc\n", "a second time: remove one of the rows"),
    ],
)
def test_bad_labels_say_what_to_write(text: str, words: str, folder_dataset: Path) -> None:
    (folder_dataset / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        open_catalog("folder", folder_dataset).label("a1")


def test_a_folder_without_annotations_is_no_labels(folder_root: Path) -> None:
    catalog = open_catalog("folder", folder_root, labels=folder_root / "images")
    with pytest.raises(FileNotFoundError, match=r"is a folder without \.xml files \(--labels\)"):
        catalog.label("a1")


def test_columns_and_classes_may_both_be_separated_by_semicolons(folder_dataset: Path) -> None:
    (folder_dataset / "labels.csv").write_text("image_id;classes\na1;disc;square\nc5;disc\n")
    catalog = open_catalog("folder", folder_dataset)
    assert catalog.label("a1").tolist() == [1, 1, 0]
    assert catalog.label("c5").tolist() == [1, 0, 0]


def test_labels_of_photographs_that_are_not_there_name_their_file(folder_dataset: Path) -> None:
    (folder_dataset / "lists" / "train.txt").unlink()
    (folder_dataset / "labels.csv").write_text("image_id,classes\na1.jpg,disc\n")
    line = refusal("data/folder.py", "--root", folder_dataset, "--overwrite")
    assert "labels.csv: image of 'a1.jpg' does not exist: drop the suffix" in line


def test_class_folders_that_cannot_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "cat;dog").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "cat;dog" / "1.png")
    line = refusal("data/folder.py", "--root", tmp_path)
    assert f"{tmp_path}: 'cat;dog' is not a possible name" in line
    assert "choose one without ; that is not background" in line


def test_coco_numbers_may_be_text(tmp_path: Path) -> None:
    label = np.zeros(80, np.float32)
    names = {"000000000042": label, "COCO_train2014_000000000009": label}
    np.save(tmp_path / "labels.npy", np.array(names, dtype=object), allow_pickle=True)
    catalog = open_catalog("coco14", tmp_path, labels=tmp_path / "labels.npy")
    assert catalog.has_label("COCO_val2014_000000000042")
    assert catalog.has_label("COCO_train2014_000000000009")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"hello", "is broken or no image: JPEG, PNG, WebP, BMP and TIFF are read"),
        (b"", "is broken or no image: it is empty"),
        (b"GIF89a" + bytes(50), "JPEG, PNG, WebP, BMP and TIFF are read"),
    ],
)
def test_a_file_that_is_no_image_says_what_is_read(content, words, folder_dataset) -> None:
    path = folder_dataset / "images" / "a1.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)):
        open_catalog("folder", folder_dataset).read_image("a1")
    flags = [
        "--dataset",
        "folder",
        "--root",
        folder_dataset,
        "--pred-dir",
        folder_dataset / "masks",
    ]
    line = refusal("data/masks_to.py", "coco", *flags, "--out", folder_dataset / "x.json")
    assert line.endswith("(--skip-bad-images leaves such images out)")


def test_a_large_or_unreadable_image_is_not_called_broken(folder_root, monkeypatch) -> None:
    monkeypatch.setenv("FBR_MAX_PIXELS", "10")
    path = folder_root / "images" / "a1.jpg"
    for read in (size_of, lambda one: decode(one, "RGB")):
        with pytest.raises(ValueError, match=r"a1\.jpg: it has 80x64 pixels, more than 10"):
            read(path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tool.formats.image.Image.open", refuse)
    with pytest.raises(ValueError, match=r"a1\.jpg cannot be read: Permission denied"):
        size_of(path)


@pytest.mark.parametrize(
    ("photographs", "flags", "words"),
    [
        (["a.png"], ["--out", "x.jpg"], "--out x.jpg: it is a PNG, so its name ends in .png"),
        (["a.png"], ["--mask", "m.JPG"], "--mask m.JPG: it is a PNG"),
        (["a.png"], ["--mask", "./a.png"], "a.png is the photograph: choose another name"),
        (["a.png"], ["--out", "a.png"], "a.png is the photograph: choose another name"),
        (["a.png"], ["--out", "b.png", "--mask", "b.png"], "are one file"),
    ],
)
def test_no_result_replaces_a_photograph(photographs, flags, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in photographs:
        Image.new("RGB", (4, 4)).save(name)
    line = refusal("network/predict/__main__.py", *photographs, "--checkpoint", "x.pth", *flags)
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == photographs


def test_a_class_with_a_typing_error_names_the_one_that_is_meant() -> None:
    for wanted, words in (("cta", "(is cat meant?)"), ("cat,dog", "(separate names by spaces)")):
        with pytest.raises(ValueError, match=re.escape(f"{words}: there are cat, dog")):
            chosen_classes([wanted], ["cat", "dog"])
    with pytest.raises(ValueError, match="unknown class 'zebra': there are cat, dog"):
        chosen_classes(["zebra"], ["cat", "dog"])


def test_an_unknown_flag_names_the_one_that_is_meant() -> None:
    line = refusal("data/fill.py", "--out", "x", "--rooot", "y")
    assert line.endswith("arguments: --rooot y (is --root meant?) (--help lists the flags)")
    bare = ["train_fbr.py", "--out", "x"]
    assert "--learning-rate .1 (is --lr meant?)" in refusal(*bare, "--learning-rate", ".1")
    assert "(is --out meant?)" in refusal("data/fill.py", "--out", "x", "--output_dir=x")
    assert "is --lr" not in refusal("data/fill.py", "--out", "x", "--learning-rate=1"), (
        "it has no such flag"
    )
    assert "meant" not in refusal("data/fill.py", "--out", "x", "--zzz=1")
    assert "meant" not in refusal("data/fill.py", "--out", "x", "y")


def test_a_checkpoint_that_is_damaged_or_no_file_is_named(data, tmp_path) -> None:
    path = tmp_path / "checkpoint.pth"
    save_checkpoint(
        path, {"method": "cam", "config": {}, "model": {"w": torch.ones(999)}, "step": 1}
    )
    whole = bytearray(path.read_bytes())
    place = whole.index(np.float32(1).tobytes() * 99)
    whole[place : place + 4] = np.float32(2).tobytes()
    for content in (bytes(whole), whole[:999], b"hello", b""):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"damaged, cut off or compressed.*; copy or download it again"
        ):
            load_checkpoint(path)
    infer = ["infer_cam.py", *data, "--out", tmp_path / "cam", "--checkpoint"]
    assert "is a folder: give the checkpoint.pth in it" in refusal(*infer, tmp_path)
    out = ["train_fbr.py", *data, *SMALL, "--method", "cam", "--steps", "1", "--out", tmp_path]
    assert "or remove it, and the run starts anew" in refusal(*out)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", ""], "--weights: the value is empty"),
        (["--weights", "no.pth"], "no.pth do not exist: give a file, `imagenet` or `pypi`"),
        (["--weights", "none", "--init", "no.pth"], "--init no.pth does not exist"),
        (["--weights", "none", "--init", "."], "--init . is a folder, give the file"),
        (["--backbone", "resnet38"], "unknown backbone 'resnet38': there are"),
    ],
)
def test_weights_that_are_not_there_are_named(flags, words, data, tmp_path) -> None:
    train = ["train_fbr.py", *data, "--method", "cam", "--list", "train", "--out", tmp_path / "run"]
    assert words in refusal(*train, *flags)


def test_a_gate_needs_a_trained_network(data, tmp_path) -> None:
    gate = ["infer_cam.py", *data, "--method", "gate", "--out", tmp_path / "cam"]
    assert "--weights none: the gate needs a trained" in refusal(*gate, "--weights", "none")


def test_a_file_that_is_no_cam_says_what_is_wrong(tmp_path) -> None:
    path = tmp_path / "a.npy"
    np.savez(tmp_path / "a.npz", np.ones(3))
    cases = {
        b"": "it is empty",
        b"hello": "it has another format",
        (tmp_path / "a.npz").read_bytes(): "it is a .npz or another zip archive",
        np.lib.format.magic(1, 0): "EOF",
    }
    for content, words in cases.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.npy: refused, no whole \.npy file.*{words}"):
            load_cam(path)
    np.save(path, np.ones((2, 4, 4), np.float32))
    with pytest.raises(
        ValueError, match=r"not a CAM file: it does not say of which classes .*help"
    ):
        load_cam(path)
    np.save(path, np.array({"1": np.ones((4, 4))}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a dictionary with keys '1' is no CAM; python -m data"):
        load_cam(path)


def write_masks(folder: Path, root: Path, value: int) -> Path:
    """Masks of one value for the images of the dataset."""
    for image_id in open_catalog("folder", root).ids("train"):
        with Image.open(root / "masks" / f"{image_id}.png") as truth:
            save_mask(folder / f"{image_id}.png", np.full_like(np.array(truth), value))
    return folder


@pytest.mark.parametrize("value", [0, 255])
def test_masks_without_a_class_are_warned_about(value, data, folder_root, tmp_path, capsys) -> None:
    masks = write_masks(tmp_path / "masks", folder_root, value)
    result = run("eval_miou.py", *data, "--list", "train", "--pred-dir", masks)
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1].endswith(f"in {masks} has a pixel of a class")
    ids = open_catalog("folder", folder_root).ids("train")
    PreviousOutputs({"seed": masks}).require(("seed",), ids)
    assert f"warning: the seeds in {masks} have no pixel of a class" in capsys.readouterr().err
    PreviousOutputs({"seed": folder_root / "masks"}).require(("seed",), ids)
    assert "no pixel of a class" not in capsys.readouterr().err


def test_a_folder_that_a_method_does_not_read_is_warned_about(capsys) -> None:
    previous = PreviousOutputs({"seed": Path("x"), "cam": Path("y")})
    previous.warn_of_unread(("image", "label", "cam"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: --seed-dir has no effect: this method reads no seeds here"


def test_flags_of_masks_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="without a CRF: give no --alpha with it"):
        CrfFlags(threshold=0.3, alpha=4).refuse_unused()
    settings = crf_settings(CrfFlags(seeds=[0.05, 0.3]), Post())
    with pytest.raises(ValueError, match=r"FG 0\.05 BG 0\.3: give FG first, and BG not above it"):
        MaskMaker(**settings)


def test_an_archive_that_is_none_is_said_so(tmp_path) -> None:
    root = write_voc(tmp_path / "VOC2012", "2007_000032")
    archive = tmp_path / "results.tar"
    archive.write_text("hello")
    line = refusal("voc12/submit.py", archive, "--root", root, "--list", "train")
    assert line.endswith("is not a valid archive: it is no tar file, or its beginning is damaged")


def test_results_do_not_replace_the_dataset(data, folder_dataset) -> None:
    own = ["--dataset", "folder", "--root", folder_dataset, "--list", "train"]
    before = (folder_dataset / "masks" / "a1.png").read_bytes()
    for command in (
        ["data/fill.py", *own, "--out", folder_dataset / "masks"],
        ["data/masks_from.py", "labelme", folder_dataset, *own, "--out", folder_dataset / "masks"],
        ["data/boundary.py", *own, "--seed-dir", "x", "--out", folder_dataset / "saliency"],
    ):
        assert "has files of the dataset: choose another folder" in refusal(*command)
    assert (folder_dataset / "masks" / "a1.png").read_bytes() == before


def test_corrected_masks_of_another_kind_of_file_are_named(data, folder_root, tmp_path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    back = ["data/masks_from.py", *data, "--out", tmp_path / "out"]
    assert f"{file}: the layout labelme is a folder" in refusal(*back, "labelme", file)
    for layout in ("coco", "cvat"):
        assert f"the layout {layout} is a file" in refusal(*back, layout, tmp_path)
    line = refusal(*back, "labelme", tmp_path, "--rest", tmp_path / "no")
    assert f"--rest {tmp_path / 'no'} is no folder" in line


def test_a_resumed_run_names_what_differs(folder_dataset, tmp_path) -> None:
    run_it = ["train_fbr.py", "--dataset", "folder", "--root", folder_dataset, "--method", "eps"]
    run_it += ["--list", "train", *SMALL, "--steps", "1", "--out", tmp_path / "run"]
    assert run(*run_it).returncode == 0
    line = refusal(*run_it, "--tau", "0.3")
    assert "with method_config = {'tau': 0.4}, this run has method_config = {'tau': 0.3}:" in line
    lists = folder_dataset / "lists"
    (lists / "other.txt").write_text("".join((lists / "train.txt").read_text().split("\n")[0]))
    line = refusal(*run_it, "--list", "other", "--lr", "0.5")
    assert "was made with list = 'train', lr = " in line
    assert ", this run has list = 'other', lr = 0.5: use" in line
    path = folder_dataset / "lists" / "train.txt"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert "the image list has changed since" in refusal(*run_it)


def test_photographs_behind_the_classes_are_asked_for() -> None:
    line = refusal("network/predict/__main__.py", "--checkpoint", "x", "--classes", "cow", "a.jpg")
    assert "give photographs, before --classes, which takes all words behind it" in line


def test_a_folder_in_place_of_an_archive_or_a_config_is_said_so(data, tmp_path) -> None:
    line = refusal("tool/pack.py", "--check", tmp_path)
    assert line.endswith(f"{tmp_path} is a folder, give the archive")
    line = refusal("train_fbr.py", "--config", tmp_path, "--out", tmp_path / "x")
    assert f"{tmp_path} is a folder: give the config.json of a run" in line


def test_masks_are_not_written_among_the_cams(data, tmp_path) -> None:
    same = tmp_path / "x" / ".."
    line = refusal("crf_postprocess.py", *data, "--cam-dir", tmp_path, "--out", same)
    assert "is the folder of the CAMs: choose another" in line


@pytest.mark.parametrize("program", ["tool.report.gate", "data.check"])
def test_a_reader_that_goes_away_is_no_error(program: str, folder_root: Path) -> None:
    """As behind `| head`."""
    flags = sorted(map(str, (REPOSITORY / "docs/results/gate/voc6").glob("*.json")))
    if program == "data.check":
        flags = ["--dataset", "folder", "--root", str(folder_root), "--list", "train"]
    command = [sys.executable, "-u", "-m", program, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), **pipes) as process:
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGPIPE, said
    assert "rror" not in said
