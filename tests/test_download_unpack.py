"""`tool.download` against a local server: archives are unpacked whole, from this very file."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from file_server import Killed, download, killed, tar_of, zip_of
from runs import assert_refused

from tool.download.check import HASHES


@pytest.mark.parametrize("name", ["labels.zip", "labels.tar.gz"])
def test_archives_are_unpacked(server, tmp_path, name: str) -> None:
    files = {"labels/2007_000032.png": b"one", "labels/deep/2.png": b"two"}
    server.files[name] = zip_of(files) if name.endswith("zip") else tar_of(files)
    result = download(server, name, tmp_path, "pseudo-labels")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "pseudo-labels" / "unpacked"
    for inner, content in files.items():
        assert (folder / inner).read_bytes() == content


def test_another_archive_is_not_taken_for_unpacked(server, tmp_path) -> None:
    folder = tmp_path / "saliency"
    server.files["a.zip"] = zip_of({"1.png": b"old", "2.png": b"old"})
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    mine = folder / "unpacked" / "mine.txt"
    mine.write_bytes(b"")  # not compared again: this archive was unpacked
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    (folder / "a.zip").unlink()
    server.files["b.zip"] = zip_of({"1.png": b"new"})
    assert_refused(download(server, "b.zip", tmp_path, "saliency"), "unpacked", "b.zip", "move")
    assert mine.exists()
    (folder / "unpacked").rename(tmp_path / "elsewhere")
    assert download(server, "b.zip", tmp_path, "saliency").returncode == 0
    assert [path.name for path in (folder / "unpacked").iterdir()] == ["1.png"]
    (folder / "b.zip").unlink()  # and back to the first one, whose record is older
    assert_refused(download(server, "a.zip", tmp_path, "saliency"), "unpacked", "a.zip", "move")
    assert (folder / "unpacked" / "1.png").read_bytes() == b"new"


def test_a_folder_that_is_not_recorded_as_whole_is_said(server, tmp_path) -> None:
    """It may hold a part of an archive."""
    folder = tmp_path / "saliency"
    server.files["a.zip"] = zip_of({"1.png": b"one", "deep/2.png": b"two"})
    (folder / "unpacked").mkdir(parents=True)
    (folder / "unpacked" / "1.png").write_bytes(b"one")
    assert_refused(download(server, "a.zip", tmp_path, "saliency"), "unpacked", "move")
    assert [path.name for path in (folder / "unpacked").rglob("*")] == ["1.png"]


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("renamed", [False, True])
def test_killed_while_it_unpacks_it_ends_later(
    server, tmp_path, monkeypatch, calls: int, renamed: bool
) -> None:
    folder = tmp_path / "saliency"
    server.files["a.zip"] = zip_of({"1.png": b"new"})
    rename, left = Path.rename, iter(range(calls))

    def killed_later(path: Path, target: Path) -> Path:
        last = next(left, None) is None
        if renamed or not last:
            path = rename(path, target)
        return killed() if last else path

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_later)
        with pytest.raises(Killed):
            download(server, "a.zip", tmp_path, "saliency")
    assert (folder / "unpacked").exists() == (calls == 1 and renamed)
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    assert (folder / "unpacked" / "1.png").read_bytes() == b"new"


def test_a_checkpoint_is_a_zip_file_that_stays_whole(server, tmp_path) -> None:
    server.files["fbr.pth"] = zip_of({"archive/data.pkl": b"x"})
    assert download(server, "fbr.pth", tmp_path, "checkpoints").returncode == 0
    assert (tmp_path / "checkpoints" / "fbr.pth").is_file()
    assert not (tmp_path / "checkpoints" / "unpacked").exists()


def link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


def linked_zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    return content.getvalue()


def damaged(content: bytes) -> bytes:
    """The bytes in the middle flipped."""
    middle = len(content) // 2
    flipped = bytes(255 - byte for byte in content[middle : middle + 20])
    return content[:middle] + flipped + content[middle + 20 :]


MANY = {f"{n}.png": bytes(range(256)) * (n + 1) for n in range(40)}
EVIL = {
    "up.zip": zip_of({"fine.png": b"1", "../evil.png": b"2"}),
    "absolute.zip": zip_of({"/tmp/evil.png": b"2"}),
    "back.zip": zip_of({"..\\evil.png": b"2"}),
    "drive.zip": zip_of({"c:/evil.png": b"2"}),
    "link.zip": linked_zip(),
    "up.tar": tar_of({"fine.png": b"1", "a/../../evil.png": b"2"}),
    "absolute.tgz": tar_of({"/evil.png": b"2"}),
    "link.tar": tar_of({"link/evil.png": b"2"}, link("link", "/tmp")),
    "cut.zip": zip_of({"a.png": b"1" * 99})[:-30],
    "cut.tar": tar_of({"a.png": bytes(range(256)) * 99})[:-300],
    "damaged.tar.gz": damaged(tar_of(MANY)),
    "damaged.tar.bz2": damaged(tar_of(MANY, mode="w:bz2")),
    "damaged.tar.xz": damaged(tar_of(MANY, mode="w:xz")),
    "damaged.zip": damaged(zip_of(MANY, zipfile.ZIP_DEFLATED)),
    "damaged_bzip2.zip": damaged(zip_of(MANY, zipfile.ZIP_BZIP2)),
    "damaged_lzma.zip": damaged(zip_of(MANY, zipfile.ZIP_LZMA)),
    "dot.zip": zip_of({"fine.png": b"1", ".": b"2"}),
    "dot.tar": tar_of({"fine.png": b"1", ".": b"2"}),
    "none.zip": b"not an archive",
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_leaves_its_folder_unpacks_nothing(server, tmp_path, name: str) -> None:
    server.files[name] = EVIL[name]
    assert_refused(download(server, name, tmp_path / "out", "saliency"), name)
    assert not (tmp_path / "out" / "saliency" / "unpacked").exists()
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "saliency", name, HASHES, ".lock"}
