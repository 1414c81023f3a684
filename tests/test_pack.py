"""`python -m tool.pack`: what an archive holds, and which archives are refused."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import write_run
from runs import assert_refused, run

from tool import pack
from tool.files import file_hash

WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def finished(folder_root: Path, tmp_path: Path) -> Path:
    """A run with everything but a report."""
    out = write_run(folder_root, tmp_path / "run v1.2")
    (out / "checkpoint.pth").write_bytes(WEIGHTS)
    (out / "miou.json").write_text('{"miou": 71.2}')
    (out / "notes.txt").write_text("of the user")
    return out


@pytest.fixture
def archive(finished: Path) -> Path:
    result = run("tool/pack.py", finished)
    assert result.returncode == 0, result.stderr
    assert "without a report" in result.stdout
    return finished.with_name("run v1.2.zip")


def checked(path: Path) -> object:
    return run("tool/pack.py", "--check", path)


def test_an_archive_holds_the_run_and_is_whole(finished: Path, archive: Path, tmp_path) -> None:
    result = checked(archive)
    assert result.returncode == 0, result.stderr
    assert "whole; 8 masks, config.json, log.jsonl, miou.json, checkpoint.pth" in result.stdout
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    files = {p.relative_to(tmp_path / "unpacked") for p in (tmp_path / "unpacked").rglob("*.*")}
    masks = {path.relative_to(finished) for path in (finished / "mask").iterdir()}
    names = {"config.json", "log.jsonl", "miou.json", "checkpoint.pth", "MANIFEST.json"}
    assert files == masks | {Path(name) for name in names}
    noted = json.loads((tmp_path / "unpacked" / "MANIFEST.json").read_text())
    for name, entry in noted["files"].items():
        assert entry["sha256"] == file_hash(finished / name)
        assert entry["bytes"] == (finished / name).stat().st_size


def test_exported_weights_come_first_and_the_report_is_packed(finished: Path, tmp_path) -> None:
    (finished / "model.safetensors").write_bytes(b"exported")
    (finished / "report.html").write_text("a page")
    result = run("tool/pack.py", finished, "--out", tmp_path / "a.zip")
    assert "report.html" in result.stdout
    assert "model.safetensors" in result.stdout
    assert "checkpoint.pth" not in result.stdout
    assert checked(tmp_path / "a.zip").returncode == 0


def test_equal_runs_give_equal_bytes(finished: Path, archive: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / finished.name
    shutil.copytree(finished, other, copy_function=shutil.copyfile)
    assert run("tool/pack.py", other, "--out", tmp_path / "b.zip").returncode == 0
    assert (tmp_path / "b.zip").read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("lost", "stage"),
    [
        ("config.json", "train_fbr.py"),
        ("log.jsonl", "train_fbr.py"),
        ("checkpoint.pth", "train_fbr.py"),
        ("mask", "crf_postprocess.py"),
    ],
)
def test_a_run_that_lacks_something_is_refused(lost: str, stage: str, finished: Path) -> None:
    path = finished / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert_refused(run("tool/pack.py", finished), lost, stage)
    assert not finished.with_name("run v1.2.zip").exists()


def test_ids_with_dots_spaces_and_folders_are_packed(finished: Path, tmp_path: Path) -> None:
    for name in ("a..b", ".hidden", "a/b c", "..a/b", "\u00fc"):
        (finished / "mask" / name).parent.mkdir(exist_ok=True)
        (finished / "mask" / f"{name}.png").write_bytes(b"mask")
    assert run("tool/pack.py", finished, "--out", tmp_path / "a.zip").returncode == 0
    assert "13 masks" in checked(tmp_path / "a.zip").stdout


def test_masks_of_another_folder(finished: Path, tmp_path: Path) -> None:
    (finished / "mask").rename(finished / "mask-gated")
    flags = [finished, "--mask-dir", finished / "mask-gated", "--out", tmp_path / "a.zip"]
    assert run("tool/pack.py", *flags).returncode == 0
    assert "8 masks" in checked(tmp_path / "a.zip").stdout


def test_a_run_or_an_archive_is_given() -> None:
    assert_refused(run("tool/pack.py"), "--check")
    assert_refused(run("tool/pack.py", "out", "--check", "a.zip"), "--check")


def test_damage_anywhere_is_refused_in_one_line(archive: Path) -> None:
    whole = archive.read_bytes()
    draw = random.Random(0)
    places = [*range(40), *range(len(whole) - 120, len(whole)), *draw.sample(range(len(whole)), 80)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        archive.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run v1\.2\.zip is"):
            pack.check(archive)
    for size in (0, 1, 21, 85, 86, 200, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:size])
        assert_refused(checked(archive), "run v1.2.zip", "no packed run")
    archive.write_bytes(whole + b"x")
    assert_refused(checked(archive), "run v1.2.zip")
    assert_refused(checked(archive.with_name("none.zip")), "none.zip does not exist")


def signed(path: Path) -> None:
    """Give an archive the hash that a whole one has."""
    content = path.read_bytes()[: -pack._DIGEST]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def remade(
    archive: Path,
    path: Path,
    change: Callable[[dict[str, bytes]], None],
    *,
    compression: int = zipfile.ZIP_STORED,
    honest: bool = True,
) -> Path:
    """An archive with other members, and the manifest and hash that fit them."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    if honest and "MANIFEST.json" in files:
        noted = json.loads(files.pop("MANIFEST.json"))
        entries = {n: (len(c), hashlib.sha256(c).hexdigest()) for n, c in files.items()}
        noted["files"] = {n: {"bytes": size, "sha256": d} for n, (size, d) in entries.items()}
        files["MANIFEST.json"] = json.dumps(noted).encode()
    with zipfile.ZipFile(path, "w", compression) as new:
        new.comment = b"0" * pack._DIGEST
        for name, content in files.items():
            new.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    signed(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["../evil", "mask/../../evil.png", "/etc/evil", "C:\\evil", "mask\\evil.png", "C:evil",
     "mask//etc/evil", "..", "a/..", "./a", "mask/./a", "line\nbreak", "folder/", "mask/"],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name: str, archive: Path, tmp_path) -> None:
    path = remade(archive, tmp_path / "a.zip", lambda files: files.update({name: b"x"}))
    assert_refused(checked(path), "a.zip is no packed run")


