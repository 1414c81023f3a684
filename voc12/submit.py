"""`python -m voc12.submit FILE.tar --pred-dir MASKS --root VOC2012`: the archive for VOC's server.

It holds `results/VOC2012/Segmentation/comp6_test_cls/ID.png` for every image of the list, and is
read back and checked: every id and nothing else, palette, sizes, values. Without --pred-dir an
archive that is there is checked.
"""

from __future__ import annotations

import argparse
import io
import lzma
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.catalog import Catalog, add_dataset_flags, catalog_from
from tool.cli import Parser, run_stage
from tool.files import atomic_path
from tool.formats.mask import load_mask, palette, write_mask
from tool.formats.predictions import require_files

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
_LARGEST = 2**24  # bytes of one mask file


def main(argv: Sequence[str] | None = None) -> None:
    """Write the archive if there are masks, and check it."""
    args = parse(argv)
    catalog = catalog_from(args)
    ids = catalog.ids(args.list)
    if args.pred_dir is not None:
        require_files(args.pred_dir, ids, ".png", what="masks", stage="crf_postprocess.py")
        with atomic_path(args.archive) as temporary:
            write_archive(temporary, args.pred_dir, ids)
            check_archive(temporary, catalog, ids, name=args.archive.name)
    else:
        if not args.archive.is_file():
            raise FileNotFoundError(f"{args.archive} does not exist: --pred-dir makes it")
        check_archive(args.archive, catalog, ids, name=args.archive.name)
    print(f"{args.archive}: {len(ids)} masks, checked")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags."""
    parser = Parser(prog="voc12.submit", description=__doc__)
    parser.add_argument("archive", type=Path, metavar="FILE.tar", help="archive to write or check")
    parser.add_argument("--pred-dir", type=Path, help="folder of ID.png; None: check the archive")
    add_dataset_flags(parser, list_name="test", auto=("test",))
    parser.set_defaults(dataset="voc12")
    return parser.parse_args(argv)


def write_archive(path: Path, masks: Path, ids: Sequence[str]) -> None:
    """Write an uncompressed tar of the masks, each encoded anew with VOC's palette."""
    with tarfile.open(path, "w") as archive:
        for image_id in tqdm(ids, desc="write", mininterval=1.0):
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
    wanted, seen = set(ids), set()
    try:
        with tarfile.open(path) as archive:
            for member in tqdm(archive, desc="check", total=len(ids), mininterval=1.0):
                if member.isdir():
                    continue
                place = member.name.removeprefix("./")  # as `tar cf FILE ./results` writes
                image_id = place.removeprefix(f"{FOLDER}/").removesuffix(".png")
                if place != f"{FOLDER}/{image_id}.png" or image_id not in wanted:
                    raise ValueError(f"{member.name} does not belong in it")
                if image_id in seen:
                    raise ValueError(f"{member.name} is in it twice")
                seen.add(image_id)
                file = archive.extractfile(member)
                if file is None or member.size > _LARGEST:
                    raise ValueError(f"{member.name} is no mask file")
                check_mask(file.read(), catalog, image_id)
    except FileNotFoundError:  # an image of the dataset is missing
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{name} is not a valid archive: {error}") from error
    missing = sorted(wanted - seen)
    if missing:
        raise ValueError(
            f"{name} is not a valid archive: {len(missing)} images are missing, first {missing[0]}"
        )


def check_mask(content: bytes, catalog: Catalog, image_id: str) -> None:
    """Check one mask file.

    Raises:
        ValueError: It is no PNG with VOC's palette, the image's size and values in 0..K.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
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
    if image.size != catalog.image_size(image_id):
        raise ValueError(
            f"{image_id}.png is {image.width}x{image.height}, its image {{}}x{{}}".format(
                *catalog.image_size(image_id)
            )
        )


if __name__ == "__main__":
    run_stage(main)
