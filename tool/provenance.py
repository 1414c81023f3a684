"""What the files of a folder were made from, as the stage that made them noted it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tool.files import atomic_path

MADE_FROM = "made_from.json"
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


def claim(directory: Path | str, made_from: dict[str, Any]) -> None:
    """Note in `made_from.json` what a folder is made from: a restart cannot mix two runs.

    Args:
        made_from: plain types.

    Raises:
        ValueError: the folder holds files made from something else; names what differs.
    """
    differ = differing(directory, made_from)
    if differ:
        raise ValueError(
            f"{directory} holds files of another run ({', '.join(differ)} differ): "
            "choose another --out, or remove it"
        )
    if differ is None:
        with atomic_path(Path(directory) / MADE_FROM) as temporary:
            temporary.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")


def differing(directory: Path | str, made_from: dict[str, Any]) -> list[str] | None:
    """Names in which the note of `claim` differs from `made_from`; None without a note."""
    path = Path(directory) / MADE_FROM
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return list(made_from)
    wanted = json.loads(json.dumps(made_from))
    names = dict.fromkeys((*wanted, *there))
    return [n for n in names if n not in there or n not in wanted or there[n] != wanted[n]]
