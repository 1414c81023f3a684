"""`python -m data.report`: what it measures, which images come first, and what it does without."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import FOLDER_IMAGES
from report_runs import catalog_of, write_run
from runs import assert_refused, run

import tool.report.html
from data.report import in_threads
from tool.formats.mask import save_mask
from tool.parallel.processes import cores
from tool.report.chart import Curve, chart, thinned, ticks
from tool.report.html import Page, Row, write_page
from tool.report.measure import Measures, measure
from tool.report.picture import heat_colours
from tool.report.run import file_minutes, open_run


def report(*flags: object) -> str:
    """Make a report with no complaint; return what it printed."""
    result = run("data/report.py", *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


def content(path: Path) -> tuple[dict, list[dict]]:
    """The data of a page: the report, and the pictures."""
    text = path.read_text(encoding="utf-8")
    found = dict(re.findall(r'<script type="application/json" id="([^"]+)">(.*)</script>', text))
    pictures = [json.loads(found[f"picture-{i}"]) for i in range(len(found) - 1)]
    return json.loads(found["report"]), pictures


def test_a_run_with_truth_is_measured_and_every_image_is_there(folder_root, tmp_path) -> None:
    out = write_run(folder_root, tmp_path / "run", shift=4, plain=True)
    printed = report(out)
    assert "8 images, 8 of them with pictures" in printed
    found, pictures = content(out / "report.html")
    assert len(pictures) == 8
    rows = {row["id"]: row for row in found["rows"]}
    assert list(rows) == list(FOLDER_IMAGES)
    assert rows["d6"]["score"] == [0.0]
    assert rows["empty"]["score"] == [1.0]
    for image_id, (classes, _, _) in FOLDER_IMAGES.items():
        assert [found["classes"][c] for c in rows[image_id]["classes"]] == list(classes)
    assert found["scored"]
    shown = pictures[rows["a1"]["picture"]]
    assert (shown["w"], shown["h"]) == (256, 205)
    assert {"class", "map", "plain", "gate"} == set(shown["runs"][0]["cams"][0])
    assert pictures[0] == pictures[rows["d6"]["picture"]], "the worst image comes first"


def test_pictures_of_the_worst_images_only(folder_root, tmp_path) -> None:
    out = write_run(folder_root, tmp_path / "run", shift=4)
    report(out, "--pictures", 2)
    found, pictures = content(out / "report.html")
    assert len(pictures) == 2
    with_pictures = {row["id"] for row in found["rows"] if row["picture"] is not None}
    worst = sorted(found["rows"], key=lambda row: row["score"][0])[:2]
    assert with_pictures == {row["id"] for row in worst}


def test_ten_thousand_images_are_read_a_few_at_a_time() -> None:
    started, ahead = [], []

    def picture(number: int) -> int:
        started.append(number)
        return number

    for done, number in enumerate(in_threads(picture, range(10_000), "pictures")):
        assert number == done
        ahead.append(len(started) - done)
    assert max(ahead) <= 4 * cores()


def test_the_rows_of_ten_thousand_images_leave_room_for_pictures(tmp_path: Path) -> None:
    iou = dict.fromkeys((3, 8, 15), 1 / 3)
    measures = Measures(iou=iou, wrong=1 / 3, saliency=2 / 3, crf=1 / 7, found=(3, 8, 15))
    rows = [Row(f"2008_{n:06d}", [3, 8, 15], [measures] * 2, [1 / 3]) for n in range(10_000)]
    parts = dict.fromkeys(("tiles", "runs", "facts", "classes", "sweep", "training"), "")
    page = Page("title", "lead", parts, [{"name": "a", "gated": True}] * 2, ["cat"] * 20, "")
    pictures = ((row, {"image": "x" * 40_000}) for row in rows)
    count = write_page(tmp_path / "page.html", page, rows, pictures)
    assert count >= 300
    assert (tmp_path / "page.html").stat().st_size < 20_000_000


def test_the_size_of_a_page_is_limited(folder_root, tmp_path, monkeypatch) -> None:
    out = write_run(folder_root, tmp_path / "run")
    report(out)
    whole = (out / "report.html").stat().st_size
    monkeypatch.setattr(tool.report.html, "LARGEST", whole - 100)
    report(out)
    found, pictures = content(out / "report.html")
    assert (out / "report.html").stat().st_size < whole - 100
    assert 0 < len(pictures) < len(found["rows"]) == 8


def test_other_runs_are_compared_on_the_same_images(folder_root, tmp_path) -> None:
    one = write_run(folder_root, tmp_path / "a" / "run")
    other = write_run(folder_root, tmp_path / "b" / "run", shift=6)
    shutil.copy(one / "mask" / "c5.png", other / "mask" / "c5.png")
    (other / "mask" / "b-4.png").unlink()
    masks = tmp_path / "third"
    shutil.copytree(one / "mask", masks)
    report(one, "--compare", other, masks, "--out", tmp_path / "page.html")
    found, pictures = content(tmp_path / "page.html")
    assert [r["name"] for r in found["runs"]] == ["a/run", "b/run", f"{tmp_path.name}/third"]
    rows = {row["id"]: row for row in found["rows"]}
    assert rows["c5"]["differ"] == [0.0, 0.0]
    assert rows["b-4"]["differ"] == [None, 0.0]
    assert rows["a1"]["differ"][0] > 0
    assert pictures[rows["b-4"]["picture"]]["runs"][1] is None


@pytest.mark.parametrize("left", ["saliency", "nothing"])
def test_without_truth_images_come_by_what_is_known(folder_dataset, tmp_path, left) -> None:
    out = write_run(folder_dataset, tmp_path / "run")
    catalog = catalog_of(folder_dataset)
    lost = catalog.read_mask("my photo")
    save_mask(out / "mask" / "my photo.png", np.zeros_like(lost))  # the CAM is still there
    shutil.rmtree(folder_dataset / "masks")
    if left == "nothing":
        shutil.rmtree(folder_dataset / "saliency")
    report(out)
    found, pictures = content(out / "report.html")
    assert not found["scored"]
    rows = {row["id"]: row for row in found["rows"]}
    value = "saliency" if left == "saliency" else "crf"
    worst = max(found["rows"], key=lambda row: row[value][0] or 0)
    assert worst["id"] in ("my photo", "d6")
    assert pictures[0] == pictures[worst["picture"]]
    assert (pictures[0]["saliency"] is not None) == (left == "saliency")
    assert rows["a1"]["score"] == [None]
    assert "not scored" in (out / "report.html").read_text()


def test_names_are_text_and_nothing_is_loaded(folder_dataset, tmp_path) -> None:
    hostile = "</script><script>alert(1)</script>&"
    names = (folder_dataset / "classes.txt").read_text().replace("disc", hostile)
    (folder_dataset / "classes.txt").write_text(names)
    labels = (folder_dataset / "labels.csv").read_text().replace("disc", hostile)
    (folder_dataset / "labels.csv").write_text(labels)
    out = write_run(folder_dataset, tmp_path / "run")
    report(out)
    text = (out / "report.html").read_text()
    assert "alert(1)</script>" not in text
    assert content(out / "report.html")[0]["classes"][1] == hostile
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in text


def test_mistakes_get_one_line(folder_dataset, tmp_path) -> None:
    assert_refused(run("data/report.py", tmp_path), "mask", "crf_postprocess.py")
    out = write_run(folder_dataset, tmp_path / "run")
    (tmp_path / "other.txt").write_text("a1\n")
    for path in out.glob("mask/a1.png"):
        path.unlink()
    refused = run("data/report.py", out, "--list", tmp_path / "other.txt")
    assert_refused(refused, "no mask of any image", "--list")
    save_mask(out / "mask" / "d6.png", np.zeros((5, 5), np.uint8))
    (out / "report.html").write_text("an earlier page")
    assert_refused(run("data/report.py", out), "d6.png", "5x5")
    assert (out / "report.html").read_text() == "an earlier page"


def test_measures_have_closed_forms() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    mask = np.array([[0, 1, 1, 1], [0, 255, 1, 0]], np.uint8)
    saliency = np.array([[0, 0, 255, 255], [0, 0, 255, 0]], np.uint8)
    found = measure(mask, truth=truth, saliency=saliency, cam_mask=np.zeros_like(mask))
    assert found.iou == {1: pytest.approx(2 / 3), 2: 0.0}
    assert found.score == pytest.approx(1 / 3)
    assert found.wrong == pytest.approx(3 / 6)
    assert found.saliency == pytest.approx(1 - 3 / 4)
    assert found.crf == pytest.approx(4 / 8)
    assert found.found == (1,)
    alone = measure(mask)
    assert (alone.iou, alone.score, alone.wrong, alone.saliency, alone.crf) == (None,) * 5
    with pytest.raises(ValueError, match="truth"):
        measure(mask, truth=truth[:1])


def test_minutes_do_not_count_the_time_in_which_a_run_was_stopped(folder_root, tmp_path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    paths = sorted((out / "mask").glob("*.png"))
    for number, path in enumerate(paths):
        when = 1e9 + 30 * number + (86_400 if number >= 4 else 0)
        os.utime(path, (when, when))
    assert file_minutes(out / "mask", ".png") == pytest.approx(30 * (len(paths) - 2) / 60)
    assert open_run(out).minutes()["training"] == pytest.approx(40 * 4 / 2 / 60)


def test_a_log_that_a_kill_cut_off_is_read(folder_root, tmp_path) -> None:
    out = write_run(folder_root, tmp_path / "run")
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 60, "lo')
    assert [row["step"] for row in open_run(out).log] == [20, 40]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 17.5), (2.31, 2.32), (5, 5), (0, 0), (1e-9, 2e-9), (-4e6, 7e6)]
)
def test_ticks_are_few_and_cover_the_range(low, high) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 7
    assert len(set(np.round(np.diff(found) / (found[1] - found[0]), 6))) == 1


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    points = [(float(x), 3.0) for x in range(10_007)]
    few = thinned(points)
    assert len(few) <= 300
    assert few[-1] == points[-1]
    assert {y for _, y in few} == {3.0}
    assert thinned(points[:7]) == points[:7]
    assert chart([Curve("flat", "red", points)], label="x").count("<polyline") == 1
    assert chart([], label="x") == ""


def test_heat_rises_evenly_in_lightness() -> None:
    """No colour of the map looks darker than one of a lower value, unlike jet."""
    linear = np.where(
        (rgb := heat_colours() / 255) <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4
    )
    lightness = (linear @ [0.2126, 0.7152, 0.0722]) ** (1 / 3)
    steps = np.diff(lightness[8:])
    assert (steps > -0.003).all()
    assert lightness[-1] - lightness[0] > 0.8
