"""A run goes on with the data it began with: with a copy of them, and with no others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_folder
from PIL import Image
from runs import assert_refused, run, train_flags

from data.catalog import open_catalog
from data.fields import TRUTH
from data.identity import data_hashes
from tool.formats.checkpoint import load_checkpoint, save_checkpoint
from tool.infer.previous import PreviousOutputs
from tool.train.run_directory import DATA


def change_label(root: Path) -> None:
    labels = root / "labels.csv"
    labels.write_text(labels.read_text().replace("a1,disc", "a1,square"))


def change_photograph(root: Path) -> None:
    """Change what the file holds, and not its size."""
    path = root / "images" / "a1.jpg"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_pixel(folder: str) -> Callable[[Path], None]:
    """What changes one pixel of a map, and not the size of an uncompressed file."""

    def change(root: Path) -> None:
        path = root / folder / "a1.png"
        image = Image.open(path)
        image.putpixel((0, 0), 1)
        image.save(path)

    return change


CHANGES = {
    "labels_sha256": change_label,
    "photographs_sha256": change_photograph,
    "saliency_sha256": change_pixel("saliency"),
    "truth_sha256": change_pixel("masks"),
}
PREVIOUS = ("seed", "cam", "boundary")  # in folders of the dataset's root, for these tests
CHANGES |= {f"{key}_files_sha256": change_pixel(key) for key in ("seed", "boundary")}
INPUTS = ("image", "label", "saliency", "mask", *PREVIOUS)


def hashes(root: Path) -> dict[str, str]:
    """Of the dataset's own masks, which are the seeds and the boundary labels, too."""
    catalog = open_catalog("folder", root)
    for key in PREVIOUS:
        if not (root / key).exists():
            shutil.copytree(root / "masks", root / key)
    previous = PreviousOutputs({"mask": TRUTH, **{key: root / key for key in PREVIOUS}})
    ids = catalog.ids("train")
    return data_hashes(catalog, ids, INPUTS, with_masks=True, previous=previous)


@pytest.mark.parametrize("name", CHANGES)
def test_each_hash_says_what_changed(folder_dataset: Path, name: str) -> None:
    before = hashes(folder_dataset)
    assert before.keys() == DATA.keys() - {"mask_files_sha256"}  # they are the dataset's own
    CHANGES[name](folder_dataset)
    after = hashes(folder_dataset)
    assert [key for key in before if before[key] != after[key]] == [name]


def test_dates_and_places_do_not_count(folder_dataset: Path, tmp_path: Path) -> None:
    before = hashes(folder_dataset)
    shutil.copytree(folder_dataset, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
    assert hashes(tmp_path / "copy") == before


def test_names_count(folder_dataset: Path) -> None:
    catalog, images = open_catalog("folder", folder_dataset), folder_dataset / "images"
    shutil.copyfile(images / "a1.jpg", images / "twin.jpg")
    found = [data_hashes(catalog, [one], ("image",)) for one in ("a1", "twin")]
    (images / "a1.jpg").rename(images / "a1.jpeg")
    found.append(data_hashes(catalog, ["a1"], ("image",)))
    assert len({one["photographs_sha256"] for one in found}) == 3


def test_what_is_not_read_does_not_count(folder_dataset: Path) -> None:
    catalog = open_catalog("folder", folder_dataset)
    ids = catalog.ids("train")
    shutil.rmtree(folder_dataset / "saliency")
    (folder_dataset / "labels.csv").unlink()
    assert data_hashes(catalog, ids, ("image", "mask")).keys() == {"photographs_sha256"}


@pytest.mark.parametrize("name", ["labels_sha256", "photographs_sha256", "saliency_sha256"])
def test_other_data_do_not_resume(tmp_path: Path, name: str) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "out"
    flags = train_flags(root, out, method="eps", steps=1)
    assert run("train_fbr.py", *flags).returncode == 0
    before = (out / "checkpoint.pth").read_bytes()
    CHANGES[name](root)
    assert_refused(run("train_fbr.py", *flags), f"the {DATA[name]} of the list have changed")
    assert (out / "checkpoint.pth").read_bytes() == before


@pytest.mark.parametrize(("method", "key"), [("deeplab2", "mask"), ("amn", "seed")])
def test_files_that_somebody_has_changed_do_not_resume(method, key, tmp_path: Path) -> None:
    """Such as masks corrected by hand: the note in their folder is the same as before."""
    root, out, folder = write_folder(tmp_path / "data"), tmp_path / "out", tmp_path / "files"
    shutil.copytree(root / "masks", folder / "masks")
    folder = folder / "masks"
    (folder / "made_from.json").write_text('{"layout": "labelme"}')
    flags = [*train_flags(root, out, method=method, steps=1), f"--{key}-dir", folder]
    assert run("train_fbr.py", *flags).returncode == 0
    assert "complete" in run("train_fbr.py", *flags).stdout
    change_pixel("masks")(folder.parent)
    refused = run("train_fbr.py", *flags)
    assert_refused(refused, f"the {key}s (--{key}-dir) of the list have changed", "another --out")


def test_other_truth_does_not_resume(tmp_path: Path) -> None:
    root, out = write_folder(tmp_path / "data"), tmp_path / "out"
    flags = [*train_flags(root, out, method="deeplab2", steps=1), "--mask-dir", TRUTH]
    assert run("train_fbr.py", *flags).returncode == 0
    change_pixel("masks")(root)
    assert_refused(run("train_fbr.py", *flags), "the ground-truth masks of the list have changed")


def test_a_checkpoint_of_an_older_version_goes_on(folder_root: Path, tmp_path: Path) -> None:
    flags = train_flags(folder_root, tmp_path, method="cam", steps=1)
    assert run("train_fbr.py", *flags).returncode == 0
    content = load_checkpoint(tmp_path / "checkpoint.pth")
    for name in DATA:
        content["config"].pop(name, None)
    content["config"]["images_sha256"] = "of the sizes"
    save_checkpoint(tmp_path / "checkpoint.pth", content)
    assert "complete" in run("train_fbr.py", *flags).stdout


def test_one_rank_reads_the_files(folder_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.identity.file_hash", lambda _: pytest.fail("read by this rank"))
    monkeypatch.setattr("tool.parallel.dist.is_main", lambda: False)
    assert hashes(folder_root) is None  # without a group nothing is sent
