"""Damaged zip files of every kind that is read: one `ValueError`, and no other error is hidden."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tool.download.wheel import Member, _content
from tool.files import zip_errors
from tool.formats.checkpoint import load_checkpoint, load_tensors
from tool.formats.cvat import CvatMasks, save_cvat
from tool.formats.regions import Regions, read_regions, save_regions

CLASSES = ("disc", "square")


def write_checkpoint(path: Path) -> None:
    content = {"method": "cam", "config": {"class_names": ["disc"]}, "step": 3}
    torch.save(content | {"model": {"w": torch.arange(6.0)}}, path)


def write_regions(path: Path) -> None:
    one = np.eye(2, 4, dtype=np.float32)
    save_regions(path, Regions(["a", "b"], np.array([0, 1]), one, one), {"a": 1})


def write_masks(path: Path) -> None:
    save_cvat(path, [("a", np.eye(4, dtype=np.uint8))], CLASSES)


def write_wheel(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.onnx", b"content")


def read_wheel(path: Path) -> object:
    return _content(path, Member("package==1.0", "a/b.onnx", "0" * 64))


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "checkpoint": (write_checkpoint, load_checkpoint),
    "tensors": (write_checkpoint, load_tensors),
    "regions": (write_regions, read_regions),
    "cvat": (write_masks, lambda path: CvatMasks(path, CLASSES).mask("a")),
    "wheel": (write_wheel, read_wheel),
}


def before_the_start(content: bytes) -> bytes:
    """Let the end of the directory say that the directory lies farther back than it does."""
    changed = bytearray(content)
    changed[content.rindex(b"PK\5\6") + 18] = 2
    if (large := content.rfind(b"PK\6\6")) > 0:  # torch writes the end a second time
        changed[large + 50] = 2
    return bytes(changed)


def encrypted(content: bytes) -> bytes:
    """Set the flag of encryption of every entry in the directory."""
    parts = content.split(b"PK\1\2")
    return b"PK\1\2".join([parts[0], *(part[:4] + b"\1" + part[5:] for part in parts[1:])])


def unknown_compression(content: bytes) -> bytes:
    parts = content.split(b"PK\1\2")
    return b"PK\1\2".join([parts[0], *(part[:6] + b"\x63" + part[7:] for part in parts[1:])])


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("damage", [before_the_start, encrypted, unknown_compression])
def test_a_damaged_zip_file_is_a_value_error(kind: str, damage, tmp_path: Path) -> None:
    path = tmp_path / "file.zip"
    write, read = READERS[kind]
    write(path)
    read(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"file\.zip"):
        read(path)


def test_the_error_of_a_failing_disk_is_not_called_damage() -> None:
    with pytest.raises(OSError, match="failing") as caught, zip_errors():
        raise OSError(errno.EIO, "failing disk")
    assert caught.value.errno == errno.EIO
    with pytest.raises(ValueError, match="outside the file"), zip_errors():
        raise OSError(errno.EINVAL, "Invalid argument")
