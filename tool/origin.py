"""What the files of a folder were made from, as the stage that made them noted it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tool.files import MADE_FROM

SETTINGS = "crf.json"  # stage 3's note; stage 2's is MADE_FROM


def note_of(folder: Path) -> Any:
    """The note of stage 2 or 3 in `folder`; None where there is none.

    Raises:
        ValueError: a broken note, named.
    """
    for name in (MADE_FROM, SETTINGS):
        path = folder / name
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is broken: {error}") from error
    return None


def origin(folder: Path) -> Any:
    """The note in `folder`, else a hash of its files: two folders that differ have two origins."""
    note = note_of(folder)
    if note is not None:
        return note
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".npy"):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
