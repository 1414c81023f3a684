"""`tool.download` against a local server: archives are unpacked whole, from this very file."""

from __future__ import annotations

import hashlib
import io
import json
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


def test_another_archive_is_unpacked_anew(server, tmp_path) -> None:
    folder = tmp_path / "saliency"
    server.files["a.zip"] = zip_of({"1.png": b"old", "2.png": b"old"})
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    (folder / "a.zip").unlink()
    (folder / HASHES).unlink()
    server.files["a.zip"] = zip_of({"1.png": b"new"})
    assert "moved to" in download(server, "a.zip", tmp_path, "saliency").stdout
    assert {path.name for path in (folder / "unpacked").iterdir()} == {"1.png"}
    assert (folder / "unpacked" / "1.png").read_bytes() == b"new"
    assert (folder / "unpacked.old" / "2.png").read_bytes() == b"old"
    mine = folder / "unpacked" / "mine.txt"
    mine.write_bytes(b"")  # not compared again: this archive was unpacked
    assert "moved to" not in download(server, "a.zip", tmp_path, "saliency").stdout
    assert mine.exists()


def test_a_folder_that_an_earlier_version_unpacked_is_compared(server, tmp_path) -> None:
    """It may hold a part of a damaged archive; where it is whole it stays."""
    folder = tmp_path / "saliency"
    server.files["a.zip"] = content = zip_of({"1.png": b"one", "deep/2.png": b"two"})
    (folder / "unpacked" / "deep").mkdir(parents=True)
    (folder / "a.zip").write_bytes(content)
    (folder / HASHES).write_text(json.dumps({"a.zip": hashlib.sha256(content).hexdigest()}))
    (folder / "unpacked" / "1.png").write_bytes(b"one")
    assert "moved to" in download(server, "a.zip", tmp_path, "saliency").stdout
    assert (folder / "unpacked" / "deep" / "2.png").read_bytes() == b"two"
    records = json.loads((folder / HASHES).read_text())
    (folder / HASHES).write_text(json.dumps({"a.zip": records["a.zip"]["sha256"]}))
    before = (folder / "unpacked").stat().st_ino
    assert "moved to" not in download(server, "a.zip", tmp_path, "saliency").stdout
    assert (folder / "unpacked").stat().st_ino == before


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_killed_while_it_unpacks_it_ends_later(server, tmp_path, monkeypatch, calls: int) -> None:
    folder = tmp_path / "saliency"
    server.files["a.zip"] = zip_of({"1.png": b"new"})
    (folder / "unpacked").mkdir(parents=True)
    (folder / "unpacked" / "1.png").write_bytes(b"old")
    rename, left = Path.rename, iter(range(calls))

    def killed_later(path: Path, target: Path) -> Path:
        return killed() if next(left, None) is None else rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_later)
        with pytest.raises(Killed):
            download(server, "a.zip", tmp_path, "saliency")
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    assert (folder / "unpacked" / "1.png").read_bytes() == b"new"
    assert (folder / "unpacked.old" / "1.png").read_bytes() == b"old"
    assert not list(folder.glob(".[!l]*"))


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
