"""`python -m tool.download checkpoints|pseudo-labels|saliency|weights|u2net`: released files.

Resumed where it was interrupted. The SHA-256 of a file is recorded on first sight in
`sha256.json` beside it and checked ever after; an archive is unpacked into a folder of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from tool.files import atomic_path, locked
from tool.options import Parser, run_stage
from tool.run_directory import file_hash

_DRIVE = "https://drive.google.com/uc?id={}"
SOURCES = {
    "checkpoints": _DRIVE.format("1CKkKk72nowWnsVYFPxt9kNk50k3eWVu2"),
    "pseudo-labels": _DRIVE.format("1ZFowMQkvFBWQyPnlQC3WtPZr6ykFFLqb"),
    "saliency": _DRIVE.format("19AjSmgdMlIZH4FXVZ5zjlUZcoZZCkwrI"),
    "weights": _DRIVE.format("1LzMIhXGjdiml0KbgTUH2xglSQelqpx0H"),
    "u2net": "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx",
}
HASHES = "sha256.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Download one file, check it, unpack it."""
    args = parse(argv)
    folder = args.out / args.what
    with locked(folder):
        path = fetch(args.url or SOURCES[args.what], folder)
        check_content(path)
        print(f"{path}: {path.stat().st_size} bytes, SHA-256 {check_hash(path)}")
        if is_archive(path):
            target = folder / "unpacked"
            if not target.exists():
                unpack(path, target)
            print(f"unpacked in {target}")


def get(what: str) -> Path:
    """A file of `SOURCES`, downloaded where it is not there and checked."""
    raise NotImplementedError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = Parser(prog="tool.download", description=__doc__)
    parser.add_argument("what", choices=tuple(SOURCES), help="what to download")
    parser.add_argument("--out", type=Path, default=Path("out/downloads"), help="parent folder")
    parser.add_argument("--url", help="another address of the same thing; None: the known one")
    return parser.parse_args(argv)


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, under its own name in `folder`; one that is there is not fetched again.

    Raises:
        ConnectionError: it could not be had; run again to go on where it stopped.
    """
    there = [path for path in folder.iterdir() if _is_download(path)]
    if there:
        return there[0]
    import gdown
    from gdown.exceptions import DownloadError
    from requests.exceptions import RequestException

    try:
        return Path(gdown.download(url, output=f"{folder}/", resume=True))
    except (DownloadError, RequestException) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({' '.join(str(error).split())}): run again to resume, "
            f"or put the file into {folder} by hand"
        ) from error


def _is_download(path: Path) -> bool:
    """Whether a file of the folder is a finished download."""
    return path.is_file() and path.name not in (HASHES, ".lock") and path.suffix != ".part"


def check_content(path: Path) -> None:
    """`ValueError` when a web page came in place of the file; the page is removed."""
    with open(path, "rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")) or not start:
        path.unlink()
        raise ValueError(
            f"{path.name}: a web page came in place of the file (removed): the host refuses for "
            f"now, or the file has moved; download it in a browser into {path.parent}"
        )


def check_hash(path: Path) -> str:
    """The file's SHA-256, recorded on first sight.

    Raises:
        ValueError: it is another than the recorded one; neither file is changed.
    """
    record = path.parent / HASHES
    try:
        known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    except ValueError as error:
        raise ValueError(f"{record} is no JSON file: {error}") from error
    found = file_hash(path)
    expected = known.get(path.name) if isinstance(known, dict) else None
    if expected not in (None, found):
        raise ValueError(
            f"{path} has SHA-256 {found}, {expected} was recorded: it is damaged or was replaced; "
            f"remove it to download it anew, or its line in {HASHES} to accept it"
        )
    if expected is None:
        with atomic_path(record) as temporary:
            content = {**(known if isinstance(known, dict) else {}), path.name: found}
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return found


def is_archive(path: Path) -> bool:
    """Whether to unpack it: a `.pth` is a zip file inside, and stays as it is."""
    names = path.name.lower()
    return names.endswith((".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def unpack(path: Path, target: Path) -> None:
    """Unpack a zip or tar archive: all of it, or nothing.

    Raises:
        ValueError: no archive, damaged, or with a member that is a link or leaves the folder.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack.", dir=target.parent) as temporary:
        inside = Path(temporary) / "files"
        inside.mkdir()
        try:
            for name, file in _members(path):
                place = inside / _safe(name)
                place.parent.mkdir(parents=True, exist_ok=True)
                with file, open(place, "wb") as copy:
                    shutil.copyfileobj(file, copy)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError) as error:
            raise ValueError(f"{path} is not a whole archive: {error}") from error
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is refused, nothing unpacked: {error}") from error
        inside.rename(target)


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every regular file; `ValueError` for anything but files and folders."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise ValueError(f"{member.filename!r} is a link")
                if not member.is_dir():
                    yield member.filename, archive.open(member)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"{member.name!r} is neither a file nor a folder")
            if member.isfile():
                yield member.name, archive.extractfile(member)


def _safe(name: str) -> PurePosixPath:
    """The relative path of a member; `ValueError` when it leaves the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or "\0" in name:
        raise ValueError(f"{name!r} leaves the folder")
    return path


if __name__ == "__main__":
    run_stage(main)
