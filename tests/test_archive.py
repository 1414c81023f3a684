"""`tool.download.archive`: a damaged archive is refused, never unpacked in part."""

from __future__ import annotations

import errno
import random
import shutil
import tarfile
from pathlib import Path

import pytest
from file_server import tar_of, zip_of

from tool.download.archive import _announced, unpacked

NOISE = random.Random(0)
FILES = {f"labels/deep/{n}.png": NOISE.randbytes(2000) if n % 2 else b"ab" * 900 for n in range(9)}
ZIPS = {"stored": 0, "deflate": 8, "bzip2": 12, "lzma": 14}


ARCHIVES = {f"a.tar.{kind}": tar_of(FILES, mode=f"w:{kind}") for kind in ("gz", "bz2", "xz")}
ARCHIVES |= {f"{name}.zip": zip_of(FILES, method) for name, method in ZIPS.items()}


def content_of(path: Path) -> dict[str, bytes]:
    """Unpack; the content of the files, by name."""
    with unpacked(path, path.parent) as inside:
        files = (file for file in inside.rglob("*") if file.is_file())
        return {file.relative_to(inside).as_posix(): file.read_bytes() for file in files}


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


def test_a_bad_header_is_not_the_end_of_a_tar(tmp_path: Path) -> None:
    for damage in (b"\xff" * 8, b"\0" * 512):
        content = bytearray(tar_of(FILES, mode="w"))
        place = content.index(b"labels/deep/4.png")
        content[place : place + len(damage)] = damage
        refused(tmp_path / "a.tar", content)


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


@pytest.mark.parametrize("count", [1, 65_535, 65_537])
def test_the_number_of_entries_is_read_of_large_zips_too(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_of({str(n): b"" for n in range(count)}))
    assert _announced(path) == count


@pytest.mark.parametrize(
    "files", [{".": b"1"}, {"": b"1"}, {"a": b"1", "a/b": b"2"}, {"a/b": b"1", "a": b"2"}, {}]
)
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_members_that_are_no_files_are_refused(tmp_path: Path, name: str, files: dict) -> None:
    refused(tmp_path / name, zip_of(files) if name == "a.zip" else tar_of(files))


def test_a_tar_that_claims_to_be_endless_is_refused(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("a.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 1 << 62  # nothing stored, years to skip
    assert "a.png" in refused(tmp_path / "a.tar", sparse.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def test_too_long_a_name_is_refused(tmp_path: Path) -> None:
    assert "too long" in refused(tmp_path / "a.zip", zip_of({"n" * 300: b"1"}))


def test_a_full_disk_names_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write: without a name

    path = tmp_path / "a.zip"
    path.write_bytes(ARCHIVES["deflate.zip"])
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"No space left.*a\.zip") as caught:
        content_of(path)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
