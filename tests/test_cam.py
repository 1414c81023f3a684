"""CAM files: one format of ours, three of the field, and everything else refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tool.formats.cam import Cam, best_foreground, cam_mask, load_cam, save_cam

RNG = np.random.default_rng(0)
LABEL = np.zeros(20, np.float32)
LABEL[[2, 7]] = 1
MAPS = RNG.random((2, 5, 6)).astype(np.float16).astype(np.float32)
GROUND = RNG.random((1, 5, 6)).astype(np.float32)


def cam_of(index: list[int], maps: np.ndarray) -> Cam:
    return Cam(np.array(index, np.uint8), maps.astype(np.float32))


def write(path: Path, content: object) -> Path:
    array = np.empty((), object)
    array[()] = content
    np.save(path, array, allow_pickle=True)
    return path


def test_native_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "my id.v1.npy"
    save_cam(path, cam_of([3, 8], MAPS))
    cam = load_cam(path)
    assert (cam.class_index.dtype, cam.cam.dtype) == (np.uint8, np.float32)
    assert cam.class_index.tolist() == [3, 8]
    np.testing.assert_array_equal(cam.cam, MAPS)
    assert not cam.has_background
    assert cam.size == (5, 6)
    rows = np.load(path, allow_pickle=False)
    assert rows.dtype == np.dtype([("class_index", "u1"), ("cam", "f2", (5, 6))])


def test_native_with_background_and_without_a_class(tmp_path: Path) -> None:
    save_cam(tmp_path / "b.npy", cam_of([0, 3, 8], np.concatenate([GROUND, MAPS])))
    cam = load_cam(tmp_path / "b.npy")
    assert cam.has_background
    assert cam.foreground().class_index.tolist() == [3, 8]
    np.testing.assert_array_equal(cam.foreground().cam, MAPS)
    save_cam(tmp_path / "n.npy", cam_of([], np.zeros((0, 5, 6))))
    cam = load_cam(tmp_path / "n.npy")
    assert cam.class_index.size == 0
    assert cam.size == (5, 6)
    assert not cam.has_background


@pytest.mark.parametrize("torch_keys", [False, True])
def test_cam_a(tmp_path: Path, torch_keys: bool) -> None:
    keys, small = np.array([2, 7]), np.zeros((2, 2, 2))
    if torch_keys:
        torch = pytest.importorskip("torch")
        keys, small = torch.from_numpy(keys), torch.from_numpy(small)
    content = {"keys": keys, "cam": small, "high_res": MAPS}
    cam = load_cam(write(tmp_path / "a.npy", content))
    assert cam.class_index.tolist() == [3, 8]
    np.testing.assert_array_equal(cam.cam, MAPS)
    content["high_res"] = np.concatenate([GROUND, MAPS])
    cam = load_cam(write(tmp_path / "a.npy", content))
    assert cam.class_index.tolist() == [0, 3, 8]
    np.testing.assert_array_equal(cam.cam[0], GROUND[0])


def test_cam_b_and_the_crf_dictionary_are_told_apart_by_the_label(tmp_path: Path) -> None:
    first = np.zeros(20, np.float32)
    first[[0, 7]] = 1
    path = write(tmp_path / "b.npy", {7: MAPS[1], 0: MAPS[0]})
    cam = load_cam(path, label=first)
    assert cam.class_index.tolist() == [1, 8]
    np.testing.assert_array_equal(cam.cam, MAPS)
    only = np.zeros(20, np.float32)
    only[6] = 1
    cam = load_cam(path, label=only)
    assert cam.class_index.tolist() == [0, 7]
    with pytest.raises(ValueError, match="label"):
        load_cam(path)
    with pytest.raises(ValueError, match="do not fit"):
        load_cam(path, label=LABEL)


def test_integer_keys_without_0_need_no_label(tmp_path: Path) -> None:
    def label() -> np.ndarray:
        raise FileNotFoundError("there are no labels")

    def unlabelled() -> np.ndarray:
        raise ValueError("the image has no label")

    path = write(tmp_path / "b.npy", {np.int64(2): MAPS[0], np.int64(7): MAPS[1]})
    for given in (label, unlabelled, None, LABEL):
        assert load_cam(path, label=given).class_index.tolist() == [3, 8]
    save_cam(tmp_path / "n.npy", cam_of([3], MAPS[:1]))
    assert load_cam(tmp_path / "n.npy", label=label).class_index.tolist() == [3]


def test_integer_keys_counted_from_1_are_refused_if_the_label_shows_it(tmp_path: Path) -> None:
    path = write(tmp_path / "b.npy", {3: MAPS[0], 8: MAPS[1]})
    with pytest.raises(ValueError, match="counted from 1"):
        load_cam(path, label=lambda: LABEL)
    every = write(tmp_path / "e.npy", dict.fromkeys(range(1, len(LABEL) + 1), MAPS[0]))
    with pytest.raises(ValueError, match="counted from 1"):
        load_cam(every, label=LABEL)
    assert load_cam(write(tmp_path / "0.npy", {}), label=0 * LABEL).class_index.size == 0


@pytest.mark.parametrize(("count", "shift"), [(20, 1), (21, 0)])
def test_dictionaries_of_all_classes(tmp_path: Path, count: int, shift: int) -> None:
    path = write(tmp_path / "b.npy", dict.fromkeys(range(count), MAPS[0]))
    cam = load_cam(path, label=lambda: LABEL)
    assert cam.class_index.tolist() == [key + shift for key in range(count)]


def test_cam_c(tmp_path: Path) -> None:
    content = {"keys": np.array([0, 3, 8]), "IS_CAM": np.concatenate([GROUND, MAPS])}
    cam = load_cam(write(tmp_path / "c.npy", content))
    assert cam.class_index.tolist() == [0, 3, 8]
    np.testing.assert_array_equal(cam.cam[1:], MAPS)


def test_an_empty_dictionary_is_an_image_without_a_class(tmp_path: Path) -> None:
    cam = load_cam(write(tmp_path / "e.npy", {}))
    assert cam.class_index.size == 0
    assert cam.size == (0, 0)


NAN = np.where(np.arange(30).reshape(5, 6) == 7, np.nan, MAPS[0])


@pytest.mark.parametrize(
    "content",
    [
        {"keys": np.array([2, 7])},
        {"cam": MAPS},
        {"keys": np.array([2, 7, 9]), "high_res": MAPS},
        {"keys": np.array([7, 2]), "high_res": MAPS},
        {"keys": np.array([2, 2]), "high_res": MAPS},
        {"keys": np.array([2.5, 7]), "high_res": MAPS},
        {"keys": np.array(["2", "7"]), "high_res": MAPS},
        {"keys": np.array([-1, 7]), "high_res": MAPS},
        {"keys": np.array([2, 254]), "high_res": MAPS},
        {"keys": np.array([2.5, 7]), "IS_CAM": MAPS},
        {"keys": np.array([-1, 7]), "IS_CAM": MAPS},
        {"keys": np.array([2, 255]), "IS_CAM": MAPS},
        {"keys": np.array([2, 300]), "IS_CAM": MAPS},
        {"keys": "ab", "IS_CAM": MAPS},
        {"keys": np.array([2, 7]), "IS_CAM": "text"},
        {"keys": np.array([2]), "IS_CAM": MAPS[0]},
        {2: MAPS[0], 7: MAPS[1][:3]},
        {2: MAPS},
        {2: "text"},
        {2: None},
        {2: NAN},
        {2: np.where(NAN > 0, np.inf, 0)},
        {True: MAPS[0]},
        {-3: MAPS[0]},
        {2: MAPS[0], "x": 1},
    ],
    ids=str,
)
def test_other_layouts_are_refused(tmp_path: Path, content: dict) -> None:
    with pytest.raises(ValueError, match=r"x\.npy"):
        load_cam(write(tmp_path / "x.npy", content), label=LABEL)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((21, 5, 6), "f4"),
        np.zeros(3, [("class_index", "u1"), ("score", "f2", (5, 6))]),
        np.zeros(3, [("class_index", "u1"), ("cam", "f2", (5, 6))]),
        np.zeros((1, 1), [("class_index", "u1"), ("cam", "f2", (5, 6))]),
        np.zeros(1, [("class_index", "u1"), ("cam", "f2", (5,))]),
        np.array([(2, NAN)], [("class_index", "u1"), ("cam", "f2", (5, 6))]),
        np.array([(2.0, NAN * 0)], [("class_index", "f4"), ("cam", "f2", (5, 6))]),
        np.array([(2, "text")], [("class_index", "u1"), ("cam", "U8")]),
    ],
    ids=str,
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=r"x\.npy"):
        load_cam(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("index", "maps"),
    [
        ([3], NAN[None]),
        ([3], np.full((1, 5, 6), 1e6)),
        ([8, 3], MAPS),
        ([3, 3], MAPS),
        ([3], MAPS),
        ([3, 8], MAPS[0]),
    ],
)
def test_a_bad_cam_is_not_written(tmp_path: Path, index: list[int], maps: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"x\.npy"):
        save_cam(tmp_path / "x.npy", cam_of(index, maps))
    assert not list(tmp_path.iterdir())


def test_ties_go_to_the_background_then_to_the_lower_class() -> None:
    maps = np.zeros((2, 1, 4), np.float32)
    maps[0, 0] = [0.22, 0.5, 0.5, 0.1]
    maps[1, 0] = [0.1, 0.5, 0.6, 0.23]
    cam = cam_of([4, 9], maps)
    score, best = best_foreground(cam)
    assert best.tolist() == [[4, 4, 9, 9]]
    np.testing.assert_array_equal(score, maps.max(0))
    assert cam_mask(cam, 0.22).tolist() == [[0, 4, 9, 9]]


def test_a_background_row_takes_the_place_of_the_threshold() -> None:
    ground = np.array([[[0.5, 0.4]]], np.float32)
    cam = cam_of([0, 4], np.concatenate([ground, np.full((1, 1, 2), 0.5, np.float32)]))
    for threshold in (0.0, 0.22, 0.99):
        assert cam_mask(cam, threshold).tolist() == [[0, 4]]


def test_no_class_is_all_background() -> None:
    assert not cam_mask(cam_of([], np.zeros((0, 3, 4))), 0.0).any()
    assert not cam_mask(cam_of([0], np.zeros((1, 3, 4))), 0.0).any()
    assert not cam_mask(cam_of([3], np.zeros((1, 3, 4))), 0.0).any()


FORMS = {
    "psa": lambda maps: dict(zip((2, 7), maps, strict=True)),
    "irn": lambda maps: {"keys": np.array([2, 7]), "high_res": maps},
    "sfc": lambda maps: {"keys": np.array([3, 8]), "IS_CAM": maps},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("maps", "said"),
    [
        (np.full((2, 4, 5), 130, np.uint8), "[130, 130]"),
        (np.full((2, 4, 5), 100.0), "[100, 100]"),
        (np.full((2, 4, 5), -0.2), "[-0.2, -0.2]"),
        (np.full((2, 4, 5), 0.5 + 0j), "complex128"),
        (np.full((2, 4, 5), "0.5"), "type <U3"),
    ],
    ids=["bytes", "scores", "negative", "complex", "text"],
)
def test_values_that_are_no_activations(
    tmp_path: Path, form: str, maps: np.ndarray, said: str
) -> None:
    path = write(tmp_path / "x.npy", FORMS[form](maps))
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        load_cam(path, label=LABEL)
    assert "x.npy" in str(error.value)


@pytest.mark.parametrize("form", FORMS)
def test_values_of_other_types_are_read(tmp_path: Path, form: str) -> None:
    for maps in (np.ones((2, 4, 5), bool), np.ones((2, 4, 5), np.float16) * 1.005):
        cam = load_cam(write(tmp_path / "x.npy", FORMS[form](maps)), label=LABEL)
        assert cam.cam.dtype == np.float32


def test_probabilities_of_a_crf_are_told_from_cams_of_two_classes(tmp_path: Path) -> None:
    first = np.array([1, 0], np.float32)  # of two classes
    inside = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    path = write(tmp_path / "x.npy", {0: 1 - inside, 1: inside})
    cam = load_cam(path, label=first)
    assert cam.class_index.tolist() == [0, 1]
    assert (cam.cam[1] == inside).all()
    cam = load_cam(write(path, {0: inside, 1: np.zeros_like(inside)}), label=first)
    assert cam.class_index.tolist() == [1, 2]
