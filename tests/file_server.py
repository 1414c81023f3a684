"""Helpers of the tests of `tool.download`: a local server of files, and archives to serve."""

from __future__ import annotations

import http.server
import io
import tarfile
import zipfile
from pathlib import Path

from runs import Result, run


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path; `cut` breaks the next answer off after so many bytes.

    `ranges`: whether it serves a part of a file, or answers every request with the whole.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.ranges = True
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
        asked = asked if self.server.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end, self.server.cut = self.server.cut, None
        self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


def download(server: Server, name: str, out: Path, what: str = "weights") -> Result:
    return run("tool/download/__main__.py", what, "--url", server.url(name), "--out", out)


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return content.getvalue()


def tar_of(files: dict[str, bytes], *links: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for link in links:
            archive.addfile(link)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5  # a fraction: a header before the header
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


class Killed(BaseException):
    """No `Exception`: nothing may catch it."""


def killed(*_: object) -> None:
    raise Killed
