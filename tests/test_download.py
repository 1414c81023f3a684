"""`tool.download` against a local server: resume, checksums, web pages, unpacking."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import assert_refused, run

from tool.download import HASHES, SOURCES


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, in ranges; `cut` breaks the next answer off after so many bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.asked: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path.lstrip("/"))
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end, self.server.cut = self.server.cut, None
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def download(server: Server, name: str, out: Path, what: str = "weights"):
    return run("tool/download.py", what, "--url", server.url(name), "--out", out)


def zip_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tar_of(files: dict[str, bytes], *links: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for link in links:
            archive.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_downloads_once_and_records_the_checksum(server, tmp_path) -> None:
    server.files["res38.params"] = bytes(range(256)) * 400
    result = download(server, "res38.params", tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "weights" / "res38.params"
    assert path.read_bytes() == server.files["res38.params"]
    assert list(json.loads((path.parent / HASHES).read_text())) == ["res38.params"]
    assert download(server, "res38.params", tmp_path).returncode == 0
    assert len(server.asked) == 1


def test_a_broken_download_is_resumed(server, tmp_path) -> None:
    server.files["res38.params"], server.cut = bytes(range(256)) * 12_000, 2_000_000
    assert_refused(download(server, "res38.params", tmp_path), "run again to resume")
    assert not (tmp_path / "weights" / "res38.params").exists()
    result = download(server, "res38.params", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "weights" / "res38.params").read_bytes() == server.files["res38.params"]
    assert server.asked[0] is None
    assert int(server.asked[-1].removeprefix("bytes=").rstrip("-")) > 1_000_000


def test_a_file_that_changed_is_refused_and_kept(server, tmp_path) -> None:
    server.files["a.params"] = b"first"
    download(server, "a.params", tmp_path)
    path = tmp_path / "weights" / "a.params"
    path.write_bytes(b"other")
    assert_refused(download(server, "a.params", tmp_path), "a.params", "SHA-256")
    assert path.read_bytes() == b"other"
    path.unlink()
    server.files["a.params"] = b"replaced on the server"
    assert_refused(download(server, "a.params", tmp_path), "SHA-256")


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <HTML><body>Quota", b""])
def test_a_web_page_in_place_of_the_file_is_said(server, tmp_path, page: bytes) -> None:
    server.files["saliency.zip"] = page
    assert_refused(download(server, "saliency.zip", tmp_path, "saliency"), "web page", "browser")
    assert not (tmp_path / "saliency" / "saliency.zip").exists()
    assert not (tmp_path / "saliency" / HASHES).exists()


def test_what_is_not_there_is_one_line(server, tmp_path) -> None:
    assert_refused(download(server, "none.zip", tmp_path), "none.zip", "404")
    assert_refused(run("tool/download.py", "everything"), "everything")
    server.shutdown()
    server.server_close()
    assert_refused(download(server, "none.zip", tmp_path), "none.zip")


@pytest.mark.parametrize("name", ["labels.zip", "labels.tar.gz"])
def test_archives_are_unpacked(server, tmp_path, name: str) -> None:
    files = {"labels/2007_000032.png": b"one", "labels/deep/2.png": b"two"}
    server.files[name] = zip_of(files) if name.endswith("zip") else tar_of(files)
    result = download(server, name, tmp_path, "pseudo-labels")
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "pseudo-labels" / "unpacked"
    for inner, content in files.items():
        assert (folder / inner).read_bytes() == content


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
    "none.zip": b"not an archive",
}


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_leaves_its_folder_unpacks_nothing(server, tmp_path, name: str) -> None:
    server.files[name] = EVIL[name]
    assert_refused(download(server, name, tmp_path / "out", "saliency"), name)
    assert not (tmp_path / "out" / "saliency" / "unpacked").exists()
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "saliency", name, HASHES, ".lock"}


def test_the_released_files_have_addresses() -> None:
    assert set(SOURCES) == {"checkpoints", "pseudo-labels", "saliency", "weights", "u2net"}
    assert all(url.startswith("https://") for url in SOURCES.values())
