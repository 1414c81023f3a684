"""Check that a download is no web page, and that its SHA-256 is the recorded one.

The file `sha256.json` in a folder of downloads maps the name of each file to {"sha256", "url",
"unpacked"}. "url" is the address that the file came from, if it is known. "unpacked" is the SHA-256
of the archive that `unpacked/` is made from, if it was unpacked. Earlier versions wrote only the
SHA-256 in place of the dictionary.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from tool.documents import ANY, read_document
from tool.files import file_hash, write_json

HASHES = "sha256.json"
_START = 1 << 16  # the number of bytes that are examined
_MARKUP = re.compile(r"<(?:[!?/]?[a-z]|!--|!\[)", re.IGNORECASE)


def check_content(path: Path, folder: Path) -> None:
    """Remove a file that is empty or a web page, and raise an error.

    Weights, archives and images are not text. Some may begin with `<`, but then a zero byte follows
    within a few bytes.

    Args:
        path: The downloaded file.
        folder: The folder into which the user should put the file by hand, for the message.

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
    """Compare the SHA-256 of a file with the recorded one, or record it if there is no record.

    Args:
        path: The downloaded file.
        folder: The folder of the record.
        url: The address that the file came from, which is recorded too. None if it is not known.

    Raises:
        ValueError: The SHA-256 differs from the recorded one, or the record cannot be read. The
            file and the record are not changed.
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
    """Return the records of the downloads in a folder.

    Args:
        folder: The folder of the downloads.

    Returns:
        File name -> its record, with at least "sha256"; {} if there is no `sha256.json`.

    Raises:
        ValueError: The record cannot be read; names it.
    """
    path = folder / HASHES
    if not path.exists():
        return {}
    content = read_document(path, {ANY: (str, {"sha256": str, ANY: str})})
    return {name: {"sha256": e} if isinstance(e, str) else e for name, e in content.items()}
