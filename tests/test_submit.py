"""`voc12.submit`: the archive has what VOC's server takes, and anything else is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import assert_refused, run

from tool.formats.mask import palette, save_mask
from voc12.submit import FOLDER

IDS = {"2008_000006": (20, 12), "2008_000011": (9, 16)}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/test.txt").write_text("".join(f"{i}\n" for i in IDS))
    for number, (image_id, size) in enumerate(IDS.items()):
        Image.new("RGB", size).save(root / "JPEGImages" / f"{image_id}.jpg")
        mask = np.full(size[::-1], 20 - number, np.uint8)
        save_mask(root / "mask" / f"{image_id}.png", mask)
    return root


def submit(voc: Path, *flags: object):
    return run("voc12/submit.py", voc / "out" / "comp6.tar", "--root", voc, *flags)


def test_writes_what_the_server_takes(voc) -> None:
    result = submit(voc, "--pred-dir", voc / "mask")
    assert result.returncode == 0, result.stderr
    with tarfile.open(voc / "out" / "comp6.tar") as archive:
        assert archive.getnames() == [f"{FOLDER}/{image_id}.png" for image_id in IDS]
        image = Image.open(archive.extractfile(archive.getnames()[1]))
        assert image.mode == "P"
        assert image.size == (9, 16)
        assert (np.asarray(image) == 19).all()
        assert image.getpalette()[57:60] == palette()[19].tolist()
    first = (voc / "out" / "comp6.tar").read_bytes()
    assert submit(voc).returncode == 0
    submit(voc, "--pred-dir", voc / "mask")
    assert (voc / "out" / "comp6.tar").read_bytes() == first


@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (np.full((12, 20), 21, np.uint8), "21"),
        (np.full((12, 20), 255, np.uint8), "255"),
        (np.zeros((20, 12), np.uint8), "20x12"),
    ],
)
def test_a_mask_that_the_server_refuses_leaves_no_archive(voc, mask, word: str) -> None:
    save_mask(voc / "mask" / "2008_000006.png", mask)
    assert_refused(submit(voc, "--pred-dir", voc / "mask"), "2008_000006.png", word)
    assert not (voc / "out" / "comp6.tar").exists()
    assert not list((voc / "out").iterdir())


def test_colours_at_other_indices_are_warned_about(voc) -> None:
    flags = ("--pred-dir", voc / "mask")
    said = "2008_000006.png has the colour of class 20 at the value 19"
    assert said not in submit(voc, *flags).stderr
    image = Image.open(voc / "mask" / "2008_000006.png")
    image.putdata([19] * (image.width * image.height))
    colours = palette().copy()
    colours[[19, 20]] = colours[[20, 19]]
    image.putpalette(colours.tobytes())
    image.save(voc / "mask" / "2008_000006.png")
    assert said in submit(voc, *flags).stderr


@pytest.mark.parametrize("name", ["comp6.tgz", "comp6.tar.gz"])
def test_a_compressed_name_gets_a_compressed_archive(voc, name: str) -> None:
    path = voc / "out" / name
    flags = [path, "--root", voc, "--pred-dir", voc / "mask"]
    result = run("voc12/submit.py", *flags)
    assert result.returncode == 0, result.stderr
    content = path.read_bytes()
    assert content[:2] == b"\x1f\x8b"
    assert content[4:8] == bytes(4)  # no date
    assert run("voc12/submit.py", *flags[:3]).returncode == 0


@pytest.mark.parametrize("name", ["comp6.zip", "comp6", "comp6.gz", "comp6.tar.xz"])
def test_a_name_of_another_archive_is_refused(voc, name: str) -> None:
    path = voc / "out" / name
    result = run("voc12/submit.py", path, "--root", voc, "--pred-dir", voc / "mask")
    assert_refused(result, name, ".tgz")
    assert not path.exists()


def test_a_missing_mask_is_named(voc) -> None:
    (voc / "mask" / "2008_000011.png").unlink()
    assert_refused(submit(voc, "--pred-dir", voc / "mask"), "2008_000011", "crf_postprocess.py")
    assert_refused(submit(voc), "comp6.tar", "--pred-dir")


def grey(content: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(io.BytesIO(content)))).save(file, "PNG")
    return file.getvalue()


def other_palette(content: bytes) -> bytes:
    image, file = Image.open(io.BytesIO(content)), io.BytesIO()
    image.putpalette(bytes(range(256)) * 3)
    image.save(file, "PNG")
    return file.getvalue()


CHANGES: dict[str, Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]] = {
    "missing": lambda files: files[:1],
    "twice": lambda files: [*files, files[0]],
    "belong": lambda files: [*files, (f"{FOLDER}/2009_000001.png", files[0][1])],
    "does not belong": lambda files: [(f"{FOLDER}/../{n.split('/')[-1]}", c) for n, c in files],
    "broken": lambda files: [(files[0][0], files[0][1][: len(files[0][1]) // 2]), files[1]],
    "mode L": lambda files: [(files[0][0], grey(files[0][1])), files[1]],
    "palette": lambda files: [(files[0][0], other_palette(files[0][1])), files[1]],
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_damaged_archive_is_refused(voc, what: str) -> None:
    submit(voc, "--pred-dir", voc / "mask")
    path = voc / "out" / "comp6.tar"
    with tarfile.open(path) as archive:
        files = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for name, content in CHANGES[what](files):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert_refused(submit(voc), "comp6.tar", what)
    path.write_bytes(path.read_bytes()[:700])
    assert_refused(submit(voc), "comp6.tar")
    path.write_bytes(b"no archive")
    assert_refused(submit(voc), "comp6.tar")


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_member_that_is_no_file_is_refused(voc, kind: bytes) -> None:
    submit(voc, "--pred-dir", voc / "mask")
    path = voc / "out" / "comp6.tar"
    with tarfile.open(path) as archive:
        names = archive.getnames()
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "elsewhere"
            archive.addfile(member)
    assert_refused(submit(voc), "comp6.tar", "is no mask file")


def test_a_huge_member_is_not_read(voc) -> None:
    submit(voc, "--pred-dir", voc / "mask")
    path = voc / "out" / "comp6.tar"
    with tarfile.open(path) as archive:
        names = archive.getnames()
    with open(path, "wb") as file:  # the header of 60 GB, without them
        member = tarfile.TarInfo(names[0])
        member.size = 60 * 10**9
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.write(b"\0" * 10240)
    assert_refused(submit(voc), "comp6.tar", "is no mask file")


def test_an_archive_made_by_hand_with_a_leading_dot_is_fine(voc) -> None:
    submit(voc, "--pred-dir", voc / "mask")
    path = voc / "out" / "comp6.tar"
    with tarfile.open(path) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive}
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert submit(voc).returncode == 0


@pytest.mark.parametrize("form", ["gz", "xz", "bz2"])
def test_a_damaged_compression_is_named(voc, form: str) -> None:
    submit(voc, "--pred-dir", voc / "mask")
    path = voc / "out" / "comp6.tar"
    content = path.read_bytes()
    with tarfile.open(path, f"w:{form}") as archive:
        member = tarfile.TarInfo(f"{FOLDER}/{next(iter(IDS))}.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    packed = bytearray(path.read_bytes())
    packed[len(packed) // 2 :] = bytes(len(packed) - len(packed) // 2)
    path.write_bytes(packed)
    assert_refused(submit(voc), "comp6.tar")
