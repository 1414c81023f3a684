"""Write the archive of masks for VOC's evaluation server, or check one.

The archive holds `results/VOC2012/Segmentation/comp6_test_cls/ID.png` for every image of the list.
After writing it, the command reads it back and checks the ids, the palette, the sizes and the
values.
"""

from __future__ import annotations

if __name__ == "__main__":
    import tool.starting  # noqa: F401 - before all other imports

import contextlib
import dataclasses
import gzip
import io
import lzma
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.catalog import Catalog
from data.flags import DatasetFlags, catalog_from
from tool.bar import counted
from tool.cli import printable, run_stage
from tool.files import atomic_path, spelled
from tool.flags import flag, parse_flags
from tool.formats.image import BROKEN, check_size, opened
from tool.formats.mask import load_mask, palette, write_mask
from tool.formats.predictions import colour_warning, require_files

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_LARGEST = 2**24  # the largest number of bytes of a mask file


class TestListFlags(DatasetFlags):
    """The flags of the dataset, whose list is test by default."""

    auto = ("test",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The flags of this command.

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
        if warning := colour_warning(spelled(pred_dir, f"{image_id}.png") for image_id in ids):
            print(printable(warning), file=sys.stderr)
        with atomic_path(archive) as temporary:
            write_archive(temporary, pred_dir, ids, mode=mode)
            check_archive(temporary, catalog, ids, name=archive.name)
    elif not archive.is_file():
        raise FileNotFoundError(f"{archive} does not exist: --pred-dir makes it")
    else:
        check_archive(archive, catalog, ids, name=archive.name)
    print(f"{archive}: {len(ids)} masks, checked")


def mode_of(archive: Path) -> str:
    """Return the mode in which an archive of this name is written: "w", or "w:gz" if compressed.

    Raises:
        ValueError: The suffix is none that the server accepts.
    """
    if archive.name.endswith((".tgz", ".tar.gz")):
        return "w:gz"
    if archive.suffix != ".tar":
        raise ValueError(f"{archive.name}: the server takes .tar, .tgz and .tar.gz, name it so")
    return "w"


def write_archive(path: Path, masks: Path, ids: Sequence[str], *, mode: str) -> None:
    """Write a tar archive of masks, each encoded anew with VOC's palette.

    Args:
        path: The archive.
        masks: Folder of the masks, ID.png.
        ids: Ids of the images.
        mode: "w" or "w:gz", as `mode_of` returns it.

    Raises:
        FileNotFoundError: A mask is missing.
        ValueError: A mask is broken.
    """
    with contextlib.ExitStack() as files:
        file = files.enter_context(open(path, "wb"))
        # `tarfile`'s own compression would write the date. Without it equal masks give equal bytes.
        if mode == "w:gz":
            file = files.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        archive = files.enter_context(tarfile.open(fileobj=file, mode="w"))
        for image_id in counted(ids, len(ids), "write", unit="mask"):
            content = io.BytesIO()
            write_mask(content, load_mask(spelled(masks, f"{image_id}.png")))
            member = tarfile.TarInfo(f"{FOLDER}/{image_id}.png")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)


def check_archive(path: Path, catalog: Catalog, ids: Sequence[str], *, name: str) -> None:
    """Check every member of an archive against its image.

    Args:
        path: The archive.
        catalog: The dataset.
        ids: Ids of the images that the archive must hold.
        name: Name of the archive, for messages.

    Raises:
        ValueError: The file is no archive; or an id is missing, occurs twice or is not in the list;
            or a mask has a size, palette or value that the server rejects. Names the first fault.
        FileNotFoundError: An image of the dataset is missing.
    """
    # The members that have not been seen yet.
    missing = {f"{FOLDER}/{image_id}.png": image_id for image_id in ids}
    try:
        with tarfile.open(path) as archive:
            for member in counted(archive, len(ids), "check", unit="mask"):
                if member.isdir():
                    continue
                # `tar cf FILE ./results` writes names with a leading "./".
                image_id = missing.pop(member.name.removeprefix("./"), None)
                if image_id is None:
                    raise ValueError(f"{member.name} does not belong in it, or is in it twice")
                file = archive.extractfile(member) if member.isfile() else None  # no links
                if file is None or member.size > _LARGEST:
                    raise ValueError(f"{member.name} is no mask file")
                check_mask(file.read(), catalog, image_id)
        if missing:
            first = next(iter(missing.values()))
            raise ValueError(f"{len(missing)} images are missing, first {first}")
    except FileNotFoundError:  # an image of the dataset is missing
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if reason.startswith("file could not be opened"):  # and why not, per compression
            reason = "it is no tar file, or its beginning is damaged"
        raise ValueError(f"{name} is not a valid archive: {reason}") from error


def check_mask(content: bytes, catalog: Catalog, image_id: str) -> None:
    """Check one mask file.

    Args:
        content: The bytes of the file.
        catalog: The dataset.
        image_id: The image.

    Raises:
        ValueError: The file is not a PNG with VOC's palette, the image's size and values in 0..K.
        FileNotFoundError: The image is missing.
    """
    try:
        with opened(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except BROKEN as error:
        raise ValueError(f"{image_id}.png is broken: {error}") from error
    values = np.asarray(image)
    if image.mode != "P" or values.max() > catalog.num_classes:
        raise ValueError(
            f"{image_id}.png has mode {image.mode} and values up to {values.max()}: it must be a "
            f"palette image of 0..{catalog.num_classes}"
        )
    # Only the colours of background and classes must agree; a palette may be shorter than 256.
    colours = np.array(image.getpalette(), np.uint8)[: 3 * (catalog.num_classes + 1)]
    if not np.array_equal(colours, palette().ravel()[: len(colours)]):
        raise ValueError(f"{image_id}.png has another palette than VOC's")
    check_size(f"{image_id}.png", values.shape, "its image", catalog.image_size(image_id)[::-1])


if __name__ == "__main__":
    run_stage(main)
