"""What is a web page and what is a file, by the first bytes."""

from __future__ import annotations

import codecs
import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from file_server import tar_of, zip_of
from PIL import Image
from safetensors.numpy import save as safetensors

from tool.download.check import HASHES, check_content

HTML = "<html><body>Quota exceeded for \u00fcbung.zip</body></html>"
PAGES = {
    "plain": HTML.encode(),
    "doctype": b"<!DOCTYPE html>" + HTML.encode(),
    "blanks": b"\r\n\t  \n" * 400 + HTML.encode(),
    "comment": b"<!-- moved\n -->\n" + HTML.encode(),
    "long comment": b"<!--" + b" words" * 20_000 + b"-->" + HTML.encode(),
    "script": b"<script>location = 'login'</script>",
    "script with a source": b"<SCRIPT src=x.js></SCRIPT>",
    "only a tag": b"<html>",
    "heading": b"<h1>Not Found</h1>",
    "latin-1": HTML.encode("latin-1"),
    "mark": codecs.BOM_UTF8 + HTML.encode(),
    "mark and blanks": codecs.BOM_UTF8 + b"\n " + HTML.encode(),
    "utf-16 with mark": HTML.encode("utf-16"),
    "utf-16-be with mark": codecs.BOM_UTF16_BE + HTML.encode("utf-16-be"),
    "utf-16-le": HTML.encode("utf-16-le"),
    "utf-16-be": ("\n" + HTML).encode("utf-16-be"),
    "utf-32 with mark": HTML.encode("utf-32"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'>",
    "bare svg": b"<svg>",
    "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "xhtml": b"<?xml version='1.0' encoding='utf-8'?>\n<html xmlns='x'>",
}


def saved(save) -> bytes:
    content = io.BytesIO()
    save(content)
    return content.getvalue()


def model() -> bytes:
    graph = onnx.helper.make_graph([], "g", [], [])
    return onnx.helper.make_model(graph).SerializeToString()


FILES = {
    "tar": tar_of({"a.png": b"1"}, mode="w"),
    "tar of a strange name": tar_of({"<html>/a.png": b"1"}, mode="w"),
    "tar.gz": tar_of({"a.png": b"1"}),
    "tar.bz2": tar_of({"a.png": b"1"}, mode="w:bz2"),
    "tar.xz": tar_of({"a.png": b"1"}, mode="w:xz"),
    "zip": zip_of({"<html>": b"<html>"}),
    "pth": saved(lambda file: torch.save({"a": torch.zeros(3)}, file)),
    "old pth": saved(lambda f: torch.save({}, f, _use_new_zipfile_serialization=False)),
    "png": saved(lambda file: Image.new("P", (4, 4)).save(file, "png")),
    "npy": saved(lambda file: np.save(file, np.zeros(4))),
    "params": (0x112).to_bytes(8, "little") + bytes(40),
    "onnx": model(),
    "safetensors": safetensors({"a": np.zeros(3)}),
    "safetensors that begins with <a": b"<a " + bytes(5) + b'{"__metadata__":{"format":"pt"},',
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(range(256)),
    "text": b"# image_id,classes\n",
    "zeros": bytes(4000),
    "blanks, then data": b" " * (1 << 16) + b"\1\2",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_web_page_is_removed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "labels.zip"
    path.write_bytes(PAGES[name])
    with pytest.raises(ValueError, match=r"labels\.zip: a web page instead of a file"):
        check_content(path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b" \r\n", codecs.BOM_UTF8])
def test_an_empty_file_is_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.zip"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"labels\.zip: the file is empty"):
        check_content(path, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name])
    check_content(path, tmp_path)
    assert path.read_bytes() == FILES[name]


def test_a_page_that_comes_later_leaves_the_record_of_the_file(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    record = json.dumps({"a.zip": "0" * 64})
    (tmp_path / HASHES).write_text(record)
    (incoming / "a.zip").write_bytes(PAGES["plain"])
    with pytest.raises(ValueError, match="web page"):
        check_content(incoming / "a.zip", tmp_path)
    assert (tmp_path / HASHES).read_text() == record
