"""`tool.download.archive`: a damaged archive is refused, never unpacked in part."""

from __future__ import annotations

import errno
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from file_server import tar_of, zip_of

from tool.download.archive import unpack

NOISE = random.Random(0)
FILES = {f"labels/deep/{n}.png": NOISE.randbytes(2000) if n % 2 else b"ab" * 900 for n in range(9)}
ZIPS = {"stored": 0, "deflate": 8, "bzip2": 12, "lzma": 14}


ARCHIVES = {f"a.tar.{kind}": tar_of(FILES, mode=f"w:{kind}") for kind in ("gz", "bz2", "xz")}
ARCHIVES |= {f"{name}.zip": zip_of(FILES, method) for name, method in ZIPS.items()}


def content_of(path: Path) -> dict[str, bytes]:
    """Unpack; the content of the files, by name. The folder is removed again."""
    target = path.with_name("unpacked")
    unpack(path, target)
    files = (file for file in target.rglob("*") if file.is_file())
    content = {file.relative_to(target).as_posix(): file.read_bytes() for file in files}
    shutil.rmtree(target)
    return content


def refused(path: Path, content: bytes) -> str:
    """The message for an archive with this content, which leaves nothing behind."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="nothing unpacked") as caught:
        content_of(path)
    assert path.name in str(caught.value)
    assert list(path.parent.iterdir()) == [path]
    return str(caught.value)


@pytest.mark.parametrize("name", [*ARCHIVES, "a.tar"])
def test_a_whole_archive_is_unpacked(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(ARCHIVES.get(name) or tar_of(FILES, mode="w"))
    assert content_of(path) == FILES
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_refused_or_whole(tmp_path: Path, name: str) -> None:
    chance, path, refusals = random.Random(name), tmp_path / name, []
    for turn in range(60):
        content, size = bytearray(ARCHIVES[name]), (0, 1, 40)[turn % 3]
        place = chance.randrange(len(content) - size)
        content[place : place + size] = chance.randbytes(size)
        path.write_bytes(content if size else content[:place])
        try:
            assert content_of(path) == FILES  # the damage was to a date
        except ValueError as error:
            refusals.append(str(error))
        assert list(tmp_path.iterdir()) == [path]
    assert len(refusals) > 45
    assert all(name in refusal for refusal in refusals)


def test_a_broken_deflate_stream_is_refused(tmp_path: Path) -> None:
    content = bytearray(ARCHIVES["deflate.zip"])
    place = content.index(b"labels/deep/0.png") + len("labels/deep/0.png")
    content[place] = 0xFF  # a block of a type that there is not
    assert "block type" in refused(tmp_path / "a.zip", content)


def test_a_tar_without_its_end_is_refused(tmp_path: Path) -> None:
    content = tar_of(FILES, mode="w")
    end = len(content.rstrip(b"\0"))
    for length in [*range(512, end, 1024), *range(537, end, 1024)]:  # between blocks, within one
        refused(tmp_path / "a.tar", content[:length])


@pytest.mark.parametrize("damage", [b"\xff" * 8, bytes(512)], ids=["changed", "zeros"])
@pytest.mark.parametrize("back", [0, 1024], ids=["of the file", "of the times before it"])
def test_a_bad_header_is_not_the_end_of_a_tar(tmp_path: Path, damage: bytes, back: int) -> None:
    content = bytearray(tar_of(FILES, mode="w"))
    place = content.index(b"labels/deep/4.png") - back
    content[place : place + len(damage)] = damage
    refused(tmp_path / "a.tar", content)


def test_a_large_hole_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    content = tar_of(FILES, mode="w")
    refused(tmp_path / "a.tar", content + bytes(1 << 21) + content)


def test_the_end_of_a_compressed_tar_is_read(tmp_path: Path) -> None:
    content = bytearray(ARCHIVES["a.tar.gz"])
    content[-8] ^= 1  # the checksum of gzip
    assert "CRC" in refused(tmp_path / "a.tar.gz", content)
    assert refused(tmp_path / "a.tar.gz", ARCHIVES["a.tar.gz"][:-8])


def test_a_zip_without_all_its_entries_is_refused(tmp_path: Path) -> None:
    """The comment of an entry, made longer, swallows the entries behind it."""
    content = bytearray(ARCHIVES["stored.zip"])
    start = content.index(b"PK\1\2")
    size = content.index(b"PK\1\2", start + 4) - start
    content[start + 32 : start + 34] = (size * 4).to_bytes(2, "little")
    assert "entries" in refused(tmp_path / "a.zip", content)


@pytest.mark.parametrize(("place", "byte"), [(-5, b"1"), (-1, b"/"), (-6, b"\0")])
def test_a_zip_with_a_damaged_name_is_refused(tmp_path: Path, place: int, byte: bytes) -> None:
    """It may name another member, or a folder."""
    content = bytearray(ARCHIVES["stored.zip"])
    end = content.rindex(b"labels/deep/0.png") + len("labels/deep/0.png")  # in the directory
    content[end + place : end + place + 1] = byte
    refused(tmp_path / "a.zip", content)


@pytest.mark.slow
def test_a_zip_of_very_many_entries_is_whole(tmp_path: Path) -> None:
    """The number of its entries is not written where that of a smaller one is."""
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({f"{n}.png": b"" for n in range(65_537)}))
    assert len(content_of(path)) == 65_537


def test_a_zip_with_a_comment_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVES["deflate.zip"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"made by hand"
    assert content_of(path) == FILES


@pytest.mark.parametrize(
    "files", [{".": b"1"}, {"": b"1"}, {"a": b"1", "a/b": b"2"}, {"a/b": b"1", "a": b"2"}, {}]
)
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_members_that_are_no_files_are_refused(tmp_path: Path, name: str, files: dict) -> None:
    refused(tmp_path / name, zip_of(files) if name == "a.zip" else tar_of(files))


def test_what_is_unpacked_can_be_read_and_written(tmp_path: Path) -> None:
    """Whatever permissions the archive wants."""
    locked = tarfile.TarInfo("a.png")
    locked.mode = 0
    (tmp_path / "a.tar").write_bytes(tar_of(FILES, locked))
    unpack(tmp_path / "a.tar", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "a.png").stat().st_mode & 0o600 == 0o600


def test_too_long_a_name_is_refused(tmp_path: Path) -> None:
    assert "too long" in refused(tmp_path / "a.zip", zip_of({"n" * 300: b"1"}))


def test_a_full_disk_names_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write: without a name

    path = tmp_path / "a.zip"
    monkeypatch.setattr(shutil, "copyfileobj", full)
    assert "No space left" in refused(path, ARCHIVES["deflate.zip"])
