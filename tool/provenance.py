"""Provenance: each stage notes beside its files what they were made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tool.files import atomic_path

MADE_FROM = "made_from.json"  # stage 2's note
SETTINGS = "crf.json"  # stage 3's note
POST = "post"  # in stage 2's note: how its maps become masks (`tool.crf.post`); not compared


def read_note(folder: Path) -> Any:
    """Return the note of stage 2 or 3 in a folder, or None if it has none.

    Raises:
        ValueError: The note is broken; names the file.
    """
    for name in (MADE_FROM, SETTINGS):
        path = folder / name
        if path.is_file():
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path} is broken: {error}") from error
    return None


def note_of(folder: Path) -> Any:
    """Return what `read_note` does, without the settings that say how masks are made from maps."""
    note = read_note(folder)
    return {k: v for k, v in note.items() if k != POST} if isinstance(note, dict) else note


def origin(folder: Path) -> Any:
    """Return the note in a folder, or a hash of its files: folders that differ differ in this."""
    note = note_of(folder)
    if note is not None:
        return note
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".npy"):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def claim(
    directory: Path | str, made_from: dict[str, Any], *, post: dict[str, Any] | None = None
) -> None:
    """Note in `made_from.json` what a folder is made from, so that a restart cannot mix two runs.

    Args:
        made_from: Plain types; must equal what an earlier note says.
        post: How the maps become masks, for stages 3 and 4. It is not compared, because it changes
            no map; the newest is kept.

    Raises:
        ValueError: The folder holds files made from something else; names what differs.
    """
    differ = differing(directory, made_from)
    if differ:
        raise ValueError(
            f"{directory} holds files of another run ({', '.join(differ)} differ): "
            "choose another --out, or remove it"
        )
    path = Path(directory) / MADE_FROM
    text = json.dumps(made_from | ({POST: post} if post else {}), indent=1) + "\n"
    if differ is None or path.read_text(encoding="utf-8") != text:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def differing(directory: Path | str, made_from: dict[str, Any]) -> list[str] | None:
    """Return the names in which a folder's note differs from `made_from`; None without a note."""
    path = Path(directory) / MADE_FROM
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return list(made_from)
    there.pop(POST, None)
    wanted = json.loads(json.dumps(made_from))
    names = dict.fromkeys((*wanted, *there))
    return [n for n in names if n not in there or n not in wanted or there[n] != wanted[n]]
