"""Pack a run into one archive, as a paper attaches it; or check such an archive.

It holds config.json, the log, the scores, the masks, the report and the weights: those that
network.export wrote (model.safetensors), else the checkpoint. MANIFEST.json in it has the SHA-256
of every file. The archive is a zip file without compression. Equal runs give equal bytes.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import dataclasses
import hashlib
import json
import re
import reprlib
import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tool.cli import run_stage
from tool.documents import parsed
from tool.files import ZIP_DATE, atomic_path, zip_errors
from tool.flags import flag, parse_flags

MANIFEST = "MANIFEST.json"
KIND = {"format": "packed run", "version": 1}
NEEDED = ("config.json", "log.jsonl")
WEIGHTS = ("model.safetensors", "checkpoint.pth")  # the first that there is
MORE = ("report.html", "nroi.npz", "masks.json", "minutes.json")
MASKS = "mask"
# What a member may be called; and the largest directory and manifest of an archive, in bytes.
NAME = re.compile(r"(?!(?:.*/)?\.{0,2}(?:/|$))[^\\:\0-\x1f\x7f]+")
LARGEST = 256 * 2**20
_END, _DIGEST = 22, 64  # bytes of a zip file's end, and of the comment after it
_LOCATOR = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        run: Run directory to pack.
        check: Archive to check, in place of packing a run. Nothing is unpacked.
        mask_dir: Folder of the masks, if it is not RUN/mask.
        out: Archive to write. By default it is RUN.zip.
    """

    run: Path | None = flag(None, positional=True, nargs="?")
    check: Path | None = flag(None, metavar="FILE")
    mask_dir: Path | None = None
    out: Path | None = flag(None, metavar="FILE")

    def __post_init__(self) -> None:
        if (self.run is None) == (self.check is None):
            raise ValueError("give a run directory to pack, or --check FILE")


def main(argv: Sequence[str] | None = None) -> None:
    """Write or check an archive, and print what it holds."""
    command = parse_flags(Command, argv, example="out/toy-fbr-seed0")
    if command.run is None:
        path = command.check or Path()
        print(f"{path}: whole; {_told(check(path))}")
        return
    run = command.run.absolute()
    out = command.out or run.with_name(f"{run.name}.zip")
    sizes = pack(run, command.mask_dir or run / MASKS, out)
    lack = "" if "report.html" in sizes else "; without a report: python -m data.report makes one"
    print(f"{out}: {_told(sizes)}, {out.stat().st_size / 1e6:.1f} MB{lack}")


def pack(run: Path, masks: Path, out: Path) -> dict[str, int]:
    """Write the archive of a run, whole or not at all.

    Args:
        run: The run directory.
        masks: The folder of its masks.
        out: The archive.

    Returns:
        The bytes of each packed file by its name in the archive.

    Raises:
        FileNotFoundError: The run lacks what an archive must have; names the stage that makes it.
    """
    files = members(run, masks)
    manifest: dict[str, Any] = {**KIND, "run": run.name, "files": {}}
    with atomic_path(out) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.comment = b"0" * _DIGEST
            for name, path in files.items():
                manifest["files"][name] = _add(archive, name, path)
            text = json.dumps(manifest, indent=1, sort_keys=True)
            archive.writestr(zipfile.ZipInfo(MANIFEST, ZIP_DATE), text + "\n")
        # The comment at the end is the hash of all before it, so that damage anywhere is seen.
        with open(temporary, "r+b") as file:
            digest = _digest(file, temporary.stat().st_size - _DIGEST)
            file.seek(-_DIGEST, 2)
            file.write(digest.encode())
    return {name: found["bytes"] for name, found in manifest["files"].items()}


