"""Check that a download is the same file as before: no web page, and with the recorded SHA-256.

`sha256.json` of a folder maps the name of each file to {"sha256", "url", "unpacked"}. "url" is the
address that the file came from, if it is known. "unpacked" is the SHA-256 of the archive that
`unpacked/` is made from, where there is one. Earlier versions wrote name -> SHA-256.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tool.files import file_hash, write_json

HASHES = "sha256.json"
_START = 1 << 16  # bytes that are looked at
_MARKUP = re.compile(r"<(?:[!?/]?[a-z]|!--|!\[)", re.IGNORECASE)


def check_content(path: Path, folder: Path) -> None:
    """Remove a file that is empty or a web page.

    Weights, archives and images are no text. Some may begin with `<`, but a zero byte follows soon.

    Args:
        path: The downloaded file.
        folder: Where the error says to put the file by hand.

    Raises:
        ValueError: The file was empty, or HTML, XML or SVG.
    """
    with open(path, "rb") as file:
        start = file.read(_START)
    text = start.decode(json.detect_encoding(start), "replace").strip()
    if not text and len(start) < _START:
        what = "the file is empty (removed): the host sent nothing"
    elif _MARKUP.match(text) and "\0" not in text[:256]:
        what = "a web page instead of a file (removed): the host refuses for now, or it has moved"
    else:
        return
    path.unlink()
    raise ValueError(f"{path.name}: {what}; run again, or download it in a browser into {folder}")


def check_hash(path: Path, folder: Path, url: str | None = None) -> None:
    """Compare the SHA-256 of a file with the recorded one; record it in `folder` on first sight.

    Args:
        path: The downloaded file.
        folder: The folder of the record.
        url: The address that the file came from, which is recorded too. None if it is not known.

    Raises:
        ValueError: The SHA-256 differs from the recorded one. The file and the record stay.
    """
    records = read_records(folder)
    found = file_hash(path)
    entry = records.setdefault(path.name, {"sha256": found})
    if entry["sha256"] != found:
        raise ValueError(
            f"{path} has SHA-256 {found}, {entry['sha256']} was recorded: it is damaged or was "
            f"replaced; remove it to download it anew, or its entry in {folder / HASHES} to "
            "accept it"
        )
    if url:
        entry["url"] = url
    write_json(folder / HASHES, records)


def read_records(folder: Path) -> dict[str, dict[str, str]]:
    """Return what is recorded of the downloads of a folder, by file name.

    Raises:
        ValueError: The record cannot be read; names it.
    """
    path = folder / HASHES
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = {n: {"sha256": e} if isinstance(e, str) else e for n, e in content.items()}
        return {name: {"sha256": entry["sha256"], **entry} for name, entry in entries.items()}
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no record of downloads: repair or remove it") from error
