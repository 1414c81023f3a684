"""Released files: each is fetched once, checked by its SHA-256, and unpacked."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import hashlib
import itertools
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tool.download.archive import TEMPORARY, is_archive, unpacked
from tool.download.check import HASHES, check_content, check_hash, read_records, write_records
from tool.files import locked

_DRIVE = "https://drive.google.com/uc?id={}"
SOURCES = {
    "checkpoints": _DRIVE.format("1CKkKk72nowWnsVYFPxt9kNk50k3eWVu2"),
    "pseudo-labels": _DRIVE.format("1ZFowMQkvFBWQyPnlQC3WtPZr6ykFFLqb"),
    "saliency": _DRIVE.format("19AjSmgdMlIZH4FXVZ5zjlUZcoZZCkwrI"),
    "weights": _DRIVE.format("1LzMIhXGjdiml0KbgTUH2xglSQelqpx0H"),
    "u2net": "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx",
}
FOLDER = Path("out/downloads")
UNPACKED = "unpacked"
_PART = re.compile(r"(.+)[a-z0-9_]{8}\.part")  # gdown's name of an unfinished file


def get(what: str, *, out: Path = FOLDER, url: str | None = None) -> Path:
    """Download the file `what` of `SOURCES` if it is missing, check it, and unpack it.

    Args:
        what: A name in `SOURCES`.
        out: The parent of the file's folder.
        url: Another address of the same thing. None takes the file in the folder, else the known
            address.

    Returns:
        The downloaded file.
    """
    folder = out / what
    with locked(folder):
        remove_leftovers(folder)
        path = find(folder, url)
        if path:
            check_content(path, folder)
            digest = check_hash(path, folder)
        else:
            path, digest = fetch(url or SOURCES[what], folder)
        origin = read_records(folder)[path.name].get("url")
        print(f"{path}: {path.stat().st_size} bytes, SHA-256 {digest}", end="")
        print(f", from {origin}" if origin else "")
        if is_archive(path):
            unpack_once(path, folder)
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed runs.

    The folder is locked, so nobody is writing them.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path)
    for path in folder.glob(f".{Path(HASHES).stem}.*.json"):
        path.unlink()


def find(folder: Path, url: str | None) -> Path | None:
    """Return the finished download in `folder`, or None if there is none.

    Args:
        folder: The folder of the download.
        url: The address that the user gave. None accepts any address.

    Raises:
        ValueError: The file came from another address, or is one of several.
    """
    records = read_records(folder)
    there = sorted(path for path in folder.iterdir() if path.is_file() and is_name(path.name))
    there = [path for path in there if path.name in records] or there
    same = [path for path in there if url and records.get(path.name, {}).get("url") == url]
    if not there or same:
        return same[0] if same else None
    if len(there) > 1:
        names = ", ".join(path.name for path in there)
        raise ValueError(f"{folder} holds {names}: move all but the download elsewhere")
    (path,) = there
    known = records.get(path.name, {}).get("url")
    # Earlier versions recorded no address. Then the name decides, if the address has one.
    if url and (known or PurePosixPath(urlsplit(url).path).name != path.name):
        raise ValueError(
            f"{path} is the download of {known or 'an address that is not recorded'}, not of "
            f"{url}: remove it, leave out --url to use it, or choose another --out"
        )
    return path


def is_name(name: str) -> bool:
    """Return whether a download may have this name.

    Names that cannot be printed, names of files that this program makes, and names of unfinished
    downloads are not allowed.
    """
    ours = name in (HASHES, UNPACKED) or name.startswith((".", f"{UNPACKED}.old"))
    return not ours and not name.endswith(".part") and name.isprintable()


def fetch(url: str, folder: Path) -> tuple[Path, str]:
    """Download, check and record the file at `url`, then move it into `folder`.

    Before that it is in a folder of its own, named by the address. So two addresses never share an
    unfinished file.

    Returns:
        The file, under the name that the host gives it, and its SHA-256.

    Raises:
        ConnectionError: The download failed. Another run resumes it.
        ValueError: The host sent something other than the file, or gave it a name that cannot be
            used.
        OSError: The file could not be written.
    """
    incoming = folder / f".partial-{hashlib.sha256(url.encode()).hexdigest()[:16]}"
    incoming.mkdir(exist_ok=True)
    for part in _parts(folder):  # earlier versions left unfinished files there
        part.replace(incoming / part.name)
    try:
        choose_parts(incoming)
        whole = set(incoming.iterdir()) - set(_parts(incoming))
        path = whole.pop() if whole else _download(url, incoming)
        if not is_name(path.name):
            raise ValueError(f"{url}: the host calls its file {path.name!r}: download it by hand")
        check_content(path, folder)
        digest = check_hash(path, folder, url)
        path = path.rename(folder / path.name)
    finally:
        with contextlib.suppress(OSError):
            incoming.rmdir()  # succeeds if nothing is left to resume
    shutil.rmtree(incoming, ignore_errors=True)
    return path, digest


def choose_parts(incoming: Path) -> None:
    """Leave one unfinished file per name, as gdown expects.

    It is the longest one, if it begins with each of the others. If they contradict each other, none
    is certainly right, and all of that name are removed.
    """
    groups: dict[str, list[Path]] = {}
    for part in sorted(_parts(incoming), key=lambda part: part.stat().st_size, reverse=True):
        groups.setdefault(_PART.fullmatch(part.name)[1], []).append(part)
    for longest, *others in groups.values():
        agree = all(_begins_with(longest, other) for other in others)
        for part in others if agree else [longest, *others]:
            print(f"{part.name}: one of {1 + len(others)} unfinished downloads, removed")
            part.unlink()


def _parts(folder: Path) -> list[Path]:
    """Return gdown's unfinished downloads in a folder; those of a browser have other names."""
    return [path for path in folder.iterdir() if _PART.fullmatch(path.name)]


