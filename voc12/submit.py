"""Write the archive of masks for VOC's evaluation server, or check one.

It holds `results/VOC2012/Segmentation/comp6_test_cls/ID.png` for every image of the list. It is
read back and checked: the ids, the palette, the sizes and the values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.catalog import Catalog, DatasetFlags, catalog_from
from tool.bar import counted
from tool.cli import run_stage
from tool.files import atomic_path
from tool.flags import flag, parse_flags
from tool.formats.image import BROKEN, check_size
from tool.formats.mask import load_mask, palette, write_mask
from tool.formats.predictions import require_files

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_LARGEST = 2**24  # bytes of one mask file


class TestListFlags(DatasetFlags):
    """The flags of the dataset, whose list is test by default."""

    auto = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What the command line says.

    Attributes:
        archive: The file to write or to check: .tar, or compressed .tgz or .tar.gz.
        pred_dir: Folder of the masks, ID.png. Without it the archive is checked.
    """

    data: TestListFlags
    archive: Path = flag(positional=True, metavar="FILE.tar")
    pred_dir: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Write the archive if there are masks, and check it."""
    command = parse_flags(
        Command,
        argv,
        example="results.tar --pred-dir out/voc/mask --root VOCdevkit/VOC2012 --list test",
        defaults={"dataset": "voc12", "list": "test"},
    )
    archive, pred_dir = command.archive, command.pred_dir
    catalog, name = catalog_from(command.data)
    ids = catalog.ids(name)
    if pred_dir is not None:
        mode = mode_of(archive)
        require_files(pred_dir, ids, ".png", what="masks", stage="crf_postprocess.py")
        with atomic_path(archive) as temporary:
            write_archive(temporary, pred_dir, ids, mode=mode)
            check_archive(temporary, catalog, ids, name=archive.name)
    elif not archive.is_file():
        raise FileNotFoundError(f"{archive} does not exist: --pred-dir makes it")
    else:
        check_archive(archive, catalog, ids, name=archive.name)
    print(f"{archive}: {len(ids)} masks, checked")


def mode_of(archive: Path) -> str:
    """Return how `tarfile` writes an archive of this name: "w", or "w:gz".

    Raises:
        ValueError: The name is of another kind of archive.
    """
    if archive.name.endswith((".tgz", ".tar.gz")):
        return "w:gz"
    if archive.suffix != ".tar":
        raise ValueError(f"{archive.name}: the server takes .tar, .tgz and .tar.gz")
    return "w"


def write_archive(path: Path, masks: Path, ids: Sequence[str], *, mode: str) -> None:
    """Write a tar of the masks, each encoded anew with VOC's palette; `mode` is of `mode_of`."""
    with contextlib.ExitStack() as files:
        file = files.enter_context(open(path, "wb"))
        if mode == "w:gz":  # without a date, so that the same masks give the same bytes
            file = files.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        archive = files.enter_context(tarfile.open(fileobj=file, mode="w"))
        for image_id in counted(ids, len(ids), "write", unit="mask"):
            content = io.BytesIO()
            write_mask(content, load_mask(masks / f"{image_id}.png"))
            member = tarfile.TarInfo(f"{FOLDER}/{image_id}.png")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def check_archive(path: Path, catalog: Catalog, ids: Sequence[str], *, name: str) -> None:
    """Check every member of an archive against its image.

    Args:
        path: The archive.
        catalog: Of the dataset.
        ids: Ids of the images that the archive must hold.
        name: Of the archive, for messages.

    Raises:
        ValueError: The file is no archive. An id is missing, occurs twice or is not in the list. A
            mask has a size, palette or value that the server rejects. Names the first.
        FileNotFoundError: An image of the dataset is missing.
    """
    missing = {f"{FOLDER}/{image_id}.png": image_id for image_id in ids}
    try:
        with tarfile.open(path) as archive:
            for member in counted(archive, len(ids), "check", unit="mask"):
                if member.isdir():
                    continue
                # `tar cf FILE ./results` writes a leading dot.
                image_id = missing.pop(member.name.removeprefix("./"), None)
                if image_id is None:
                    raise ValueError(f"{member.name} does not belong in it, or is in it twice")
                file = archive.extractfile(member)
                if file is None or member.size > _LARGEST:
                    raise ValueError(f"{member.name} is no mask file")
                check_mask(file.read(), catalog, image_id)
        if missing:
            first = next(iter(missing.values()))
            raise ValueError(f"{len(missing)} images are missing, first {first}")
    except FileNotFoundError:  # an image of the dataset is missing
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name} is not a valid archive: {error}") from error


def check_mask(content: bytes, catalog: Catalog, image_id: str) -> None:
    """Check one mask file.

    Raises:
        ValueError: It is no PNG with VOC's palette, the image's size and values in 0..K.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except BROKEN as error:
        raise ValueError(f"{image_id}.png is broken: {error}") from error
    values = np.asarray(image)
    if image.mode != "P" or values.max() > catalog.num_classes:
        raise ValueError(
            f"{image_id}.png has mode {image.mode} and values up to {values.max()}: it must be a "
            f"palette image of 0..{catalog.num_classes}"
        )
    colours = np.array(image.getpalette(), np.uint8)[: 3 * (catalog.num_classes + 1)]
    if not np.array_equal(colours, palette().ravel()[: len(colours)]):
        raise ValueError(f"{image_id}.png has another palette than VOC's")
    check_size(f"{image_id}.png", values.shape, "its image", catalog.image_size(image_id)[::-1])


if __name__ == "__main__":
    run_stage(main)
