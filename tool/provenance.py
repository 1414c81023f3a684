"""Provenance: each stage notes beside its files what they were made from, and never mixes two runs.

A stage claims its output folder before it writes. The claim compares the settings of the run with
the note of the folder, if it has one. If they differ, the run stops. So a folder that a restart
completes has files of one origin only.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from tool.documents import ANY, read_dict, read_document
from tool.files import as_json, file_hash, first_few, write_json

MADE_FROM = "made_from.json"  # stage 2's note
SETTINGS = "crf.json"  # stage 3's note
PLAIN = "plain"  # the folder, in that of the CAMs, of those before the gate
PHOTOGRAPHS = "photographs.json"  # the hash of the photograph of each file
POST = "post"  # in stage 2's note: how its maps become masks (`tool.crf.post`); not compared


def read_note(folder: Path) -> dict[str, Any] | None:
    """Return the note of stage 2 or 3 in a folder.

    Args:
        folder: The folder. If it has both notes, that of stage 2 is read.

    Returns:
        The content of the JSON file, or None if the folder has no note.

    Raises:
        ValueError: The note is broken; names the file.
    """
    for name in (MADE_FROM, SETTINGS):
        path = folder / name
        if path.is_file():
            return read_document(path)
    return None


def note_of(folder: Path) -> dict[str, Any] | None:
    """Return the note of `read_note` without `post`, the settings that make masks of the maps."""
    note = read_note(folder)
    return None if note is None else {k: v for k, v in note.items() if k != POST}


def fingerprint(folder: Path) -> Any:
    """Return a value that identifies the content of a folder of maps or masks.

    Args:
        folder: The folder.

    Returns:
        The folder's note without `post`. If it has no note, the SHA-256 of the names and the
        content of all PNG and `.npy` files in it and in its subfolders.

    Raises:
        ValueError: The note is broken; names the file.
    """
    note = note_of(folder)
    if note is not None:
        return note
    # Foreign files have no note. The order of a folder's listing is not defined, so sort it.
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".png", ".npy"):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def claim(
    directory: Path | str,
    made_from: Mapping[str, Any],
    *,
    name: str = MADE_FROM,
    remarks: Mapping[str, Any] | None = None,
) -> None:
    """Write a note of what a folder is made from, so that a restart cannot mix two runs.

    Args:
        directory: The folder.
        made_from: Values of plain types; an earlier note must have equal ones.
        name: File name of the note.
        remarks: Values that are noted too but not compared, such as `post`: it says how the maps
            become masks and changes no map. The newest remarks are kept.

    Raises:
        ValueError: The folder holds files made from something else; names what differs.
    """
    # Compare with an earlier note, and refuse a folder that differs in anything but remarks.
    remarks = remarks or {}
    differ = differing(directory, made_from, name=name, apart=remarks)
    path, note = Path(directory) / name, as_json({**made_from, **remarks})
    noted = read_dict(path)
    if differ:
        what = f"made with another {', '.join(differ)} ({name})"
        raise ValueError(
            f"{directory} holds files of another run, "
            f"{what if noted is not None else f'whose {name} is broken'}: choose another --out, or "
            "remove it"
        )
    # The note is new, or only its remarks change. An equal note keeps its time.
    if noted != note:
        write_json(path, note)


def differing(
    directory: Path | str,
    made_from: Mapping[str, Any],
    *,
    name: str = MADE_FROM,
    apart: Mapping[str, Any] | None = None,
) -> list[str] | None:
    """Return the names in which a folder's note differs from `made_from`.

    Args:
        directory: The folder.
        made_from: Values of plain types.
        name: File name of the note.
        apart: Names that are not compared; `post` never is.

    Returns:
        The names, [] if nothing differs; None if the folder has no note. If the note is broken, all
        names of `made_from`.
    """
    path = Path(directory) / name
    if not path.exists():
        return None
    noted = read_dict(path)
    if noted is None:
        return list(made_from)
    # Compare in the form in which JSON gives values back. A name on one side only differs too.
    wanted = as_json(dict(made_from))
    names = [n for n in dict.fromkeys((*wanted, *noted)) if n not in (POST, *(apart or {}))]
    return [n for n in names if n not in noted or n not in wanted or noted[n] != wanted[n]]


def check_photographs(
    folder: Path, photographs: Mapping[str, Path], files: Callable[[str], Sequence[Path]]
) -> None:
    """Remove the files whose photograph has changed since they were made, and print their ids.

    The stage then makes the missing files again. The hash of each photograph is noted in the
    folder, so that a later run can compare. A file without a noted hash is kept.

    Args:
        folder: The folder of the note.
        photographs: The path of the photograph of each image id.
        files: Gives the paths that are made from the photograph of an image id.

    Raises:
        OSError: A photograph cannot be read, or the note not be written.
        ValueError: The note is broken; names it.
    """
    check_sources(folder, "photographs", file_hashes(photographs), files)


def file_hashes(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the hash of the file of each image id."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(file_hash, paths.values()), strict=True))


def check_sources(
    folder: Path, what: str, hashes: Mapping[str, str], files: Callable[[str], Sequence[Path]]
) -> None:
    """Remove the files one of whose sources has changed, as `check_photographs` does.

    Args:
        folder: The folder of the note.
        what: What the sources are, in the plural; the note has this name.
        hashes: The hash of the source of each image id.
        files: Gives the paths that are made from the source of an image id.

    Raises:
        OSError: The note cannot be written.
        ValueError: The note is broken; names it.
    """
    path = folder / f"{what}.json"
    noted = read_dict(path, {ANY: str}) if path.exists() else {}
    if noted is None:
        raise ValueError(
            f"{path} is broken: choose another --out, or remove it if none of the {what} has "
            "changed"
        )
    stale = []
    for image_id in hashes:
        if noted.get(image_id, hashes[image_id]) != hashes[image_id]:
            there = [file for file in files(image_id) if file.exists()]
            for file in there:
                file.unlink()
            stale += [image_id] if there else []
    if stale:
        print(f"{folder}: {len(stale)} changed {what}, made anew: {first_few(stale)}")
    # The files go first: if the run is killed in between, the next one finds them gone.
    if noted | dict(hashes) != noted:
        write_json(path, noted | dict(hashes))


def commit() -> str | None:
    """Return the commit of the code, with "-dirty" if files are changed; None if git fails."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return the name of the processor with its family and model, which the name may not state.

    It is noted because the results of two processors may differ by as much as those of two seeds.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    numbers = "/".join(facts[name] for name in ("cpu family", "model") if name in facts)
    return facts.get("model name", platform.machine()) + (f" ({numbers})" if numbers else "")
