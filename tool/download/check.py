"""Check that a download is the same file as before: no web page, and with the recorded SHA-256.

`sha256.json` of a folder maps the name of each file to {"sha256", "url", "unpacked"}. "url" is the
address that the file came from, if it is known. "unpacked" is the SHA-256 of the archive that
`unpacked/` was made from. Earlier versions wrote name -> SHA-256.
"""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path

from tool.files import atomic_path, file_hash

HASHES = "sha256.json"
_BLANK = " \t\r\n\f\v\ufeff"
_MARKUP = re.compile(r"<(?:!--|!\[|!?[a-z][\w:.-]*(?:[\s/>]|$)|\?[a-z]|/[a-z])", re.IGNORECASE)
_BINARY = re.compile(r"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # control characters that no text has
_MARKS = (  # UTF-32 first, because a mark of UTF-32 begins with one of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def check_content(path: Path, folder: Path) -> None:
    """Remove a file that is empty or a web page, and its record in `folder`.

    Args:
        path: The downloaded file.
        folder: The folder of the record.

    Raises:
        ValueError: The file was empty or a web page.
    """
    with open(path, "rb") as file:
        text = _decoded(file.read(1 << 16)).strip(_BLANK)
        more = file.read(1)
    if not is_markup(text) and (text or more):
        return
    records = read_records(folder)
    if path.parent == folder and records.pop(path.name, None):
        write_records(folder, records)
    path.unlink()
    if not text:
        raise ValueError(
            f"{path.name}: the file is empty (removed): the host sent nothing; run again, or "
            f"download it in a browser into {folder}"
        )
    raise ValueError(
        f"{path.name}: a web page instead of a file (removed): the host refuses for now, or the "
        f"file has moved; download it in a browser into {folder}"
    )


def is_markup(text: str) -> bool:
    """Return whether a file that begins with `text` is HTML, XML or SVG.

    Such a file is text, and a tag or a comment comes first. The weights, archives and images that
    are downloaded here are none of these. Some may begin with `<`, but not with text: a safetensors
    file does if its header has such a length.
    """
    return bool(_MARKUP.match(text)) and not _BINARY.search(text[:256])


def _decoded(start: bytes) -> str:
    """Return the first bytes of a file as the text that they are, if they are text."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return start[len(mark) :].decode(encoding, "replace")
    if re.match(rb"[\t-\r <]\0[^\0]\0", start):
        return start.decode("utf-16-le", "replace")
    if re.match(rb"\0[\t-\r <]\0[^\0]", start):
        return start.decode("utf-16-be", "replace")
    return start.decode("latin-1")


def check_hash(path: Path, folder: Path, url: str | None = None) -> str:
    """Return the SHA-256 of a file and record it in `folder` on first sight.

    Args:
        path: The downloaded file.
        folder: The folder of the record.
        url: The address that the file came from, which is recorded too. None if it is not known.

    Raises:
        ValueError: The SHA-256 differs from the recorded one. Neither file is changed.
    """
    records = read_records(folder)
    entry = records.get(path.name, {})
    found = file_hash(path)
    if entry.get("sha256", found) != found:
        raise ValueError(
            f"{path} has SHA-256 {found}, {entry['sha256']} was recorded: it is damaged or was "
            f"replaced; remove it to download it anew, or its entry in {folder / HASHES} to "
            "accept it"
        )
    wanted = entry | {"sha256": found} | ({"url": url} if url else {})
    if entry != wanted:
        write_records(folder, records | {path.name: wanted})
    return found


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
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no record of downloads: remove it")
    records = {n: {"sha256": e} if isinstance(e, str) else e for n, e in content.items()}
    for name, entry in records.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise ValueError(f"{path}: its entry {name!r} has no SHA-256: remove the entry")
    return records


def write_records(folder: Path, records: dict[str, dict[str, str]]) -> None:
    """Replace what is recorded of the downloads of a folder."""
    with atomic_path(folder / HASHES) as temporary:
        temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
