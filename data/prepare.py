"""What the commands that prepare a benchmark check and write: lists, labels, `protocol.json`."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Catalog
from tool.files import atomic_path

PROTOCOL = "protocol.json"


def add_prepare_flags(parser: argparse.ArgumentParser, *, root: str) -> None:
    """Add --root (`root` is its help), --partial and --overwrite."""
    add = parser.add_argument
    add("--root", type=Path, required=True, help=root)
    add("--partial", action="store_true", help="accept lists of other sizes than the benchmark's")
    add("--overwrite", action="store_true", help="replace lists and labels that differ")


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


def put(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file whole, unless it is there and the same.

    Raises:
        ValueError: it is there with other content, and `overwrite` is False.
    """
    if path.exists() and not overwrite:
        if path.read_bytes() == content:
            return
        raise ValueError(f"{path} is there with other content: --overwrite replaces it")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    print(f"wrote {path}")


def list_bytes(ids: Sequence[str]) -> bytes:
    """A list file: one id a line."""
    return "".join(f"{image_id}\n" for image_id in ids).encode()


def put_labels(
    root: Path,
    labels: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """`labels.csv`, and `cls_labels.npy`: the pickled dictionary that the field's code expects.

    Args:
        labels: image id -> (K,) float32 {0, 1}.
    """
    rows = [
        f"{image_id},{';'.join(class_names[index] for index in np.flatnonzero(label))}\n"
        for image_id, label in labels.items()
    ]
    put(root / "labels.csv", ("image_id,classes\n" + "".join(rows)).encode(), overwrite=overwrite)
    pickled = io.BytesIO()
    np.save(pickled, np.array(dict(labels), dtype=object), allow_pickle=True)
    put(root / "cls_labels.npy", pickled.getvalue(), overwrite=overwrite)


def write_protocol(
    root: Path,
    lists: Mapping[str, Sequence[str]],
    official: Mapping[str, int],
    about: Mapping[str, Any],
) -> None:
    """`protocol.json`: sizes and hashes of the lists, whether they are the whole benchmark's."""
    content = {
        **about,
        "partial": any(len(ids) != official[name] for name, ids in lists.items()),
        "lists": {
            name: {
                "images": len(ids),
                "official": official[name],
                "sha256": hashlib.sha256(list_bytes(ids)).hexdigest(),
            }
            for name, ids in lists.items()
        },
    }
    with atomic_path(root / PROTOCOL) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
