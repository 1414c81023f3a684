"""What the commands that prepare a benchmark check and write: lists, labels, `protocol.json`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.catalog import Catalog
from data.files import all_found
from tool.documents import read_dict
from tool.files import as_json, atomic_path, list_hash, write_json

Lists = Mapping[str, Sequence[str]]  # the ids of each list


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareFlags:
    """The flags of the commands that prepare a benchmark.

    Attributes:
        root: Folder of the benchmark as it was downloaded, which also receives what is made.
        partial: Accept lists of other sizes than the benchmark's, for a part of it.
        overwrite: Make everything anew, in place of what exists. Without it files with other
            content are an error.
    """

    root: Path
    partial: bool = False
    overwrite: bool = False


def check_lists(
    flags: PrepareFlags, catalog: Catalog, lists: Lists, official: Mapping[str, int]
) -> None:
    """Check that the lists have the benchmark's sizes, and that their images exist.

    Args:
        flags: With --partial, sizes that differ are only printed.
        catalog: The benchmark on disk.
        lists: The ids of each list.
        official: The number of images of each list in the benchmark.

    Raises:
        ValueError: A size differs, and --partial is not given.
        FileNotFoundError: Images are missing; names the first few.
    """
    wrong = [
        f"{name} has {len(ids)} images, the benchmark {official[name]}"
        for name, ids in lists.items()
        if len(ids) != official[name]
    ]
    if wrong and not flags.partial:
        raise ValueError(f"{'; '.join(wrong)}: --partial accepts a part of the benchmark")
    for line in wrong:
        print(f"partial: {line}")
    all_found(sorted({one for ids in lists.values() for one in ids}), catalog.image_path)


def put_files(files: Mapping[Path, bytes]) -> None:
    """Write each file, whole or not at all."""
    for path, content in files.items():
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        print(f"wrote {path}")


@contextlib.contextmanager
def recorded(
    flags: PrepareFlags,
    lists: Lists,
    official: Mapping[str, int],
    about: Mapping[str, Any],
    files: Mapping[Path, bytes],
) -> Iterator[None]:
    """Write files before the body, and `protocol.json` after it.

    A `protocol.json` with other content is removed first. So, even if the command is killed, an
    existing `protocol.json` describes the files correctly.

    Args:
        flags: The folder of `protocol.json`, and whether to replace files with other content.
        lists: The ids of each list, whose sizes and hashes are noted.
        official: The number of images of each list in the benchmark.
        about: What else is noted.
        files: The contents of the lists and labels by path.

    Raises:
        ValueError: A file exists with other content, and --overwrite is not given. No file has been
            changed then.
    """
    changed = {
        path: content
        for path, content in files.items()
        if not path.exists() or path.read_bytes() != content
    }
    for path in changed:
        if path.exists() and not flags.overwrite:
            raise ValueError(f"{path} is there with other content: --overwrite replaces it")
    protocol = flags.root / "protocol.json"
    document = as_json({**about, **_part_of(lists, official)})
    if flags.overwrite or changed or read_dict(protocol) != document:
        protocol.unlink(missing_ok=True)
    put_files(changed)
    yield
    write_json(protocol, document)
    print(f"{flags.root}: {', '.join(f'{name} {len(ids)}' for name, ids in lists.items())} images")


def _part_of(lists: Lists, official: Mapping[str, int]) -> dict[str, Any]:
    """Return sizes and hashes of the lists, and whether they are the whole benchmark."""
    return {
        "partial": {name: len(ids) for name, ids in lists.items()} != dict(official),
        "missing": [name for name in official if name not in lists],
        "lists": {
            name: {"images": len(ids), "official": official[name], "sha256": list_hash(ids)}
            for name, ids in lists.items()
        },
    }
