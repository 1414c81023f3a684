"""Annotations damaged in their structure: `prepare` ends with 0 or 2, never with a traceback."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from devkits import IMAGES, box, object_xml, prepare_coco, prepare_voc, write_coco, write_devkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import Result

from data.catalog import open_catalog

CASES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
DEEP: list = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 3, 9, 12, 20, 0.5, -0.0, 2**31, -(2**63)]
VALUES += [10**400, -(10**400), 1e308, float("nan"), float("inf"), -float("inf")]
VALUES += [
    "",
    "x",
    "9",
    "0",
    "../x",
    "COCO_train2014_000000000009.jpg",
    "\ud800",
    "a\nb",
    "é" * 999,
]
VALUES += [[], {}, [[]], [{}], {"": None}, {"size": [12, 20], "counts": "0"}, DEEP, box(0, 0, 9, 9)]


def places(content: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in a JSON."""
    keys = content if isinstance(content, dict) else range(len(content))
    found = [(content, key) for key in keys]
    for key in keys:
        if isinstance(content[key], dict | list):
            found += places(content[key])
    return found


def mutated(data: st.DataObject, content: Any) -> Any:
    """One to three values replaced, removed or doubled."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        everywhere = places(content)
        if not everywhere:
            break
        container, key = data.draw(st.sampled_from(everywhere))
        how = data.draw(st.sampled_from(["replace", "replace", "replace", "remove", "double"]))
        if how == "replace":
            container[key] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
        elif how == "remove":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return content


def mutated_xml(data: st.DataObject, text: str) -> str:
    """An element renamed, emptied, moved or filled, and perhaps another head of the file."""
    root = ElementTree.fromstring(text)
    for _ in range(data.draw(st.integers(1, 3))):
        one = data.draw(st.sampled_from(list(root.iter())))
        how = data.draw(st.sampled_from(["tag", "text", "clear", "nest", "double"]))
        if how == "tag":
            one.tag = data.draw(
                st.sampled_from(["html", "object", "name", "annotation", "{x}name"])
            )
        elif how == "text":
            one.text = data.draw(
                st.sampled_from(["", " ", "cat", "unicorn", "cat;dog", "9" * 5000])
            )
        elif how == "clear":
            one.clear()
        elif how == "nest":
            one.append(copy.deepcopy(root))
        else:
            root.extend(copy.deepcopy(list(one)))
    heads = ["", "", "", "<?xml version='1.0' encoding='foo'?>", "\ufeff", "x", "<!DOCTYPE a>"]
    heads += [
        f"<?xml version='1.0' encoding='{name}'?>" for name in ("shift_jis", "utf-16", "cp037")
    ]
    return data.draw(st.sampled_from(heads)) + ElementTree.tostring(root, "unicode")


def assert_one_clear_line(result: Result, name: str) -> None:
    """Status 0, or 2 and one line that names the file."""
    assert result.returncode in (0, 2)
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == (1 if result.returncode else 0), result.stderr
    assert "Traceback" not in result.stderr
    assert all(name in line and len(line) < 2500 for line in errors), errors


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco") / "COCO")


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_devkit(tmp_path_factory.mktemp("voc") / "VOC2012")


@pytest.fixture(scope="module")
def whole(coco: Path) -> dict:
    return json.loads((coco / "annotations/instances_train2014.json").read_text())


def clean(root: Path) -> None:
    for name in ("lists", "masks"):
        shutil.rmtree(root / name, ignore_errors=True)
    for name in ("labels.csv", "cls_labels.npy", "protocol.json"):
        (root / name).unlink(missing_ok=True)


@CASES
@given(data=st.data())
def test_coco_annotations(coco: Path, whole: dict, data: st.DataObject) -> None:
    clean(coco)
    path = coco / "annotations/instances_train2014.json"
    path.write_text(json.dumps(mutated(data, whole)))
    result = prepare_coco(coco)
    if "error: image of" in result.stderr:
        assert_one_clear_line(result, "image")  # no fault of the file: an image is not there
    else:
        assert_one_clear_line(result, path.name)
    if result.returncode:
        assert not (coco / "lists").exists()
        return
    catalog = open_catalog("coco14", coco)
    ids = catalog.ids("train_all")
    assert set(catalog.ids("train")) == {name for name in ids if catalog.label(name).any()}
    for name in ids:
        present = {int(value) for value in catalog.read_mask(name).ravel()} - {0, 255}
        assert all(catalog.label(name)[value - 1] for value in present)


@CASES
@given(data=st.data())
def test_voc_annotations(devkit: Path, data: st.DataObject) -> None:
    clean(devkit)
    (devkit / "ImageSets/Segmentation/train_aug.txt").unlink(missing_ok=True)
    name = "2008_000001"
    text = f"<annotation>{''.join(map(object_xml, IMAGES[name]))}</annotation>"
    (devkit / "Annotations" / f"{name}.xml").write_text(mutated_xml(data, text), encoding="utf-8")
    result = prepare_voc(devkit, "--partial")
    assert_one_clear_line(result, f"{name}.xml")
    assert (devkit / "protocol.json").exists() == (result.returncode == 0)
    if result.returncode == 0:
        assert open_catalog("voc12", devkit).label(name).any()