def _begins_with(path: Path, start: Path) -> bool:
    """Return whether the bytes of `path` begin with those of `start`."""
    with open(path, "rb") as file, open(start, "rb") as expected:
        while block := expected.read(1 << 20):
            if file.read(len(block)) != block:
                return False
    return True


def _download(url: str, incoming: Path) -> Path:
    """Download the file at `url` into `incoming`; start over if the host refuses to resume.

    Raises:
        ConnectionError: The download failed.
        OSError: The file could not be written; names it.
    """
    from gdown.exceptions import DownloadError
    from requests.exceptions import RequestException

    try:
        try:
            return _gdown(url, incoming)
        except DownloadError as error:
            # The host has no ranges, the file is complete (HTTP 416), or it has changed since.
            parts = _parts(incoming)
            if "byte range" not in str(error) or not parts:
                raise
            for part in parts:
                print(f"{part.name}: the host does not resume it; removed, starting over")
                part.unlink()
            return _gdown(url, incoming)
    except (DownloadError, RequestException, ConnectionError, TimeoutError, ValueError) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({' '.join(str(error).split())}): run again to resume, "
            f"or put the file into {incoming.parent} by hand"
        ) from error
    except OSError as error:
        if error.filename is None:  # a failed write to a full disk does not name its file
            file = next(incoming.iterdir(), incoming)
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), file) from error
        raise


def _gdown(url: str, incoming: Path) -> Path:
    """Run `gdown.download`, which resumes if there is one unfinished file of that name."""
    import gdown

    return Path(gdown.download(url, output=f"{incoming}/", resume=True))


def unpack_once(path: Path, folder: Path) -> None:
    """Unpack into `unpacked/`, unless that folder was made from this very archive.

    Other content of that folder is kept under another name. Whenever the process is killed,
    `unpacked/` is missing, or is whole and recorded as such, or is unpacked anew by the next run.
    """
    target = folder / UNPACKED
    records = read_records(folder)
    entry = records[path.name]
    if target.exists() and entry.get("unpacked") == entry["sha256"]:
        print(f"unpacked in {target}")
        return
    with unpacked(path, folder) as fresh:
        same = _same_files(target, fresh)
        if os.path.lexists(target) and not same:
            names = (folder / f"{UNPACKED}.old{n or ''}" for n in itertools.count())
            aside = next(name for name in names if not os.path.lexists(name))
            target.rename(aside)
            print(f"{target} was not made from this file: moved to {aside}")
        for other in records.values():
            other.pop("unpacked", None)
        entry["unpacked"] = entry["sha256"]
        write_records(folder, records)
        if not same:
            fresh.rename(target)
    print(f"unpacked in {target}")


def _same_files(folder: Path, other: Path) -> bool:
    """Return whether two folders hold the same files."""
    files, others = (
        {path.relative_to(root) for path in root.rglob("*") if not path.is_dir()}
        for root in (folder, other)
    )
    return files == others and all(
        filecmp.cmp(folder / name, other / name, shallow=False) for name in files
    )