def members(run: Path, masks: Path) -> dict[str, Path]:
    """Return the files of an archive by their names in it, in its order.

    Raises:
        FileNotFoundError: The run lacks what an archive must have; names the stage that makes it.
        ValueError: A mask has a name that an archive cannot have.
    """
    for name in NEEDED:
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}: give a run directory of train_fbr.py")
    weights = next((name for name in WEIGHTS if (run / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{run} has no {' or '.join(WEIGHTS)}: run train_fbr.py first")
    pictures = {f"{MASKS}/{path.relative_to(masks)}": path for path in masks.rglob("*.png")}
    if not pictures:
        raise FileNotFoundError(f"{masks} has no masks: run crf_postprocess.py, or give --mask-dir")
    if wrong := next((name for name in pictures if not NAME.fullmatch(name)), None):
        raise ValueError(f"{reprlib.repr(wrong)} cannot be the name of a mask in an archive")
    scores = sorted(path.name for path in run.glob("miou*.json"))
    names = [*NEEDED, *scores, *MORE, weights]
    found = {name: run / name for name in names if (run / name).is_file()}
    return found | dict(sorted(pictures.items()))


def check(path: Path) -> dict[str, int]:
    """Check an archive: that it is whole, of this form, and holds what its manifest says.

    Nothing is written. An archive that passes stays in its folder when it is unpacked.

    Returns:
        The bytes of each file by its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The archive is damaged or foreign; names it.
    """
    if not path.is_file():
        wrong = "is a folder, give the archive" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {wrong}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        _check_end(file, size, path)
        try:
            with zip_errors(), zipfile.ZipFile(file) as archive:
                return _check_members(archive, size)
        except ValueError as error:
            raise ValueError(f"{path} is no packed run: {error}") from error
        except LookupError as error:
            raise ValueError(f"{path} is no packed run") from error


def _check_end(file: IO[bytes], size: int, path: Path) -> None:
    """Check the end of an archive: its hash, and the size of its directory.

    Raises:
        ValueError: Something is wrong; names the archive.
    """
    end = b""
    if size >= _LOCATOR + _END + _DIGEST:
        file.seek(size - _LOCATOR - _END - _DIGEST)
        end = file.read()
    locator, end, digest = end[:_LOCATOR], end[_LOCATOR:-_DIGEST], end[-_DIGEST:]
    if end[:4] != b"PK\5\6" or end[-2:] != struct.pack("<H", _DIGEST):
        raise ValueError(f"{path} is no packed run, or its end is lost: get it again")
    if _digest(file, size - _DIGEST).encode() != digest:
        raise ValueError(f"{path} is damaged: its content is not that of its SHA-256; get it again")
    # `zipfile` reads the whole directory at once. An archive of many files has its size elsewhere.
    directory = int.from_bytes(end[12:16], "little")
    if locator[:4] == b"PK\6\7":
        file.seek(min(int.from_bytes(locator[8:16], "little"), size))
        directory = max(
            directory * (directory < 2**32 - 1), int.from_bytes(file.read(48)[40:], "little")
        )
    if directory > LARGEST:
        raise ValueError(f"{path} is no packed run: its directory has {directory} bytes")


def _check_members(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """Check the members of an archive of `size` bytes; return the bytes of each but the manifest.

    Raises:
        ValueError: Something is wrong; names it.
    """
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise ValueError("two of its files have one name")
    for name, info in infos.items():
        plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        if not NAME.fullmatch(name) or name.endswith("/") or not plain or info.flag_bits & 1:
            raise ValueError(
                f"{reprlib.repr(name)} is not a file as `python -m tool.pack` packs it"
            )
    if sum(info.file_size for info in infos.values()) > size:
        raise ValueError("its files overlap")
    if MANIFEST not in infos or infos[MANIFEST].file_size > LARGEST:
        raise ValueError(f"it has no {MANIFEST}")
    noted = _manifest(archive.read(MANIFEST))
    del infos[MANIFEST]
    weights = [name for name in WEIGHTS if name in infos]
    masks = [name for name in infos if name.startswith(f"{MASKS}/")]
    if not weights or not masks or any(name not in infos for name in NEEDED):
        raise ValueError(f"it lacks {', '.join(NEEDED)}, masks or weights")
    if infos.keys() != noted.keys():
        other = sorted(infos.keys() ^ noted.keys())[0]
        raise ValueError(f"{reprlib.repr(other)} is not both in it and in its {MANIFEST}")
    for name, info in infos.items():
        with archive.open(info) as member:
            found = {"bytes": info.file_size, "sha256": _digest(member, info.file_size)}
        if noted[name] != found:
            raise ValueError(f"{reprlib.repr(name)} is not the file of its {MANIFEST}")
    return {name: info.file_size for name, info in infos.items()}


def _manifest(content: bytes) -> dict[str, Any]:
    """Return the files that a manifest names.

    Raises:
        ValueError: It is none.
    """
    try:
        noted = parsed(content, {"files": dict})
    except ValueError as error:
        raise ValueError(f"its {MANIFEST} is not of this form: {error}") from error
    if any(noted.get(key) != KIND[key] for key in KIND):
        raise ValueError(f"its {MANIFEST} is not of this form")
    return noted["files"]


def _add(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    """Add a file to an archive; return its entry in the manifest."""
    info = zipfile.ZipInfo(name, ZIP_DATE)
    info.external_attr = 0o644 << 16
    info.file_size = path.stat().st_size
    with open(path, "rb") as source, archive.open(info, "w") as member:
        shutil.copyfileobj(source, member, 1 << 20)
        source.seek(0)
        return {"bytes": info.file_size, "sha256": _digest(source, info.file_size)}


def _digest(file: IO[bytes], size: int) -> str:
    """Return the SHA-256 of the first `size` bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    for part in _parts(file, size):
        digest.update(part)
    return digest.hexdigest()


def _parts(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file, a part at a time."""
    file.seek(0)
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        size -= len(part)
        yield part


def _told(sizes: dict[str, int]) -> str:
    """Return what an archive holds."""
    masks = sum(name.startswith(f"{MASKS}/") for name in sizes)
    others = [name for name in sizes if not name.startswith(f"{MASKS}/")]
    return f"{masks} masks, {', '.join(others)}"


if __name__ == "__main__":
    run_stage(main)
