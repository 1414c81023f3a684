"""`voc12.prepare`: lists and labels out of a devkit made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from devkits import IMAGES, SBD, prepare_voc, write_devkit
from runs import assert_refused

from data.catalog import open_catalog
from data.labels import AnnotationLabels


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_devkit(tmp_path / "VOC2012")


def test_lists_labels_and_protocol(devkit) -> None:
    result = prepare_voc(devkit, "--partial")
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("voc12", devkit)
    assert catalog.ids("train_aug") == ["2007_000032", "2008_000001", "2009_000002"]
    for labels in ("labels.csv", "cls_labels.npy"):
        catalog = open_catalog("voc12", devkit, labels=devkit / labels)
        for image_id, objects in IMAGES.items():
            names = {text.split()[-1] for text in objects}
            present = np.flatnonzero(catalog.label(image_id))
            assert {catalog.class_names[i] for i in present} == names
        assert not catalog.has_label("2012_000009")
    protocol = json.loads((devkit / "protocol.json").read_text())
    assert protocol["partial"]
    assert protocol["lists"]["train_aug"]["images"] == 3
    assert protocol["lists"]["val"]["official"] == 1449
    assert len(protocol["lists"]["test"]["sha256"]) == 64


def test_a_second_run_changes_nothing_and_a_differing_file_is_kept(devkit) -> None:
    prepare_voc(devkit, "--partial")
    before = {path: path.stat().st_mtime_ns for path in devkit.rglob("*") if path.suffix != ".json"}
    assert prepare_voc(devkit, "--partial").returncode == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.is_file())
    (devkit / "labels.csv").write_text("image_id,classes\nmine,cat\n")
    assert_refused(prepare_voc(devkit, "--partial"), "labels.csv", "--overwrite")
    assert "mine" in (devkit / "labels.csv").read_text()
    assert prepare_voc(devkit, "--partial", "--overwrite").returncode == 0
    assert "mine" not in (devkit / "labels.csv").read_text()


def test_a_list_in_the_fields_order_and_form_is_kept(devkit) -> None:
    path = devkit / "ImageSets/Segmentation/train_aug.txt"
    lines = [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png\n" for i in SBD[1::-1]]
    path.write_text("".join(lines) + "2007_000032\n")
    before = path.read_text()
    assert prepare_voc(devkit, "--partial").returncode == 0
    assert path.read_text() == before
    path.write_text("2007_000032\n")
    assert_refused(prepare_voc(devkit, "--partial"), "train_aug.txt", "--overwrite")


def test_a_list_of_sbd_in_place_of_its_masks(devkit, tmp_path) -> None:
    (tmp_path / "sbd.txt").write_text("2009_000002\n2010_000003\n")
    assert prepare_voc(devkit, "--partial", "--sbd-list", tmp_path / "sbd.txt").returncode == 0
    assert open_catalog("voc12", devkit).ids("train_aug") == ["2007_000032", "2009_000002"]
    assert_refused(
        prepare_voc(devkit, "--partial", "--sbd-list", tmp_path / "none.txt"), "none.txt"
    )


def test_the_whole_benchmark_is_wanted_unless_said(devkit) -> None:
    assert_refused(prepare_voc(devkit), "train has 1 images, the benchmark 1464", "--partial")
    assert not (devkit / "labels.csv").exists()


def test_what_is_missing_is_named(devkit, tmp_path) -> None:
    assert_refused(prepare_voc(tmp_path / "none"), "none", "--root")
    (devkit / "Annotations/2008_000001.xml").rename(tmp_path / "kept.xml")
    assert_refused(prepare_voc(devkit, "--partial"), "annotation of '2008_000001'", "--root")
    (tmp_path / "kept.xml").rename(devkit / "Annotations/2008_000001.xml")
    (devkit / "JPEGImages/2009_000002.jpg").unlink()
    assert_refused(prepare_voc(devkit, "--partial"), "image of '2009_000002'", "--root")
    for path in (devkit / "SegmentationClassAug").iterdir():
        path.unlink()
    assert_refused(prepare_voc(devkit, "--partial"), "SegmentationClassAug", "--sbd-list")
    (devkit / "ImageSets/Segmentation/val.txt").unlink()
    assert_refused(prepare_voc(devkit, "--partial"), "val.txt")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<annotation><object><name>unicorn</name></object></annotation>", "unicorn"),
        ("<ann", "not an XML file"),
        ("<?xml version='1.0' encoding='foo'?><annotation/>", "not an XML file"),
        ("<?xml version='1.0' encoding='shift_jis'?><annotation/>", "not an XML file"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&d;</annotation>", "not an XML file"),
        ("<html>404</html>", "not a VOC annotation: its root is <html>"),
        ("<annotation/>", "not a VOC annotation: it has no object"),
        ("<annotation xmlns='http://x'><object><name>cat</name></object></annotation>", "root"),
        ("<annotation><object/></annotation>", "an object without one name"),
        ("<annotation><object><name> </name></object></annotation>", "an object without one name"),
    ],
)
def test_a_bad_annotation_is_named(devkit, text: str, word: str) -> None:
    (devkit / "Annotations/2008_000001.xml").write_text(text)
    assert_refused(prepare_voc(devkit, "--partial"), "2008_000001.xml", word)


def test_files_that_a_mac_leaves_are_no_masks(devkit) -> None:
    for path in (*devkit.glob("SegmentationClassAug/*.png"), *devkit.glob("Annotations/*.xml")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    result = prepare_voc(devkit, "--partial")
    assert result.returncode == 0, result.stderr
    catalog = open_catalog("voc12", devkit)
    assert catalog.ids("train_aug") == ["2007_000032", "2008_000001", "2009_000002"]
    assert set(AnnotationLabels(devkit / "Annotations", catalog.class_names)) == set(IMAGES)


def test_ids_of_all_kinds_keep_their_labels(devkit) -> None:
    for number, name in enumerate(["a,b", 'a"b', "a b;c"]):
        for path in [*devkit.rglob("2007_000033.*")]:
            path.with_name(name + path.suffix).write_bytes(path.read_bytes())
        with (devkit / "ImageSets/Segmentation/val.txt").open("a") as file:
            file.write(f"{name}\n")
        assert prepare_voc(devkit, "--partial", *["--overwrite"][:number]).returncode == 0
        assert open_catalog("voc12", devkit).label(name)[0] == 1


def test_without_a_test_list_the_rest_is_prepared(devkit) -> None:
    (devkit / "ImageSets/Segmentation/test.txt").unlink()
    result = prepare_voc(devkit, "--partial")
    assert result.returncode == 0
    assert "no list test.txt" in result.stdout
    assert json.loads((devkit / "protocol.json").read_text())["missing"] == ["test"]
    shared = devkit / "ImageSets/Segmentation/val.txt"
    shared.write_text("2007_000032\n")
    assert_refused(prepare_voc(devkit, "--partial"), "share 1 images")