@pytest.mark.parametrize("lost", ["config.json", "MANIFEST.json", "checkpoint.pth", "log.jsonl"])
def test_an_archive_that_lacks_something_is_refused(lost: str, archive: Path, tmp_path) -> None:
    path = remade(archive, tmp_path / "a.zip", lambda files: files.pop(lost))
    assert_refused(checked(path), "a.zip is no packed run")


def other_content(files: dict[str, bytes]) -> None:
    files["config.json"] += b" "


def one_more(files: dict[str, bytes]) -> None:
    files["mask/new.png"] = b"x"


@pytest.mark.parametrize("change", [other_content, one_more])
def test_a_manifest_that_says_another_thing_is_refused(change, archive: Path, tmp_path) -> None:
    path = remade(archive, tmp_path / "a.zip", change, honest=False)
    assert_refused(checked(path), "MANIFEST.json")


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"format": "packed run", "version": 2, "files": {}}', b"[" * 10**5,
     b'{"format": "packed run", "version": 1, "files": []}', b"\xff"],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_a_broken_manifest_is_refused(manifest: bytes, archive: Path, tmp_path) -> None:
    change = {"MANIFEST.json": manifest}
    path = remade(archive, tmp_path / "a.zip", lambda files: files.update(change), honest=False)
    assert_refused(checked(path), "a.zip is no packed run")


def test_what_unpacks_to_more_than_its_size_is_refused(archive: Path, tmp_path: Path) -> None:
    zeros = {"mask/zeros.png": bytes(10**7)}
    path = remade(
        archive, tmp_path / "a.zip", lambda f: f.update(zeros), compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 10**6
    assert_refused(checked(path), "not a file as")


def test_a_huge_directory_is_not_read(archive: Path, monkeypatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("the directory was read")

    content = bytearray(archive.read_bytes())
    place = len(content) - pack._DIGEST - pack._END
    content[place + 12 : place + 16] = struct.pack("<I", pack.LARGEST + 1)
    archive.write_bytes(content)
    signed(archive)
    monkeypatch.setattr(pack.zipfile, "ZipFile", opened)
    with pytest.raises(ValueError, match="directory"):
        pack.check(archive)


def test_another_zip_file_and_two_files_of_one_name(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as other:
        other.writestr("a.txt", "x" * 200)
    assert_refused(checked(tmp_path / "a.zip"), "a.zip is no packed run")
    with zipfile.ZipFile(archive, "a") as twice, pytest.warns(UserWarning, match="Duplicate"):
        twice.writestr("config.json", "{}")
    signed(archive)
    assert_refused(checked(archive), "one name")
