"""`python -m data.check`: lists every problem, exits with 2 when there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import open_catalog
from data.check import main
from data.saliency_maps import HALF, dark_saliency, require_saliency
from tool.formats.mask import palette
from tool.score.truth import no_foreground

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("WSSS_DATA", REPOSITORY.parent / "shared" / "data"))


def run(root: Path, *flags: str) -> tuple[int, dict]:
    """Exit status and JSON report."""
    path = root.parent / "report.json"
    status = main(["--dataset", "folder", "--root", str(root), "--json", str(path), *flags])
    return status, json.loads(path.read_text())


def test_a_whole_dataset_passes(folder_dataset: Path, capsys: pytest.CaptureFixture) -> None:
    status, report = run(folder_dataset, "--strict")
    assert status == 0
    assert report["problems"] == report["disagreements"] == report["notes"] == []
    assert report["images"] == 8
    assert report["sizes"] == {"smallest": [56, 56], "largest": [64, 80]}
    assert report["classes_an_image"] == {"0": 1, "1": 3, "2": 3, "3": 1}
    for name, count in (("disc", 4), ("square", 4), ("sky lark", 4)):
        row = report["classes"][name]
        assert (row["images_labelled"], row["images_in_masks"]) == (count, count)
        assert 0 < row["pixel_percent"] < 20
    text = capsys.readouterr().out
    for part in ("8 images", "56x56", "64x80", "sky lark", "problems: none"):
        assert part in text


def test_the_list_is_respected(folder_dataset: Path) -> None:
    assert run(folder_dataset, "--list", "val")[1]["images"] == 3


def test_all_problems_are_listed(folder_dataset: Path, capsys: pytest.CaptureFixture) -> None:
    root = folder_dataset
    (root / "images" / "a1.jpg").unlink()
    broken = root / "images" / "c5.jpg"
    broken.write_bytes(broken.read_bytes()[:400])
    (root / "masks" / "d6.png").unlink()
    Image.new("L", (5, 5)).save(root / "masks" / "b-4.png")
    Image.fromarray(np.full((56, 56), 9, np.uint8)).save(root / "masks" / "v1.2.x.png")
    (root / "saliency" / "my photo.png").write_bytes(b"no image")
    lines = (root / "labels.csv").read_text().splitlines(keepends=True)
    (root / "labels.csv").write_text("".join(line for line in lines if "empty" not in line))
    status, report = run(root)
    assert status == 2
    problems = report["problems"]
    expected = ["'a1'", "c5.jpg", "'d6'", "'b-4'", "class 9", "my photo.png", "'empty'"]
    for part in expected:
        assert sum(part in problem for problem in problems) == 1, part
    assert len(problems) == len(expected)
    text = capsys.readouterr().out
    assert all(problem in text for problem in problems)


def test_printing_is_cut_but_the_file_is_whole(
    folder_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    for path in (folder_dataset / "saliency").glob("*.png"):
        path.unlink()
    status, report = run(folder_dataset, "--show", "3")
    assert status == 2
    assert len(report["problems"]) == 8
    text = capsys.readouterr().out
    assert text.count("saliency map of") == 3
    assert "and 5 more" in text


def test_labels_are_held_against_masks(folder_dataset: Path) -> None:
    labels = folder_dataset / "labels.csv"
    labels.write_text(labels.read_text().replace("a1,disc", "a1,square;sky lark"))
    status, report = run(folder_dataset)
    assert status == 0
    assert report["disagreements"] == [
        "image 'a1': disc in its mask but not in its label",
        "image 'a1': square, sky lark in its label but not in its mask",
    ]
    assert report["classes"]["disc"] | {"pixel_percent": 0} == {
        "images_labelled": 3,
        "images_in_masks": 4,
        "pixel_percent": 0,
    }
    assert run(folder_dataset, "--strict")[0] == 2


def test_ignored_pixels_are_no_class_and_no_share(folder_dataset: Path) -> None:
    mask = np.full((64, 80), 255, np.uint8)
    mask[:4, :4] = 1
    Image.fromarray(mask).save(folder_dataset / "masks" / "a1.png")
    (folder_dataset / "lists" / "one.txt").write_text("a1\n")
    status, report = run(folder_dataset, "--list", "one", "--strict")
    assert status == 0
    assert report["classes"]["disc"]["pixel_percent"] == 100


def test_bad_labels_file_is_one_problem(folder_dataset: Path) -> None:
    (folder_dataset / "labels.csv").write_text("nonsense\n")
    status, report = run(folder_dataset)
    assert status == 2
    assert len(report["problems"]) == 1
    assert "header" in report["problems"][0]


def test_masks_and_saliency_are_optional_as_a_whole(folder_dataset: Path) -> None:
    (folder_dataset / "masks").rename(folder_dataset / "elsewhere")
    (folder_dataset / "saliency").rename(folder_dataset / "maps")
    status, report = run(folder_dataset)
    assert status == 0
    assert len(report["notes"]) == 2
    status, report = run(folder_dataset, "--saliency-root", str(folder_dataset / "maps"))
    assert status == 0
    assert len(report["notes"]) == 1


def test_saliency_of_zeros_and_ones_is_reported(folder_dataset: Path) -> None:
    for path in (folder_dataset / "saliency").glob("*.png"):
        with Image.open(path) as image:
            values = np.asarray(image)
        Image.fromarray((values > 127).astype(np.uint8)).save(path)
    status, report = run(folder_dataset)
    assert status == 2
    assert "not scaled" in report["problems"][0]


def test_a_user_error_is_one_line_and_status_2(folder_dataset: Path) -> None:
    command = [sys.executable, "-m", "data.check", "--dataset", "folder", "--root"]
    result = subprocess.run(
        [*command, str(folder_dataset), "--list", "nothing"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "nothing.txt" in result.stderr


@pytest.mark.skipif(not (REAL_DATA / "voc6").is_dir(), reason="no photographs here")
def test_real_photographs_pass(capsys: pytest.CaptureFixture) -> None:
    root = REAL_DATA / "voc6"
    assert main(["--dataset", "voc12", "--root", str(root), "--list", "val"]) == 0
    assert "120 images" in capsys.readouterr().out


def test_without_labels_a_note_says_what_can_train(folder_dataset: Path) -> None:
    (folder_dataset / "labels.csv").unlink()
    status, report = run(folder_dataset)
    assert status == 0
    assert any("labels" in note and "only methods" in note for note in report["notes"])


def test_what_the_stages_refuse_or_warn_of_is_said(
    folder_dataset: Path, capsys: pytest.CaptureFixture
) -> None:
    """Ground truth without a class, saliency that is not scaled, colours at other indices."""
    assert run(folder_dataset)[0] == 0
    colours = palette().copy()
    colours[[1, 2]] = colours[[2, 1]]
    for path in (folder_dataset / "masks").glob("*.png"):
        mask = Image.fromarray(np.where(np.array(Image.open(path)) > 0, 255, 0).astype(np.uint8))
        mask.putpalette(colours.tobytes())
        mask.save(path)
    status, report = run(folder_dataset)
    assert status == 2
    (problem,) = report["problems"]
    assert problem == no_foreground("masks", 3)
    dark = [path for path in (folder_dataset / "saliency").glob("*.png") if path.stem != "empty"]
    for path in dark:
        Image.fromarray(np.array(Image.open(path)) // 230).save(path)
    Image.new("L", (60, 60), HALF).save(folder_dataset / "saliency" / "empty.png")
    catalog = open_catalog("folder", folder_dataset)
    _, report = run(folder_dataset)
    with pytest.raises(ValueError, match="not scaled to 0") as error:
        require_saliency(catalog, catalog.ids("train"))
    assert str(error.value) in report["problems"]
    dark[0].unlink()  # an image without its map takes nothing from the others
    assert dark_saliency(catalog, HALF) in run(folder_dataset)[1]["problems"]
    mask = Image.open(folder_dataset / "masks" / "d6.png")
    values = np.array(mask)
    values[:5] = 1
    image = Image.fromarray(values)
    image.putpalette(colours.tobytes())
    image.save(folder_dataset / "masks" / "d6.png")
    capsys.readouterr()
    _, report = run(folder_dataset)
    assert no_foreground("masks", 3) not in report["problems"]
    (note,) = report["notes"]
    assert note.startswith("warning: ")
    assert "has the colour of class 2 at the value 1" in note
    assert note in capsys.readouterr().out.splitlines()


def test_maps_beyond_the_first_200_do_not_count(
    folder_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the stages, which look at no more."""
    for module in ("data.check", "data.saliency_maps"):
        monkeypatch.setattr(f"{module}.DARK_MAPS", 2)
    for name in ("a1", "2007_000032"):
        path = folder_dataset / "saliency" / f"{name}.png"
        Image.fromarray(np.array(Image.open(path)) // 230).save(path)
    assert any("not scaled" in line for line in run(folder_dataset)[1]["problems"])
    catalog = open_catalog("folder", folder_dataset)
    with pytest.raises(ValueError, match="not scaled"):
        require_saliency(catalog, catalog.ids("train"))
