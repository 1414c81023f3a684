"""What the commands that prepare a benchmark check and write: lists, labels, `protocol.json`."""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Catalog
from data.labels import HEADER
from tool.files import atomic_path

PROTOCOL = "protocol.json"


def add_prepare_flags(parser: argparse.ArgumentParser, *, root: str) -> None:
    """Add --root (`root` is its help), --partial and --overwrite."""
    add = parser.add_argument
    add("--root", type=Path, required=True, help=root)
    add("--partial", action="store_true", help="accept lists of other sizes than the benchmark's")
    add("--overwrite", action="store_true", help="make everything anew, in place of what is there")


def check_counts(found: Mapping[str, int], official: Mapping[str, int], *, partial: bool) -> None:
    """Compare the sizes of lists with the benchmark's.

    Raises:
        ValueError: one differs, and a part of the benchmark was not asked for.
    """
    wrong = [
        f"{name} has {count} images, the benchmark {official[name]}"
        for name, count in found.items()
        if count != official[name]
    ]
    if wrong and not partial:
        raise ValueError(f"{'; '.join(wrong)}: --partial accepts a part of the benchmark")
    for line in wrong:
        print(f"partial: {line}")


def check_images(catalog: Catalog, lists: Mapping[str, Sequence[str]]) -> None:
    """Every image of the lists is there; `FileNotFoundError` counts and names the missing."""
    missing = []
    for image_id in sorted({image_id for ids in lists.values() for image_id in ids}):
        try:
            catalog.image_path(image_id)
        except FileNotFoundError:
            missing.append(image_id)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} images of the lists are not in {catalog.root}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} (--root)"
        )


def check_files(files: Mapping[Path, bytes]) -> None:
    """`ValueError` when one of the files is there with other content."""
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise ValueError(f"{path} is there with other content: --overwrite replaces it")


def put_files(files: Mapping[Path, bytes]) -> None:
    """Write each file whole, unless it is there and the same."""
    for path, content in files.items():
        if path.exists() and path.read_bytes() == content:
            continue
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        print(f"wrote {path}")


def list_bytes(ids: Sequence[str]) -> bytes:
    """A list file: one id a line."""
    return "".join(f"{image_id}\n" for image_id in ids).encode()


def label_files(
    root: Path, labels: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> dict[Path, bytes]:
    """`labels.csv`, and `cls_labels.npy`: the pickled dictionary that the field's code expects.

    Args:
        labels: image id -> (K,) float32 {0, 1}.
    """
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(HEADER)
    for image_id, label in labels.items():
        names = (class_names[index] for index in np.flatnonzero(label))
        writer.writerow([image_id, ";".join(names)])
    pickled = io.BytesIO()
    np.save(pickled, np.array(dict(labels), dtype=object), allow_pickle=True)
    return {
        root / "labels.csv": rows.getvalue().encode(),
        root / "cls_labels.npy": pickled.getvalue(),
    }


@contextlib.contextmanager
def recorded(
    root: Path,
    lists: Mapping[str, Sequence[str]],
    official: Mapping[str, int],
    about: Mapping[str, Any],
    *,
    anew: bool,
) -> Iterator[None]:
    """Write `protocol.json` after the body: sizes and hashes of the lists, whether they are whole.

    One that says something else is removed before the body, and with `anew` any: while there is
    one, it is true.
    """
    path = root / PROTOCOL
    content = _protocol(lists, official, about)
    if path.exists() and (anew or path.read_bytes() != content):
        path.unlink()
    yield
    put_files({path: content})


def _protocol(
    lists: Mapping[str, Sequence[str]], official: Mapping[str, int], about: Mapping[str, Any]
) -> bytes:
    missing = [name for name in official if name not in lists]
    content = {
        **about,
        "partial": bool(missing) or any(len(lists[name]) != official[name] for name in official),
        "missing": missing,
        "lists": {
            name: {
                "images": len(ids),
                "official": official[name],
                "sha256": hashlib.sha256(list_bytes(ids)).hexdigest(),
            }
            for name, ids in lists.items()
        },
    }
    return (json.dumps(content, indent=1) + "\n").encode()
