"""Masks go to COCO, labelme and CVAT to be corrected by hand, and come back exactly."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from runs import SMALL, assert_refused, run

from data.catalog import open_catalog
from tool.formats.labelme import load_labelme
from tool.formats.mask import UNKNOWN, load_mask, save_mask
from tool.formats.polygons import outlines, paint

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
VALUES = st.sampled_from([0, 1, 2, UNKNOWN])


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(np.uint8, SHAPES, elements=VALUES), st.integers(1, 3))
def test_outlines_painted_in_their_order_are_the_mask(mask: np.ndarray, zoom: int) -> None:
    mask = np.kron(mask, np.ones((zoom, zoom), np.uint8)).astype(np.uint8)
    painted = np.zeros_like(mask)
    for value, points in outlines(mask):
        assert len(points) >= 3
        painted = paint(painted, points, value)
    assert np.array_equal(painted, mask)


def test_a_ring_is_painted_before_what_it_encloses() -> None:
    mask = np.zeros((9, 9), np.uint8)
    mask[1:8, 1:8], mask[2:7, 2:7], mask[4, 4] = 1, 0, 2
    assert [value for value, _ in outlines(mask)] == [1, 0, 2]


@pytest.fixture
def masks(folder_root: Path, tmp_path: Path) -> Path:
    """Masks of the train list with holes, islands and unknown pixels."""
    catalog = open_catalog("folder", folder_root)
    rng = np.random.default_rng(0)
    for image_id in catalog.ids("train"):
        width, height = catalog.image_size(image_id)
        small = rng.choice([0, 0, 1, 2, UNKNOWN], (height // 4 + 1, width // 4 + 1))
        mask = np.kron(small, np.ones((4, 4))).astype(np.uint8)[:height, :width]
        save_mask(tmp_path / "mask" / f"{image_id}.png", mask)
    return tmp_path / "mask"


def data(root: Path) -> list[object]:
    return ["--dataset", "folder", "--root", root, "--list", "train"]


def there(layout: str, root: Path, masks: Path, out: Path):
    return run("data/masks_to.py", layout, *data(root), "--pred-dir", masks, "--out", out)


def back(layout: str, source: Path, root: Path, out: Path, *flags: object):
    return run("data/masks_from.py", layout, source, *data(root), "--out", out, *flags)


LAYOUTS = {"coco": "masks.json", "labelme": "labelme", "cvat": "masks.zip"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_corrected_is_not_replaced_unless_asked(
    layout: str, folder_root, masks, tmp_path
) -> None:
    out = tmp_path / LAYOUTS[layout]
    assert there(layout, folder_root, masks, out).returncode == 0
    file = min(out.glob("*.json")) if out.is_dir() else out
    written = file.read_bytes()
    assert there(layout, folder_root, masks, out).returncode == 0, "the same again"
    file.write_bytes(b"corrected")
    again = there(layout, folder_root, masks, out)
    assert_refused(again, f"{file.name} is there with other content", "--overwrite replaces it")
    assert file.read_bytes() == b"corrected"
    assert not list(tmp_path.rglob(".*.json")) + list(tmp_path.rglob(".*.zip"))
    flags = ["--pred-dir", masks, "--out", out, "--overwrite"]
    assert run("data/masks_to.py", layout, *data(folder_root), *flags).returncode == 0
    assert file.read_bytes() == written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_come_back_exactly(layout: str, folder_root, masks, tmp_path) -> None:
    source = tmp_path / "to" / LAYOUTS[layout]
    source.parent.mkdir()
    written = there(layout, folder_root, masks, source)
    assert written.returncode == 0, written.stderr
    assert "8 masks" in written.stdout
    came = back(layout, source, folder_root, tmp_path / "back")
    assert came.returncode == 0, came.stderr
    for path in masks.glob("*.png"):
        assert np.array_equal(load_mask(path), load_mask(tmp_path / "back" / path.name)), path


def test_pycocotools_reads_what_is_written(folder_root, masks, tmp_path) -> None:
    there("coco", folder_root, masks, tmp_path / "masks.json")
    coco = COCO(tmp_path / "masks.json")
    assert len(coco.getImgIds()) == 8
    for image in coco.loadImgs(coco.getImgIds()):
        mask = load_mask(masks / f"{Path(image['file_name']).stem}.png")
        assert (folder_root / "images" / image["file_name"]).is_file()
        for one in coco.loadAnns(coco.getAnnIds(image["id"])):
            region = mask == one["category_id"]
            assert np.array_equal(coco.annToMask(one).astype(bool), region)
            assert one["area"] == region.sum()
    names = [c["name"] for c in coco.loadCats(coco.getCatIds())]
    assert names == [*open_catalog("folder", folder_root).class_names, "unknown"]


def test_labelmes_files_lie_where_it_finds_the_photographs(folder_root, masks, tmp_path) -> None:
    out = tmp_path / "labelme"
    there("labelme", folder_root, masks, out)
    for path in out.glob("*.json"):
        document = json.loads(path.read_text())
        with Image.open(path.parent / document["imagePath"]) as image:
            assert image.size == (document["imageWidth"], document["imageHeight"])
        assert {shape["shape_type"] for shape in document["shapes"]} == {"polygon"}


def test_the_members_of_cvats_file_have_a_fixed_date(folder_root, masks, tmp_path) -> None:
    """A run that was killed and went on gives the bytes of one that was not."""
    there("cvat", folder_root, masks, tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_cvats_file_has_voc_colours_by_name(folder_root, masks, tmp_path) -> None:
    there("cvat", folder_root, masks, tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        ids = archive.read("ImageSets/Segmentation/default.txt").decode().split()
        picture = Image.open(io.BytesIO(archive.read(f"SegmentationClass/{ids[0]}.png")))
    assert lines[:2] == ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    assert lines[2].endswith(":128,0,0::")
    mask = load_mask(masks / f"{ids[0]}.png")
    assert (np.asarray(picture)[mask == 1] == (128, 0, 0)).all()


def test_what_was_not_corrected_is_taken_from_rest(folder_root, masks, tmp_path) -> None:
    there("labelme", folder_root, masks, tmp_path / "labelme")
    kept, *others = sorted((tmp_path / "labelme").glob("*.json"))
    for path in others:
        path.unlink()
    document = json.loads(kept.read_text())
    document["shapes"] = [shape("rectangle", [[0, 0], [3, 4]], label="_background_")]
    kept.write_text(json.dumps(document))
    refused = back("labelme", tmp_path / "labelme", folder_root, tmp_path / "a")
    assert_refused(refused, "no mask of 7 of 8", "--rest")
    came = back("labelme", tmp_path / "labelme", folder_root, tmp_path / "b", "--rest", masks)
    assert came.returncode == 0, came.stderr
    assert "1 corrected masks and 7 of --rest" in came.stdout
    assert not load_mask(tmp_path / "b" / f"{kept.stem}.png").any()
    for path in others:
        name = f"{path.stem}.png"
        assert np.array_equal(load_mask(masks / name), load_mask(tmp_path / "b" / name))


def test_corrected_masks_train(folder_root, masks, tmp_path) -> None:
    """Stage 1 takes the folder that comes back as it takes stage 3's."""
    there("cvat", folder_root, masks, tmp_path / "masks.zip")
    back("cvat", tmp_path / "masks.zip", folder_root, tmp_path / "back")
    flags = ["--method", "deeplab1", "--backbone", "resnet38d_slim", "--weights", "none"]
    flags += ["--steps", 1, "--crop", 48, "--batch-size", 2, "--num-workers", 0, "--device", "cpu"]
    flags += [*data(folder_root), "--mask-dir", tmp_path / "back", "--out", tmp_path / "run"]
    done = run("train_fbr.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "masks of 8 images" in done.stdout


@pytest.mark.parametrize(
    ("layout", "name", "what"),
    [
        ("coco", "unknown", "unknown pixels"),
        ("cvat", "unknown", "unknown pixels"),
        ("labelme", "__ignore__", "unknown pixels"),
        ("labelme", "_background_", "the background"),
    ],
)
def test_a_class_with_a_name_of_the_layout_is_refused(
    layout: str, name: str, what: str, folder_dataset, masks, tmp_path
) -> None:
    """Both ways: its masks would come back as unknown pixels or background."""
    source = tmp_path / LAYOUTS[layout]
    assert there(layout, folder_dataset, masks, source).returncode == 0
    (folder_dataset / "classes.txt").write_text(f"disc\n{name}\nsky lark\n")
    words = (f"the class {name!r}", f"name of {what}")
    assert_refused(there(layout, folder_dataset, masks, tmp_path / f"2{source.name}"), *words)
    assert_refused(back(layout, source, folder_dataset, tmp_path / "back"), *words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_corrected_masks_are_seeds_of_the_next_training(
    layout: str, folder_root, masks, tmp_path
) -> None:
    source = tmp_path / LAYOUTS[layout]
    assert there(layout, folder_root, masks, source).returncode == 0
    assert back(layout, source, folder_root, tmp_path / "back").returncode == 0
    flags = [*SMALL, "--method", "amn", "--steps", 1, *data(folder_root)]
    done = run("train_fbr.py", *flags, "--seed-dir", tmp_path / "back", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    noted = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert noted["seeds"]["source"] == str(source.resolve())
    assert (tmp_path / "run" / "checkpoint.pth").is_file()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_photographs_in_folders_of_classes_come_back(layout: str, tmp_path) -> None:
    root, masks, rng = tmp_path / "photos", tmp_path / "mask", np.random.default_rng(0)
    for name in ("cat/Größe 1.v2.JPG", "dog/Größe 1.v2.JPG", "dog/x.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).save(root / name)
        mask = rng.choice([0, 1, 2, UNKNOWN], (9, 12)).astype(np.uint8)
        save_mask((masks / name).with_name(f"{Path(name).stem}.png"), mask)
    assert run("data/folder.py", "--root", root).returncode == 0
    source = tmp_path / LAYOUTS[layout]
    written = there(layout, root, masks, source)
    assert written.returncode == 0, written.stderr
    came = back(layout, source, root, tmp_path / "back")
    assert came.returncode == 0, came.stderr
    names = [path.relative_to(masks) for path in masks.rglob("*.png")]
    assert len(names) == 3
    for name in names:
        assert np.array_equal(load_mask(masks / name), load_mask(tmp_path / "back" / name))


def shape(kind: str, points: list[list[float]], label: str = "red", **more: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, **more}


def labelme_file(path: Path, *shapes: dict, **more: object) -> Path:
    path.write_text(json.dumps({"shapes": list(shapes), "imageData": None, **more}))
    return path


def test_the_shapes_of_labelme_are_painted_as_it_does(tmp_path) -> None:
    part = np.array([[0, 255], [255, 255], [255, 0]], np.uint8)
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG")
    embedded = base64.b64encode(file.getvalue()).decode()
    path = labelme_file(
        tmp_path / "a.json",
        shape("rectangle", [[7.0, 6.0], [2.0, 1.0]]),
        shape("circle", [[12.0, 5.0], [12.0, 8.0]], label="green"),
        shape("mask", [[0, 10], [1, 12]], label="green", mask=embedded),
        shape("polygon", [[4, 4], [9, 4], [9, 9]], label="__ignore__"),
    )
    got = load_labelme(path, ("red", "green"), (20, 30))
    expected = Image.new("L", (30, 20))
    draw = ImageDraw.Draw(expected)
    draw.rectangle((2, 1, 7, 6), fill=1)
    draw.ellipse((9, 2, 15, 8), fill=2)
    draw.polygon([(4, 4), (9, 4), (9, 9)], fill=255)
    wanted = np.array(expected)
    wanted[10:13, 0:2][part > 0] = 2
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"label": "blue"}, "'blue' is none of _background_, red, green, __ignore__"),
        ({"label": ["red"]}, "is none of"),
        ({"shape_type": "line"}, "'line' has no area"),
        ({"points": [[0, 0], [1, 1]]}, "a polygon with the points"),
        ({"points": [[0, 0], [1, 1], [float("nan"), 2]]}, "a polygon with the points"),
        ({"points": [[0, 0], [1, 1], [1e30, 2]]}, "a polygon with the points"),
        ({"points": "abc"}, "a polygon with the points"),
        ({"shape_type": "mask", "points": [[0, 0], [40, 1]], "mask": ""}, "outside the image"),
        ({"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "no"}, "no PNG in base64"),
        ({"shape_type": "mask", "points": [[0, 0], [1, 1]]}, "no PNG in base64"),
        ({"shape_type": "rectangle", "points": [[0, 0]] * 3}, "a rectangle with the points"),
    ],
)
def test_bad_shapes_are_named(tmp_path, bad: dict, words: str) -> None:
    good = shape("polygon", [[0, 0], [1, 1], [2, 0]])
    path = labelme_file(tmp_path / "a.json", good, good | bad)
    with pytest.raises(ValueError, match=r"a\.json: no labelme file.*shape 2: ") as caught:
        load_labelme(path, ("red", "green"), (20, 30))
    assert words in str(caught.value)


@pytest.mark.parametrize("content", ["{}", '{"shapes": {}}', '{" hapes": []}', "[]", "null", "{"])
def test_a_json_file_without_shapes_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: no labelme file that can be read: "):
        load_labelme(path, ("red", "green"), (20, 30))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_in_decomposed_unicode_are_found(layout: str, folder_dataset, tmp_path) -> None:
    """As macOS writes them into a folder or an archive."""
    name, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
        path = folder_dataset / folder / f"a1{suffix}"
        path.rename(path.with_stem(name))
    (folder_dataset / "lists" / "train.txt").write_text(f"{name}\nd6\n")
    source, truth = tmp_path / LAYOUTS[layout], folder_dataset / "masks"
    assert there(layout, folder_dataset, truth, source).returncode == 0
    if layout == "labelme":
        (source / f"{name}.json").rename(source / f"{decomposed}.json")
    elif layout == "coco":
        text = json.dumps(json.loads(source.read_text()), ensure_ascii=False)
        source.write_text(text.replace(name, decomposed))
    else:
        with zipfile.ZipFile(source) as archive:
            members = {one: archive.read(one) for one in archive.namelist()}
        with zipfile.ZipFile(source, "w") as archive:
            for one, content in members.items():
                archive.writestr(one.replace(name, decomposed), content)
    result = back(layout, source, folder_dataset, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert np.array_equal(
        load_mask(tmp_path / "out" / f"{name}.png"), load_mask(truth / f"{name}.png")
    )


def test_short_polygons_are_counted_and_masks_without_a_class_warned_about(
    folder_root, tmp_path
) -> None:
    catalog, path = open_catalog("folder", folder_root), tmp_path / "masks.json"
    images = []
    for number, image_id in enumerate(catalog.ids("train")):
        width, height = catalog.image_size(image_id)
        images.append({"id": number, "file_name": f"{image_id}.jpg"})
        images[-1] |= {"height": height, "width": width}
    document = {
        "categories": [{"id": 7, "name": catalog.class_names[0]}],
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 7, "segmentation": [[1, 1, 9, 9], [2, 2]]}
        ],
    }
    path.write_text(json.dumps(document))
    result = back("coco", path, folder_root, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert f"{path}: left out polygons of fewer than three points: 2, of a1" in result.stdout
    assert f"the masks in {tmp_path / 'out'} have no pixel of a class" in result.stderr
    document["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9, 1, 9]]
    path.write_text(json.dumps(document))
    again = back("coco", path, folder_root, tmp_path / "out")
    assert again.returncode == 0
    assert "left out" not in again.stdout
    assert "no pixel" not in again.stderr


COCO_FILE = {
    "categories": [{"id": 7, "name": "circle"}],
    "images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    ],
}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([], "no list of categories"),
        ({"categories": [{"id": 7, "name": "zebra"}]}, "'zebra' is none of"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "height": -4, "width": 6}]}, "an image"),
        ({"images": COCO_FILE["images"] * 2}, "comes twice"),
        (
            {"categories": [{"id": 7, "name": "disc"}, {"id": 7, "name": "square"}]},
            "two categories have the number 7",
        ),
        ({"annotations": [{"id": 1, "image_id": 9, "category_id": 7}]}, "is missing"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 7}]}, "bad segmentation"),
    ],
)
def test_bad_coco_files_are_one_line(folder_root, tmp_path, bad, words: str) -> None:
    names = open_catalog("folder", folder_root).class_names
    good = COCO_FILE | {"categories": [{"id": 7, "name": names[0]}]}
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(good | bad if isinstance(bad, dict) else bad))
    assert_refused(back("coco", path, folder_root, tmp_path / "out"), "masks.json", words)


def test_bad_zip_files_are_one_line(folder_root, masks, tmp_path) -> None:
    path, out = tmp_path / "masks.zip", tmp_path / "out"
    path.write_bytes(b"PK nothing")
    assert_refused(back("cvat", path, folder_root, out), "no zip file of CVAT's")
    path.unlink()
    there("cvat", folder_root, masks, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    image = next(name for name in members if name.endswith(".png"))

    def changed(**new: bytes) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (members | new).items():
                archive.writestr(name, content)
        return path

    labels = members["labelmap.txt"].replace(b":128,0,0:", b":1,2,3:")
    for member, content, words in (
        ("labelmap.txt", labels, "does not name the colour (128, 0, 0)"),
        ("labelmap.txt", b"zebra:1,2,3::", "'zebra' is none of"),
        ("labelmap.txt", b"background::", "has no colour"),
        (image, b"no png", "no mask that can be read: it is no PNG"),
    ):
        assert_refused(back("cvat", changed(**{member: content}), folder_root, out), words)
    path.write_bytes(whole[:-30])
    assert_refused(back("cvat", path, folder_root, out), "no zip file of CVAT's")
    assert_refused(there("cvat", folder_root, masks, tmp_path / "masks.tar"), "cvat is a .zip file")
